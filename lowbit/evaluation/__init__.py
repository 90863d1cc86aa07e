"""Evaluation: lm-evaluation-harness, the papers' token perplexity, and data sets from a local mirror."""

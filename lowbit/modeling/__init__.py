"""Packed models: modules, kernels, the journal, checkpoints, and the transformers quantizer."""

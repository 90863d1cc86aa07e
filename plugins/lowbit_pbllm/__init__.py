"""PB-LLM (arXiv 2310.00034): partial binarization, salient weights kept at 8 bits."""

"""BiLLM (arXiv 2402.04291) and ARB-LLM (arXiv 2410.03129): residual binarization of salient columns."""

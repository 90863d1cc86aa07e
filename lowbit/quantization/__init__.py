"""The block-by-block engine and what several quantizers share."""

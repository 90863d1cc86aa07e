"""The whole run; `lowbit.pipeline.api` holds the functions that `lowbit` offers: quantize, load, bench."""

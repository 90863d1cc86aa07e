"""The whole run behind the Python API: quantize, load, bench."""

"""The whole run behind the Python API: quantize, load, bench."""

from lowbit.pipeline.api import bench, load, quantize

__all__ = ["bench", "load", "quantize"]

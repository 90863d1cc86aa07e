"""Texts of plugins whose quantizer keeps weights in half precision, and does something beside."""

from __future__ import annotations

import textwrap


def dense_plugin(name: str, beside: str, imports: str = "time") -> str:
    """Return a plugin's text.

    Args:
        name: Of its quantizer and method; its class has the same, capitalized.
        beside: Statements that run with every weight; `Class.weights` counts these from 1.
        imports: Modules that they need, by comma.
    """
    kind = name.capitalize()
    return f"""
import {imports}
from lowbit import DenseWeight, Method, WeightQuantizer, hookimpl

class {kind}(WeightQuantizer):
    name = "{name}"
    weights = 0

    def quantize(self, weight, statistics, generator):
        {kind}.weights += 1
{textwrap.indent(textwrap.dedent(beside).strip(), " " * 8)}
        return DenseWeight(weight.half(), nominal_bits=16)

@hookimpl
def lowbit_weight_quantizers():
    yield {kind}

@hookimpl
def lowbit_methods():
    yield Method("{name}", quantizer="{name}")
"""

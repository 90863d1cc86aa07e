"""`torch.ops.lowbit.packed_linear`: the product with a packed weight of any layout, by its definition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lowbit.contracts import FormatSpec, PackedWeight
from lowbit.modeling.layouts import unpack


def describe_weight(packed: PackedWeight) -> str:
    """Return everything about a packed weight but its tensors, as the JSON text that the operator takes."""
    return json.dumps({"spec": asdict(packed.spec), "packer": packed.packer, "tensors": list(packed.tensors)})


@lru_cache(maxsize=4096)
def _described(weight: str) -> tuple[FormatSpec, str, tuple[str, ...]]:
    values = json.loads(weight)
    return FormatSpec(**values["spec"]), values["packer"], tuple(values["tensors"])


def _dense(tensors: Sequence[Tensor], weight: str) -> Tensor:
    spec, packer, names = _described(weight)
    return unpack(PackedWeight(spec, packer, dict(zip(names, tensors, strict=True)))).dequantize()


@torch.library.custom_op("lowbit::packed_linear", mutates_args=())
def packed_linear(x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    """Return x @ W^T + bias with W dequantized at every call to the dtype of `x`.

    Args:
        x: Activations [..., in].
        tensors: The packed tensors, in the order that `weight` names them.
        bias: [out] or `None`.
        weight: What `describe_weight` says of the packed weight.
    """
    with torch.autocast(x.device.type, enabled=False):
        bias = None if bias is None else bias.to(x.dtype)
        return torch.nn.functional.linear(x, _dense(tensors, weight).to(x.dtype), bias)


@packed_linear.register_fake
def _(x: Tensor, tensors: Sequence[Tensor], bias: Tensor | None, weight: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], _described(weight)[0].sizes["out"])


@torch.library.custom_op("lowbit::packed_matmul", mutates_args=())
def packed_matmul(x: Tensor, tensors: Sequence[Tensor], weight: str) -> Tensor:
    """Return x @ W for x [..., out]: what the gradient of activations takes.

    Args:
        x: [..., out].
        tensors: As in `packed_linear`.
        weight: As in `packed_linear`.
    """
    with torch.autocast(x.device.type, enabled=False):
        return x @ _dense(tensors, weight).to(x.dtype)


@packed_matmul.register_fake
def _(x: Tensor, tensors: Sequence[Tensor], weight: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], _described(weight)[0].sizes["in"])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.tensors, bias, ctx.weight = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[None], Tensor | None, None]:
    wants_x, _, wants_bias, _ = ctx.needs_input_grad
    to_x = packed_matmul(grad, ctx.tensors, ctx.weight) if wants_x else None
    to_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype) if wants_bias else None
    return to_x, [None] * len(ctx.tensors), to_bias, None


packed_linear.register_autograd(_backward, setup_context=_keep)

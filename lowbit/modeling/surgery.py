"""Puts packed modules in the place of linear layers and fused experts, and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lowbit.errors import CheckpointError
from lowbit.modeling.module_entry import LoadedEntry
from lowbit.modeling.packed_experts import PackedExperts
from lowbit.modeling.quant_linear import QuantLinear
from lowbit.models.experts import PACKED_SUFFIX, is_fused_experts_module


def install_packed_modules(model: nn.Module, entries: Iterable[LoadedEntry]) -> None:
    """Replace every module that the entries name by its packed counterpart on the meta device.

    Raises:
        CheckpointError: An entry names no such layer, or its sizes are not the layer's.
    """
    experts: dict[str, dict[int, LoadedEntry]] = defaultdict(dict)
    for entry in entries:
        if entry.fused:
            parameter, _, number = entry.name.rpartition(".")
            experts[parameter][int(number)] = entry
        else:
            _install_linear(model, entry)
    for parameter, by_number in experts.items():
        _install_experts(model, parameter, by_number)


def _install_linear(model: nn.Module, entry: LoadedEntry) -> None:
    try:
        module = model.get_submodule(entry.name)
    except AttributeError:
        module = None
    if isinstance(module, nn.Linear):
        shape: tuple[int, ...] = tuple(module.weight.shape)
    elif isinstance(module, Conv1D):
        shape = tuple(module.weight.shape)[::-1]
    else:
        raise CheckpointError(f"quantization_config names {entry.name}, which is no linear layer of this model")
    _check_shape(entry, shape)
    bias = module.bias
    dtype = torch.float32 if bias is None else bias.dtype
    packed = QuantLinear(entry.spec, entry.packer, bias is not None, dtype, isinstance(module, Conv1D))
    model.set_submodule(entry.name, packed)


def _install_experts(model: nn.Module, parameter: str, entries: dict[int, LoadedEntry]) -> None:
    module_name, _, leaf = parameter.rpartition(".")
    try:
        module = model.get_submodule(module_name)
    except AttributeError:
        module = nn.Module()
    fused = module._parameters.get(leaf)
    if fused is None or not is_fused_experts_module(module):
        raise CheckpointError(
            f"quantization_config names {parameter}, which is no fused experts parameter of this model"
        )
    if sorted(entries) != list(range(fused.shape[0])):
        raise CheckpointError(
            f"{parameter} has {fused.shape[0]} experts, but the configuration names {sorted(entries)}"
        )
    transposed = bool(module.is_transposed)
    for entry in entries.values():
        _check_shape(entry, tuple(fused.shape[:0:-1] if transposed else fused.shape[1:]))
    specs = [(entries[number].spec, entries[number].packer) for number in range(fused.shape[0])]
    del module._parameters[leaf]
    module.register_buffer(leaf, torch.empty(0, dtype=torch.uint8, device="meta"))
    module.add_module(leaf + PACKED_SUFFIX, PackedExperts(specs, transposed))


def _check_shape(entry: LoadedEntry, shape: tuple[int, ...]) -> None:
    declared = (entry.spec.sizes.get("out"), entry.spec.sizes.get("in"))
    if declared != shape:
        raise CheckpointError(f"{entry.name} has shape {shape} in this model, but the configuration says {declared}")


def to_dense_modules(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every packed module by a plain one with the dequantized weights in `dtype`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(name, module.to_dense(dtype))
        elif isinstance(module, PackedExperts):
            owner_name, _, leaf = name.rpartition(".")
            owner = model.get_submodule(owner_name)
            parameter = leaf.removesuffix(PACKED_SUFFIX)
            del owner._modules[leaf], owner._buffers[parameter]
            owner.register_parameter(parameter, module.to_dense(dtype))


def packed_modules(model: nn.Module) -> list[nn.Module]:
    """Return the packed linear layers and experts of a model."""
    return [module for module in model.modules() if isinstance(module, QuantLinear | PackedExperts)]

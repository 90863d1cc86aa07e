"""Runs fused mixture-of-experts layers expert by expert, over dense or packed matrices.

transformers 5 lets a model's experts run through a registered function. This one does the same arithmetic as the eager
implementation, takes each expert's matrix from wherever it lies, and lets an observer see what enters each matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PACKED_SUFFIX = "_packed"
IMPLEMENTATION = "lowbit"
FLAGS = ("has_gate", "has_bias", "is_transposed", "num_experts")

ExpertObserver = Callable[[str, int, Tensor], None]


def is_fused_experts_module(module: nn.Module) -> bool:
    """Say whether a module is a fused experts layer that transformers can dispatch to a registered function."""
    return all(hasattr(module, flag) for flag in FLAGS)


def use_expert_loop(model: nn.Module) -> None:
    """Make every fused experts layer of a model run through `experts_forward`; does nothing without such layers."""
    if not any(is_fused_experts_module(module) for module in model.modules()):
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)
    set_implementation: Any = model.set_experts_implementation
    set_implementation(IMPLEMENTATION)


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run a fused experts layer one hit expert at a time.

    Args:
        self: The experts module.
        hidden_states: [tokens, hidden size].
        top_k_index: Chosen experts, [tokens, k].
        top_k_weights: Their weights, [tokens, k].

    Returns:
        [tokens, hidden size].
    """
    observe: ExpertObserver | None = self.__dict__.get("lowbit_observer")
    first = "gate_up_proj" if self.has_gate else "up_proj"
    # A parametrized parameter is made anew each time that it is asked for: once, not for every expert.
    stacks = {parameter: getattr(self, parameter, None) for parameter in (first, "down_proj")}
    result = torch.zeros_like(hidden_states)
    for expert in torch.unique(top_k_index).tolist():
        if expert >= self.num_experts:
            continue
        token, position = torch.where(top_k_index == expert)
        inner = _product(self, stacks, first, expert, hidden_states[token], observe)
        inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        outer = _product(self, stacks, "down_proj", expert, inner, observe)
        if getattr(self, "has_post_expert_norm", False):
            outer = self.post_expert_norm(outer)
        result.index_add_(0, token, (outer * top_k_weights[token, position, None]).to(result.dtype))
    return result


def _product(
    experts: Any,
    stacks: Mapping[str, Tensor | None],
    parameter: str,
    expert: int,
    x: Tensor,
    observe: ExpertObserver | None,
) -> Tensor:
    if observe is not None:
        observe(parameter, expert, x)
    packed = experts._modules.get(parameter + PACKED_SUFFIX)
    bias = getattr(experts, f"{parameter}_bias")[expert] if experts.has_bias else None
    if packed is not None:
        product: Tensor = packed.linear(expert, x)
        return product if bias is None else product + bias
    stack = stacks[parameter]
    assert stack is not None
    matrix = stack[expert]
    return nn.functional.linear(x, matrix.T if experts.is_transposed else matrix, bias)

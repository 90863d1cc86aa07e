"""Teacher and student as the trainer runs them: hidden states out of the body, logits out of the shared head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lowbit.errors import LowbitError
from lowbit.models import find_decoder
from lowbit.models.capture import first_tensor


class Body(nn.Module):
    """A causal language model without its output layer.

    Args:
        model: A transformers causal language model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base = model.base_model if model.base_model is not model else _inner(model)
        self._blocks = find_decoder(model).blocks

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The decoder blocks, in order."""
        return list(self._blocks)

    def forward(self, tokens: Tensor, with_hidden: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the body.

        Args:
            tokens: int64 [samples, length].
            with_hidden: Whether to return what leaves each block, too.

        Returns:
            What enters the output layer, and the blocks' outputs, each [samples, length, hidden size].
        """
        outputs: dict[int, Tensor] = {}
        handles = []
        if with_hidden:
            for index, block in enumerate(self._blocks):
                handles.append(block.register_forward_hook(_keep_first(outputs, index)))
        try:
            last: Tensor = self.base(input_ids=tokens, use_cache=False).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()
        return last, tuple(outputs[index] for index in sorted(outputs))


def _inner(model: Any) -> nn.Module:
    """Return the model without its head where transformers does not know it by name."""
    inner: nn.Module = getattr(model, find_decoder(model).name.partition(".")[0])
    return inner


def _keep_first(outputs: dict[int, Tensor], index: int) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        # A block that is recomputed in the backward pass runs twice; its first output is the one with a graph.
        outputs.setdefault(index, first_tensor(output))

    return hook


class Head:
    """A model's way from the last hidden states to logits, on its own output layer.

    Args:
        model: A transformers causal language model, whose output layer is neither quantized nor trained.

    Raises:
        LowbitError: The model makes its logits in a way that is not known here.
    """

    def __init__(self, model: Any) -> None:
        self.layer: Any = model.get_output_embeddings()
        if self.layer is None:
            raise LowbitError(f"{type(model).__name__} has no output layer; training needs its logits")
        self._config: PretrainedConfig = model.config
        self._check(model)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocabulary] of hidden states [..., hidden size]."""
        logits: Tensor = self.layer(hidden.to(self.layer.weight.dtype))
        cap = getattr(self._config, "final_logit_softcapping", None)
        if getattr(self._config, "logit_scale", None) is not None:
            logits = logits * self._config.logit_scale
        if getattr(self._config, "logits_scaling", None) is not None:
            logits = logits / self._config.logits_scaling
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        tokens = torch.arange(8, device=self.layer.weight.device).remainder(model.config.vocab_size).unsqueeze(0)
        expected = model(input_ids=tokens, use_cache=False).logits.float()
        found = self(Body(model)(tokens)[0]).float()
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-2, atol=1e-3):
            raise LowbitError(
                f"{type(model).__name__} makes its logits in a way that training does not know; only block-wise "
                "reconstruction works for it"
            )


def without_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to zero: a student must not differ from its teacher by noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which forward passes compute in the wanted precision."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)

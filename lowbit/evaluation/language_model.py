"""The harness's own model class, told the batch size, context and begin-of-text token, and nothing else changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from lowbit.recipe.evaluation import EvaluationSettings


class EvaluatedModel(HFLM):  # type: ignore[misc]
    """A transformers model as the harness sees it; scoring is the harness's, untouched.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        settings: Of these `batch_size`, `max_batch_size`, `max_length` and `add_bos_token` matter.
        num_parameters: The number of weights that the model stands for, where its tensors are packed; None to count
            its parameters.
        model_sha: What identifies its weights, empty when unknown.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: EvaluationSettings,
        *,
        num_parameters: int | None = None,
        model_sha: str = "",
    ) -> None:
        with _quiet("lm_eval.models.huggingface"):
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=settings.batch_size,
                max_batch_size=settings.max_batch_size or 64,
                max_length=settings.max_length,
                add_bos_token=settings.add_bos_token,
            )
        self._num_parameters = num_parameters
        self._model_sha = model_sha

    def get_model_info(self) -> dict[str, Any]:
        """What a result says of the model: the number of its weights, their type, and what identifies them."""
        count = self.model.num_parameters() if self._num_parameters is None else self._num_parameters
        return {
            "model_num_parameters": int(count),
            "model_dtype": str(self.model.dtype),
            "model_revision": "main",
            "model_sha": self._model_sha,
        }


class TokenizerOnly(HFLM):  # type: ignore[misc]
    """The harness's model class without a model: it cuts requests into tokens as an evaluation would.

    Args:
        tokenizer: The tokenizer.
        add_bos_token: Whether texts begin with the begin-of-text token, None for the tokenizer's default.
    """

    def __init__(self, tokenizer: Any, add_bos_token: bool | None) -> None:
        # Not the parent's own start, which needs a model; these are all that tokenization reads.
        self.tokenizer = tokenizer
        self.backend = "causal"
        self.add_bos_token = add_bos_token
        self.custom_prefix_token_id = None
        self.chat_template_args: dict[str, Any] = {}


def weights_hash(model: Any) -> str:
    """The sha256 of a model's parameters and buffers, names and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Leave out warnings that an in-memory model may ignore arguments: all of its arguments are given here."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""The harness's own model class, told the batch size, context and begin-of-text token, and nothing else changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from lowbit.contracts import EvaluationStep
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
        on_step: Hears how many requests are answered, in place of the harness's own progress bars.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: EvaluationSettings,
        *,
        num_parameters: int | None = None,
        model_sha: str = "",
        on_step: Callable[[EvaluationStep], None] | None = None,
    ) -> None:
        self._on_step = on_step
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
        self.set_cache_hook(self.cache_hook)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Let every answer that the harness offers to its cache be counted, too."""
        super().set_cache_hook(cache_hook if self._on_step is None else _CountedAnswers(cache_hook, self._on_step))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Answer as the harness does, and count answers."""
        self._count(requests)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or self._on_step is not None)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Answer as the harness does, and count windows: it tells of whole texts only after all of them."""
        self._count(requests, "windows")
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm or self._on_step is not None)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Answer as the harness does, and count answers."""
        self._count(requests)
        return super().generate_until(requests, disable_tqdm=disable_tqdm or self._on_step is not None)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        quiet = disable_tqdm or self._on_step is not None
        answers = super()._loglikelihood_tokens(requests, disable_tqdm=quiet, override_bs=override_bs)
        if isinstance(self.cache_hook, _CountedAnswers):
            self.cache_hook.add_windows(len(answers))
        return answers

    def _count(self, requests: Sequence[Any], unit: Literal["requests", "windows"] = "requests") -> None:
        if isinstance(self.cache_hook, _CountedAnswers):
            self.cache_hook.start(requests, unit)

    def get_model_info(self) -> dict[str, Any]:
        """What a result says of the model: the number of its weights, their type, and what identifies them."""
        count = self.model.num_parameters() if self._num_parameters is None else self._num_parameters
        return {
            "model_num_parameters": int(count),
            "model_dtype": str(self.model.dtype),
            "model_revision": "main",
            "model_sha": self._model_sha,
        }


class _CountedAnswers(CacheHook):  # type: ignore[misc]
    """Counts the answers of one kind of request, and passes them on to the harness's cache.

    Args:
        inner: The harness's own hook.
        on_step: Hears of every count.
    """

    def __init__(self, inner: Any, on_step: Callable[[EvaluationStep], None]) -> None:
        super().__init__(None)
        self.inner = inner
        self._on_step = on_step
        self._step = EvaluationStep((), "requests", 0, 0)

    def start(self, requests: Sequence[Any], unit: Literal["requests", "windows"]) -> None:
        """Begin to count the answers to these requests."""
        tasks = tuple(dict.fromkeys(str(request.task_name) for request in requests))
        self._step = EvaluationStep(tasks, unit, 0, len(requests) if unit == "requests" else None)
        self._on_step(self._step)

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        """Pass an answer on, and count it where answers are counted."""
        self.inner.add_partial(attr, req, res)
        if self._step.unit == "requests":
            self._add(1)

    def add_windows(self, number: int) -> None:
        """Count windows where windows are counted."""
        if self._step.unit == "windows":
            self._add(number)

    def _add(self, number: int) -> None:
        self._step = replace(self._step, done=self._step.done + number)
        self._on_step(self._step)


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

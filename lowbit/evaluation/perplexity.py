"""The token perplexity that papers on weight quantization report, on WikiText-2, PTB and C4.

The protocol is that of the GPTQ line of work: the text is joined, tokenized once, and cut into N windows of L tokens
that do not overlap; what is left over at the end is not used. The first token of a window has no context and is not
scored. The published code takes the mean negative log-likelihood of the L - 1 scored tokens of each window, multiplies
it by L, sums over windows and divides by N * L before the exponential. L cancels, so the result is the exponential of
the mean over all N * (L - 1) scored tokens, which is what is computed here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from lowbit.contracts import EvaluationStep
from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import PerplexityTask
from lowbit.recipe.evaluation import EvaluationSettings

METRIC = "token_perplexity"
VERSION = 1.0
_LOGITS_BYTES = 256 * 2**20
"""Memory that a batch's logits may take; fewer windows are run together when the vocabulary is large."""


def cut_windows(
    task: PerplexityTask, tokenizer: Any, context_length: int, add_special_tokens: bool | None = None
) -> torch.Tensor:
    """Tokenize a text and cut it into windows.

    Args:
        task: The text.
        tokenizer: The model's tokenizer; it adds a begin-of-text token as it does by default.
        context_length: Tokens in a window.
        add_special_tokens: Whether the tokenizer adds its special tokens, None for its default.

    Returns:
        Token ids, int64 [windows, context_length].

    Raises:
        LowbitError: The text is shorter than one window.
    """
    special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    ids = tokenizer(task.text, verbose=False, **special)["input_ids"][: task.corpus.max_tokens]
    windows = len(ids) // context_length
    if windows == 0:
        raise LowbitError(
            f"{task.base_name}@{context_length}: the text has {len(ids)} tokens, less than one window of "
            f"{context_length}: use a shorter context, for example {task.base_name}@{max(2, len(ids) // 2)}"
        )
    return torch.tensor(ids[: windows * context_length], dtype=torch.int64).view(windows, context_length)


@torch.inference_mode()
def window_losses(
    model: Any,
    windows: torch.Tensor,
    batch_size: int | str = 16,
    on_done: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Mean negative log-likelihood of each window's tokens but the first, in nats.

    Args:
        model: A causal language model.
        windows: Token ids, int64 [windows, context_length].
        batch_size: Windows run together at most; less when the logits would take too much memory.
        on_done: Hears after each batch how many windows are done.

    Returns:
        float64 [windows].
    """
    context_length = windows.shape[1]
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    fitting = max(1, _LOGITS_BYTES // (context_length * vocabulary * 4))
    size = min(fitting, batch_size) if isinstance(batch_size, int) else fitting
    training = model.training
    model.eval()
    losses = []
    for batch in torch.split(windows, size):
        inputs = batch.to(model.device)
        logits = model(input_ids=inputs, use_cache=False).logits  # [batch, context, vocabulary]
        for window_logits, targets in zip(logits[:, :-1], inputs[:, 1:], strict=True):
            # One window at a time, so that no second copy of the batch in float32 is made.
            token_losses = functional.cross_entropy(window_logits.float(), targets, reduction="none")
            losses.append(token_losses.double().mean().cpu())
        on_done(len(losses))
    model.train(training)
    return torch.stack(losses)


def evaluate_perplexity(
    model: Any,
    tokenizer: Any,
    task: PerplexityTask,
    settings: EvaluationSettings,
    on_step: Callable[[EvaluationStep], None] | None = None,
) -> dict[str, Any]:
    """Evaluate one token perplexity.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        task: The text and the context length.
        settings: Of these `batch_size`, `limit` and `samples` (in windows), `add_bos_token` and `log_samples` matter.
        on_step: Hears how many windows are done.

    Returns:
        The sections of a result in the harness's layout, each with the one key `NAME@LENGTH`.

    Raises:
        LowbitError: The context is longer than the model's positions, or the text shorter than one window.
    """
    context_length = task.resolve_context_length(model.config)
    windows = cut_windows(task, tokenizer, context_length, settings.add_bos_token)
    key = f"{task.base_name}@{context_length}"
    chosen = _chosen_windows(task, key, len(windows), settings)

    def announce(done: int) -> None:
        if on_step is not None:
            on_step(EvaluationStep((key,), "windows", done, len(chosen)))

    announce(0)
    losses = window_losses(model, windows[chosen], settings.batch_size, announce)
    perplexity = math.exp(min(losses.mean().item(), 709.0))
    # The standard error of the mean of windows, carried through the exponential to first order.
    count = len(losses)
    error: float | str = perplexity * losses.std().item() / math.sqrt(count) if count > 1 else "N/A"
    return _sections(task, context_length, windows, chosen, losses, perplexity, error, settings)


def _chosen_windows(task: PerplexityTask, key: str, count: int, settings: EvaluationSettings) -> list[int]:
    samples = settings.samples or {}
    indices = samples.get(task.name) or samples.get(key) or samples.get(task.base_name)
    if indices:
        if indices[-1] >= count:
            raise LowbitError(f"--samples asks for window {indices[-1]} of {key}, which has {count} windows")
        return list(indices)
    if settings.limit is None:
        return list(range(count))
    wanted = math.ceil(count * settings.limit) if settings.limit < 1 else int(settings.limit)
    return list(range(min(count, wanted)))


def _sections(
    task: PerplexityTask,
    context_length: int,
    windows: torch.Tensor,
    chosen: Sequence[int],
    losses: torch.Tensor,
    perplexity: float,
    error: float | str,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    key = f"{task.base_name}@{context_length}"
    metrics = {f"{METRIC},none": perplexity, f"{METRIC}_stderr,none": error}
    config = {
        "task": key,
        "dataset_path": task.corpus.path,
        "dataset_name": task.corpus.name,
        "test_split": task.corpus.split,
        "output_type": "loglikelihood_rolling",
        "num_fewshot": 0,
        "metric_list": [{"metric": METRIC, "higher_is_better": False}],
        "metadata": {
            "version": VERSION,
            "context_length": context_length,
            "documents": task.documents,
            "separator": task.corpus.separator,
            "scored_tokens": len(chosen) * (context_length - 1),
            "text_sha256": hashlib.sha256(task.text.encode()).hexdigest(),
            "protocol": "non-overlapping windows, first token of each not scored, exp of the mean over scored tokens",
        },
    }
    sections: dict[str, Any] = {
        "results": {key: {"name": key, "alias": key, "sample_len": len(chosen), **metrics}},
        "group_subtasks": {},
        "configs": {key: config},
        "versions": {key: VERSION},
        "n-shot": {key: 0},
        "higher_is_better": {key: {METRIC: False}},
        "n-samples": {key: {"original": len(windows), "effective": len(chosen)}},
    }
    if settings.log_samples or settings.predict_only:
        pairs = zip(chosen, losses.tolist(), strict=True)
        sections["samples"] = {key: [_sample(index, loss, windows[index]) for index, loss in pairs]}
    return sections


def _sample(index: int, loss: float, window: torch.Tensor) -> dict[str, Any]:
    """One window in the form of the harness's logged samples; its text is that of its tokens, given by their hash."""
    digest = hashlib.sha256(window.numpy().tobytes()).hexdigest()
    return {
        "doc_id": index,
        "doc": {"window": index, "tokens": len(window), "tokens_sha256": digest},
        "target": "",
        "arguments": [],
        "resps": [],
        "filtered_resps": [],
        "filter": "none",
        "metrics": [METRIC],
        "doc_hash": digest,
        "prompt_hash": digest,
        "target_hash": digest,
        METRIC: math.exp(min(loss, 709.0)),
    }

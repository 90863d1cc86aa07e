"""Documents that do not fit a model's context, found before anything is evaluated.

The harness scores an answer only if all of its tokens fit the context together, and stops with an assertion when one
does not. Long questions are no trouble: they are cut from the left. Texts of rolling perplexities are cut into windows.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.models.utils import normalize_gen_kwargs

from lowbit.errors import LowbitError
from lowbit.evaluation.language_model import TokenizerOnly
from lowbit.evaluation.perplexity import cut_windows
from lowbit.evaluation.prepare import PreparedTasks
from lowbit.recipe.evaluation import EvaluationSettings

# A text of at most this share of the context in bytes cannot have more tokens than the context: a tokenizer falls back
# to bytes at worst, and what its normalization adds stays far below a factor of two.
_SAFE_SHARE = 0.5
_SPECIAL_TOKENS = 8


@dataclass(frozen=True)
class LongDocument:
    """A document whose answer is longer than the context.

    Attributes:
        task: The task's name.
        index: The document's index in the evaluated split.
        tokens: The length of its longest answer.
    """

    task: str
    index: int
    tokens: int


def check_documents_fit(prepared: PreparedTasks, tokenizer: Any, max_length: int, settings: EvaluationSettings) -> None:
    """Refuse documents that the harness could not score; only documents that are evaluated count.

    Args:
        prepared: The tasks.
        tokenizer: The model's tokenizer.
        max_length: The context in tokens.
        settings: The evaluation's settings.

    Raises:
        LowbitError: Names a task, a document, its length, the context, and what can be done.
    """
    for name, task in prepared.tasks.items():
        requests = _build_requests(name, task, tokenizer, settings)
        _check_generation(name, requests, max_length, TokenizerOnly(tokenizer, settings.add_bos_token).max_gen_toks)
        if long := find_long_documents(name, requests, tokenizer, max_length, settings):
            raise LowbitError(_describe(long, max_length))


def check_perplexity_windows(
    prepared: PreparedTasks, tokenizer: Any, config: Any, settings: EvaluationSettings
) -> None:
    """Refuse token perplexities whose context is longer than the model's, or whose text is shorter than a window.

    Args:
        prepared: The tasks.
        tokenizer: The model's tokenizer.
        config: The model's transformers configuration.
        settings: The evaluation's settings.

    Raises:
        LowbitError: Names the task and the lengths.
    """
    lengths = [task.resolve_context_length(config) for task in prepared.perplexities]
    for task, length in zip(prepared.perplexities, lengths, strict=True):
        # Enough text for one window is told from its beginning: no tokenizer makes a token of fifty characters a rule.
        if len(task.text) < 50 * length:
            cut_windows(task, tokenizer, length, settings.add_bos_token)


def find_long_documents(
    name: str, requests: Sequence[Instance], tokenizer: Any, max_length: int, settings: EvaluationSettings
) -> list[LongDocument]:
    """The documents with an answer of more tokens than the context, longest answer first.

    Args:
        name: The task's name.
        requests: Its requests as the harness builds them.
        tokenizer: The model's tokenizer.
        max_length: The context in tokens.
        settings: Of these `samples` and `add_bos_token` matter.
    """
    encoder = TokenizerOnly(tokenizer, settings.add_bos_token)
    indices = (settings.samples or {}).get(name)
    longest: dict[int, int] = {}
    for request in requests:
        if request.request_type != "loglikelihood":
            continue
        context, answer = request.args[:2]
        if len(answer.encode()) <= _SAFE_SHARE * max_length - _SPECIAL_TOKENS:
            continue
        tokens = _answer_tokens(encoder, context, answer)
        if tokens > max_length:
            position = int(request.doc_id or 0)
            index = indices[position] if indices else position
            longest[index] = max(tokens, longest.get(index, 0))
    found = [LongDocument(name, index, tokens) for index, tokens in longest.items()]
    return sorted(found, key=lambda document: (-document.tokens, document.index))


def _answer_tokens(encoder: TokenizerOnly, context: str, answer: str) -> int:
    """The number of tokens that the harness gives an answer."""
    if context:
        return len(encoder._encode_pair(context, answer)[1])
    tokens = encoder.tok_encode(answer, add_special_tokens=False)
    # With no question the answer's own first token stands in for it if it is the begin-of-text token.
    return len(tokens) - int(tokens[:1] == [encoder.prefix_token_id])


def _build_requests(name: str, task: Any, tokenizer: Any, settings: EvaluationSettings) -> list[Instance]:
    """Build a task's requests as the harness will when it evaluates."""
    indices = (settings.samples or {}).get(name)
    encoder = TokenizerOnly(tokenizer, settings.add_bos_token)
    template: Callable[..., str] | None = encoder.apply_chat_template if settings.apply_chat_template else None
    task.set_fewshot_seed(seed=settings.seed[3])
    with contextlib.redirect_stderr(io.StringIO()):  # the harness draws a bar here, and again when it evaluates
        task.build_all_requests(
            limit=get_sample_size(task, settings.limit),
            samples=list(indices) if indices else None,
            system_instruction=settings.system_instruction,
            apply_chat_template=bool(settings.apply_chat_template),
            fewshot_as_multiturn=settings.multiturn,
            chat_template=template,
            tokenizer_name=encoder.tokenizer_name if template else "",
        )
    return list(task.instances)


def _check_generation(name: str, requests: Sequence[Instance], max_length: int, default: int) -> None:
    """Refuse a task that lets the model write as much as its whole context, so that no question would fit."""
    for request in requests:
        if request.request_type != "generate_until":
            continue
        asked = int(normalize_gen_kwargs(dict(request.args[1]), default)["max_gen_toks"])
        if asked >= max_length:
            raise LowbitError(
                f"task {name!r} lets the model write {asked} tokens, which leaves no room for the question in a "
                f"context of {max_length}: write less with --gen_kwargs max_gen_toks={max(1, max_length // 2)}, or "
                f"raise the context with --max_length if the model bears it"
            )
        return


def _describe(long: Sequence[LongDocument], max_length: int) -> str:
    first = long[0]
    indices = sorted(document.index for document in long)
    shown = ", ".join(str(index) for index in indices[:30]) + (", ..." if len(indices) > 30 else "")
    return (
        f"task {first.task!r}: document {first.index} has an answer of {first.tokens} tokens, but the context is "
        f"{max_length} tokens. {len(indices)} document(s) do not fit: {shown}. Either raise the context with "
        f"--max_length {first.tokens} if the model bears more positions than that, or leave the documents out with "
        f"--samples '{{\"{first.task}\": [...]}}', which lists those to evaluate"
    )

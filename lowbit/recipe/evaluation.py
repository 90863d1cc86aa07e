"""What to evaluate and how: lm-evaluation-harness's own settings under its own names."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from lowbit.documents import parse_json, read_json
from lowbit.errors import LowbitError

LONGEST_LITERAL = 10_000
"""Characters of a Python literal in a setting; a longer one is text."""
DEFAULT_SEEDS: tuple[int, int, int, int] = (0, 1234, 1234, 1234)
"""The harness's seeds for python, numpy, torch and the choice of few-shot examples."""


def _split_names(value: object) -> object:
    """Accept `a,b`, `a b` and lists of such strings, as the harness's command line does."""
    if isinstance(value, str):
        return tuple(value.replace(",", " ").split())
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return tuple(name for item in value for name in item.split(",") if name)
    return value


def _parse_batch_size(value: object) -> object:
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    return value


def _parse_json(text: str, what: str) -> object:
    try:
        return parse_json(text, what)
    except LowbitError as error:
        raise ValueError(str(error)) from error


def _parse_literal(text: str) -> object:
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return ast.literal_eval(text) if len(text) <= LONGEST_LITERAL else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _split_outside_brackets(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotation marks."""
    parts, depth, quote, current = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[({":
            depth += 1
        elif character in "])}":
            depth -= 1
        elif character == "," and depth <= 0:
            parts.append(current)
            current = ""
            continue
        current += character
    return [part for part in [*parts, current] if part.strip()]


def _parse_mapping(value: object) -> object:
    """Accept a mapping, a JSON object, or `key=value,key=value` with Python literals as values."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{"):
        return _parse_json(text, "the mapping")
    mapping: dict[str, object] = {}
    for part in _split_outside_brackets(text):
        key, separator, literal = part.partition("=")
        if not separator:
            raise ValueError(f"expected key=value, got {part[:100]!r}")
        mapping[key.strip()] = _parse_literal(literal.strip())
    return mapping


def _parse_samples(value: object) -> object:
    """Accept a mapping, a JSON object, or the path of a file that holds one."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return _parse_json(value, "the samples")
    try:
        return read_json(Path(value), "the file of samples")
    except LowbitError as error:
        raise ValueError(f"expected a JSON object of task names to document indices, or a file: {error}") from error


def _parse_seed(value: object) -> object:
    """Expand one seed to all four generators and fill a missing fourth one from the defaults."""
    if isinstance(value, str):
        value = [None if part.strip().lower() == "none" else int(part) for part in value.split(",")]
    if value is None or isinstance(value, int):
        return (value,) * len(DEFAULT_SEEDS)
    if isinstance(value, list | tuple):
        if len(value) == 1:
            return tuple(value) * len(DEFAULT_SEEDS)
        if len(value) == len(DEFAULT_SEEDS) - 1:
            return (*value, DEFAULT_SEEDS[-1])
    return value


TaskNames = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
BatchSize = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^auto(:[1-9][0-9]*)?$")],
    BeforeValidator(_parse_batch_size),
]
Samples = Annotated[dict[str, tuple[int, ...]] | None, BeforeValidator(_parse_samples)]
Settings = Annotated[dict[str, Any], BeforeValidator(_parse_mapping)]
Seeds = Annotated[tuple[int | None, int | None, int | None, int | None], BeforeValidator(_parse_seed)]


class EvaluationSettings(BaseModel):
    """Settings of one evaluation; names and meanings are lm-evaluation-harness's, `data_dir` is lowbit's own.

    Tasks are the harness's tasks, groups, tags, glob patterns and YAML files, and the papers' token perplexities
    `wikitext2_ppl`, `ptb_ppl` and `c4_ppl`, which take a context length in tokens as `wikitext2_ppl@4096`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: TaskNames = Field(default=(), description="Names of tasks, groups or tags; comma or space between them.")
    num_fewshot: int | None = Field(default=None, ge=0, description="Examples in the prompt; None: as the task says.")
    batch_size: BatchSize = Field(default=16, description="Requests in a batch: a number, 'auto' or 'auto:N'.")
    max_batch_size: int | None = Field(default=None, ge=1, description="Largest batch that 'auto' tries.")
    max_length: int | None = Field(default=None, ge=2, description="Context in tokens; None: the model's positions.")
    device: str | None = Field(default=None, description="Device of the model, such as 'cuda:0'; None: where it is.")
    limit: float | None = Field(
        default=None, gt=0, description="Documents (of token perplexities: windows) a task, or a fraction when below 1."
    )
    samples: Samples = Field(default=None, description="Indices of the documents to evaluate, by task name.")
    use_cache: str | None = Field(default=None, description="Path prefix of a database of the model's answers.")
    cache_requests: Literal["true", "refresh", "delete"] | None = Field(
        default=None, description="Keep prompts built by the harness between runs."
    )
    log_samples: bool = Field(default=False, description="Keep every document, answer and metric in the result.")
    gen_kwargs: Settings = Field(default_factory=dict, description="Overrides of the tasks' generation settings.")
    apply_chat_template: bool | str = Field(default=False, description="Use the chat template, or the one named.")
    system_instruction: str | None = Field(default=None, description="System instruction before the prompt.")
    fewshot_as_multiturn: bool | None = Field(
        default=None, description="Few-shot examples as turns of a chat; None: exactly when a chat template is used."
    )
    include_path: str | None = Field(default=None, description="Folder with further task definitions.")
    seed: Seeds = Field(default=DEFAULT_SEEDS, description="Seeds: python, numpy, torch, few-shot choice.")
    predict_only: bool = Field(default=False, description="Keep the answers, compute no metric.")
    confirm_run_unsafe_code: bool = Field(default=False, description="Allow tasks that run generated code.")
    trust_remote_code: bool = Field(default=False, description="Allow code that comes with a model.")
    metadata: Settings = Field(default_factory=dict, description="Settings handed to tasks that ask for them.")
    write_out: bool = Field(default=False, description="Print the prompt of each task's first document.")
    check_integrity: bool = Field(default=False, description="Run the harness's own tests of the tasks.")
    add_bos_token: bool | None = Field(default=None, description="Begin-of-text token; None: as the tokenizer does.")
    bootstrap_iters: int = Field(default=100_000, ge=0, description="Resamplings for standard errors; 0: none.")
    data_dir: str | None = Field(default=None, description="Local mirror of hub data sets; nothing is downloaded.")

    @field_validator("cache_requests", mode="before")
    @classmethod
    def _read_cache_flag(cls, value: object) -> object:
        if isinstance(value, bool):
            return "true" if value else None
        return value

    @field_validator("samples")
    @classmethod
    def _sort_indices(cls, value: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]] | None:
        """Sort the indices: the harness reads documents in order and numbers its samples by position."""
        if value is None:
            return None
        for task, indices in value.items():
            if not indices or min(indices) < 0:
                raise ValueError(f"samples of {task!r} must be one or more document indices from 0, got {indices}")
        return {task: tuple(sorted(set(indices))) for task, indices in value.items()}

    @model_validator(mode="after")
    def _check_combinations(self) -> EvaluationSettings:
        if self.limit is not None and self.samples is not None:
            raise ValueError("limit and samples exclude each other: give one of them")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template")
        return self

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples become turns of a chat."""
        return bool(self.apply_chat_template) if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn

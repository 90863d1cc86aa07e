"""What decoding measured, as data and as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from kernels_timing import Times

TITLES = ("variant", "kernel", "tokens/s", "ms a token", "ms prompt", "peak MiB", "weights MiB", "same tokens")


@dataclass(frozen=True)
class Outcome:
    """What one variant did.

    Args:
        variant: Its name.
        kernels: That its packed layers are bound to.
        token: Seconds a token after the prompt, of all runs.
        runs: Tokens a second of each run.
        prompt: Seconds of the prompt of each run.
        peak_bytes: Most anonymous memory of a process of its own, above its imports.
        weight_bytes: Of all parameters and buffers.
        same_tokens: Part of the tokens that are those of the first variant.
        profile: Seconds a token by part of the model.
    """

    variant: str
    kernels: tuple[str, ...]
    token: Times
    runs: tuple[float, ...]
    prompt: tuple[float, ...]
    peak_bytes: int
    weight_bytes: int
    same_tokens: float
    profile: dict[str, float]

    @property
    def rate(self) -> float:
        """Median over the runs of tokens a second."""
        return statistics.median(self.runs)


def texts(outcome: Outcome) -> list[str]:
    """Return an outcome as a row of the table."""
    quartiles = f"[{outcome.token.lower * 1e3:.1f}, {outcome.token.upper * 1e3:.1f}]"
    return [
        outcome.variant,
        ", ".join(outcome.kernels) or "torch",
        f"{outcome.rate:.2f}",
        f"{outcome.token.median * 1e3:.1f} {quartiles}",
        f"{statistics.median(outcome.prompt) * 1e3:.0f}",
        f"{outcome.peak_bytes / 2**20:.0f}",
        f"{outcome.weight_bytes / 2**20:.0f}",
        f"{outcome.same_tokens:.0%}",
    ]


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table, and below it milliseconds a token by part of the model."""
    parts = list(outcomes[0].profile)
    profiles = [[one.variant, *(f"{one.profile[part] * 1e3:.2f}" for part in parts)] for one in outcomes]
    first = _markdown(list(TITLES), [texts(one) for one in outcomes])
    return first + "\n\n" + _markdown(["ms a token", *parts], profiles)


def _markdown(titles: list[str], rows: list[list[str]]) -> str:
    table = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)

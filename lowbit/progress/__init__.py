"""What is known of a run while it goes on, made from nothing but event hooks."""

from __future__ import annotations

from lowbit.progress.lines import RunLines
from lowbit.progress.state import Counter, RunState, duration

__all__ = ["Counter", "RunLines", "RunState", "duration"]

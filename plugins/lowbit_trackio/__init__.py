"""Tracks runs with trackio: `lowbit bench --plugin lowbit_trackio`.

Environment variables configure it: `TRACKIO_PROJECT` (`lowbit` when unset), and the library's own, such as
`TRACKIO_DIR` (where runs are kept), `TRACKIO_SPACE_ID` and `TRACKIO_SERVER_URL`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from lowbit import LowbitError, RunTracker

try:
    import trackio
except ImportError as missing:
    raise LowbitError("lowbit_trackio needs trackio: pip install 'lowbit[trackio]'") from missing


class Trackio(RunTracker):
    """One run of trackio a method; what the library prints goes to stderr, away from results."""

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a run."""
        with redirect_stdout(sys.stderr):
            trackio.init(project=os.environ.get("TRACKIO_PROJECT", "lowbit"), name=name, config=dict(config))

    def log(self, values: Mapping[str, float]) -> None:
        """Log numbers."""
        trackio.log(dict(values))

    def finish(self, error: str | None) -> None:
        """Finish the run; trackio knows no failed runs, so that a failure is a number and an alert."""
        with redirect_stdout(sys.stderr):
            trackio.log({"failed": 0.0 if error is None else 1.0})
            if error is not None:
                trackio.alert("the run failed", error)
            trackio.finish()


globals().update(Trackio().hooks())

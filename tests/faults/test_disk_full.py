"""A full disk: one clear line, nothing half-written, and the same command succeeds when there is space."""

from __future__ import annotations

import os

import pytest
from faults.conftest import Program

PHASES = "quantization,training,packing,results,generation,report,leaderboard"
MANY = int(os.environ.get("LOWBIT_FAULT_COUNT", "100"))


@pytest.mark.parametrize("count", [14, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half_written(
    program: Program, seed: int, count: int
) -> None:
    found = program("disk_full_program.py", seed, count, PHASES)
    failed = 0
    for trial in found["trials"]:
        told = (trial["phase"], trial["kind"], trial["status"], trial["log"][-2000:], trial["left"])
        assert trial["status"] in (0, 1), told
        assert "Traceback" not in trial["log"], told
        assert trial["wrong"] == [], told
        if trial["status"] == 1:
            failed += 1
            lines = [line for line in trial["log"].splitlines() if "lowbit: error: " in line or "FAILED" in line]
            assert lines, told
            assert "space" in trial["log"] or "too large" in trial["log"] or "finished" in trial["log"], told
        assert [name for name in trial["left"] if name.endswith(".tmp")] == [], told
        assert trial["again"] == 0, (told, trial["log_again"])
        assert trial["identical"], told
    assert failed >= 0.3 * count

"""Runs that are killed at random moments lose no finished work and end in the same bytes."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from faults.conftest import Program

PHASES = "quantization,training,packing,results,generation"
MANY = int(os.environ.get("LOWBIT_FAULT_COUNT", "100"))


def check_continued(trial: dict[str, Any]) -> None:
    """Nothing that was finished was done again, nothing is left over, and the bytes are those of a whole run."""
    where = (trial["phase"], trial["moment"], trial["status"])
    assert trial["again"] == 0, (where, trial["log_again"])
    assert trial["identical"], where
    left, seen = trial["left"], trial["seen"]
    if trial["phase"] == "results":
        assert set(left["results"]) <= set(trial["state"]["results"]), where
        assert len(trial["state"]["results"]) == 2, where
    elif seen:
        assert seen["blocks"] >= left["blocks"], where
        assert "distillation" not in seen or seen["distillation"] > left["distillation"], where
        assert "reconstruction" not in seen or seen["reconstruction"] > left["reconstruction"], where
    if trial["phase"] != "results":
        tops = {name.split("/")[0] for name in trial["after"]}
        if trial["phase"] == "packing" and trial["status"] != 0:
            tops -= {"out.lock"}  # A finished folder is not written again; the lock of a dead process means nothing.
        assert tops <= {"out", "out.cost.json", "out.npz", "out.json"}, where
    # In a directory of results others may be writing: what a killed run left there goes after a day.
    assert trial["phase"] == "results" or not [name for name in trial["after"] if name.endswith(".tmp")], where


@pytest.mark.parametrize("count", [7, pytest.param(MANY, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_nothing(program: Program, seed: int, count: int) -> None:
    found = program("kills_program.py", seed, count, PHASES, int(signal.SIGKILL))
    print(found["seconds"], found["calls"])
    assert len(found["trials"]) == count
    for trial in found["trials"]:
        assert trial["status"] in (0, -signal.SIGKILL), (trial["phase"], trial["moment"], trial["log"])
        check_continued(trial)
    killed = [trial for trial in found["trials"] if trial["status"] == -signal.SIGKILL]
    assert len(killed) >= 0.6 * count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("count", [3, pytest.param(MANY // 2, marks=pytest.mark.slow)])
def test_signals_end_a_run_in_ten_seconds_with_their_code(
    program: Program, seed: int, count: int, number: signal.Signals
) -> None:
    phases = PHASES if count > 5 else "training,quantization,results"
    found = program("kills_program.py", seed, count, phases, int(number))
    for trial in found["trials"]:
        told = (trial["phase"], trial["moment"], trial["log"])
        assert trial["status"] in (0, 128 + number, -number), told
        # A signal's own end is only for what had not begun: the command was not yet there to answer.
        assert trial["status"] != -number or not trial["log"], told
        if trial["status"] == 128 + number:
            assert trial["seconds"] < 10, told
            assert "finished work is kept, and the same command continues from there" in trial["log"], told
            assert "Traceback" not in trial["log"], told
        check_continued(trial)
    assert any(trial["status"] == 128 + number for trial in found["trials"])

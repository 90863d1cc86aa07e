"""Fixtures of the fault tests: seeds, numbers, and programs that run in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distillation.small_training import tokens_file
from small_models import ModelFolder

REPOSITORY = Path(__file__).resolve().parents[2]
Program = Callable[..., dict[str, Any]]


def environment() -> dict[str, str]:
    """Return an environment in which the tests' modules are found, and runs use one thread."""
    paths = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def seed() -> int:
    """Decides where faults fall."""
    return int(os.environ.get("LOWBIT_FAULT_SEED", "1"))


@pytest.fixture
def program(tmp_path: Path, parent: ModelFolder) -> Program:
    """Runs a program of this folder on a small model, and returns the JSON object that it prints last."""

    def run(name: str, *arguments: object) -> dict[str, Any]:
        places = [parent("llama"), tmp_path, tokens_file(tmp_path)]
        command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, [*places, *arguments])]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=3000, check=False)
        assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run

"""Signals reach a process that sits in a long call into compiled code, and a second signal ends it at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.conftest import environment
from faults.test_locks import launch
from small_models import ModelFolder

LONG = """
import pathlib
import torch
from lowbit import DenseWeight, Method, WeightQuantizer, hookimpl

class Long(WeightQuantizer):
    name = "long"
    def quantize(self, weight, statistics, generator):
        pathlib.Path(__file__).with_name("inside").touch()
        {call}
        return DenseWeight(weight.half(), nominal_bits=16)

@hookimpl
def lowbit_weight_quantizers():
    yield Long

@hookimpl
def lowbit_methods():
    yield Method("long", quantizer="long")
"""
CHOLESKY = "torch.linalg.cholesky(torch.eye(16000))"
PRODUCT = "one = torch.ones(7000, 7000); torch.linalg.multi_dot([one] * 12)"


def start_inside(folder: Path, parent: Path, call: str) -> subprocess.Popen[str]:
    """Start a run and wait until it is in the call."""
    plugin = folder / "long.py"
    plugin.write_text(LONG.format(call=call))
    command = ["quantize", "--method", "long", "--plugin", str(plugin), "--model", str(parent), "-o"]
    process = launch([*command, str(folder / "out")])
    deadline = time.monotonic() + 120
    while not (folder / "inside").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    return process


@pytest.mark.parametrize(
    ("number", "call"),
    [
        (signal.SIGTERM, PRODUCT),
        pytest.param(signal.SIGINT, PRODUCT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, CHOLESKY, marks=pytest.mark.slow),
    ],
    ids=["SIGTERM-product", "SIGINT-product", "SIGTERM-cholesky"],
)
def test_a_signal_during_a_long_call_ends_the_process_in_ten_seconds(
    tmp_path: Path, parent: ModelFolder, number: signal.Signals, call: str
) -> None:
    process = start_inside(tmp_path, parent("llama"), call)
    sent = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    took = time.monotonic() - sent
    assert process.returncode == 128 + number, error
    assert took < 10
    assert "finished work is kept, and the same command continues from there" in error
    assert "Traceback" not in error


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, parent: ModelFolder) -> None:
    process = start_inside(tmp_path, parent("llama"), PRODUCT)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 143, error
    assert time.monotonic() - sent < 3
    assert "second signal" in error


def test_a_fork_of_a_process_keeps_its_signals_to_itself() -> None:
    program = """
import os, signal, time
from lowbit import preemption
with preemption.handling():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    time.sleep(0.5)
    assert not preemption.requested()
print("well")
"""
    variables = {**environment(), "LOWBIT_GRACE_SECONDS": "0.1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=variables, check=False)
    assert done.stdout == "well\n", done.stderr

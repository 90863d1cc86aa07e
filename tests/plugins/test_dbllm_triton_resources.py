"""The kernels compile ahead of time for real GPUs, without spilling and within their shared memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

COMMAND = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"
SHARED_BYTES = 99 * 1024
"""What a program may take on every GPU from compute capability 8.0 on; an A100 has 163 KiB and an H100 227."""


def resources(output: Path, *arguments: str) -> list[dict[str, Any]]:
    # A process of its own: where Triton was imported to interpret, it cannot compile.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(COMMAND), "--markdown", "-o", str(output), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    records: list[dict[str, Any]] = json.loads(output.read_text())
    assert done.stdout.count("\n") == len(records) + 2
    return records


def assert_within_limits(records: list[dict[str, Any]]) -> None:
    assert {record["kernel"] for record in records} == {"gemv", "gemm"}
    assert {record["capability"] for record in records} == {80, 90}
    for record in records:
        assert record["stack_bytes"] == 0, record
        assert 0 < record["registers"] <= 255, record
        assert 0 < record["shared_bytes"] <= SHARED_BYTES, record
        assert record["loop_instructions"] > 0, record


def test_every_configuration_for_float16_fits_without_spills(tmp_path: Path) -> None:
    records = resources(tmp_path / "resources.json", "--activations", "float16")
    assert_within_limits(records)
    assert len(records) >= 30
    few = [record for record in records if record["kernel"] == "gemv" and record["bucket"] == 8]
    # Two bits a weight, one instruction each, and what goes with them; Triton 3.7.1 makes 3.2 of it, 3.9.0 3.7.
    assert min(record["instructions_a_weight"] for record in few) < 4


def test_the_defaults_for_other_types_fit_without_spills(tmp_path: Path) -> None:
    assert_within_limits(resources(tmp_path / "resources.json", "--activations", "bfloat16,float32", "--defaults"))


def test_masks_of_odd_shapes_fit_too(tmp_path: Path) -> None:
    arguments = ("--activations", "float16", "--shape", "1001x1003", "--defaults")
    assert_within_limits(resources(tmp_path / "resources.json", *arguments))


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [32, 64, 128, 4096])
@pytest.mark.parametrize("activations", ["float16", "bfloat16", "float32"])
def test_every_configuration_for_every_type_and_group_fits(tmp_path: Path, activations: str, group_size: int) -> None:
    arguments = ("--activations", activations, "--group_size", str(group_size))
    assert_within_limits(resources(tmp_path / "resources.json", *arguments))

"""Memory of quantization is bounded by a few blocks, not by the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_peak_memory_stays_near_a_few_blocks(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(__file__).with_name("streaming_memory.py")), str(tmp_path)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout[done.stdout.index("{") :])
    model = 4 * measured["parameters"]
    block = 4 * measured["block_weights"]
    growth = measured["peak_bytes"] - measured["imported_bytes"]
    assert model > 150_000_000
    assert model == pytest.approx(12 * block, rel=0.05)
    assert 0 < growth < 8 * block

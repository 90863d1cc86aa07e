"""Runs the products of the Triton kernels under Triton's interpreter, in a process that sets it before the import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

PRODUCTS = Path(__file__).with_name("test_dbllm_triton_products.py")


def test_all_products_are_right_under_the_interpreter() -> None:
    # The other process is no worker of this one, whatever runs this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(PRODUCTS)]
    done = subprocess.run(
        command, env=environment, cwd=PRODUCTS.parents[2], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 150

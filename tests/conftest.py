"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; one thread each is faster than all of them competing.
    os.environ["OMP_NUM_THREADS"] = "1"

# A shell starts background jobs with an ignored SIGINT, which the programs under test would
# inherit and, as they should, go on ignoring.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines that run tests are shared; how long an example takes says nothing there.
settings.register_profile("lowbit", deadline=None)
settings.load_profile("lowbit")

pytest_plugins = ["small_models"]

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("LOWBIT_TEST_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "models").is_dir():
        pytest.skip("real models and data are absent: set LOWBIT_TEST_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def english(shared: Path) -> Path:
    """A real 5-million-parameter LLaMA in float16."""
    return shared / "models" / "english5m"


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A real 260-thousand-parameter LLaMA in float32, whose widths no common group size divides."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def mirror(shared: Path) -> Path:
    """A local mirror of hub data sets."""
    return shared / "data" / "hub"

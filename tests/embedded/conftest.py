"""The generator of the small world, imported from benchmarks/ for the length of one test module."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

GENERATOR = Path(__file__).parents[2] / "benchmarks" / "embedded_model"


@pytest.fixture(scope="module")
def generator() -> Iterator[SimpleNamespace]:
    """The generator's modules; their plain names (`data`, `world`, ...) are forgotten afterwards."""
    sys.path.insert(0, str(GENERATOR))
    names = ("world", "documents", "choices", "data", "overlap")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(GENERATOR))
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == GENERATOR:
            del sys.modules[name]

"""The benchmarks, which are scripts, as modules."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_module(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The benchmark that the test module names in `BENCHMARK`."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module(request.module.BENCHMARK)
    sys.path.remove(str(BENCHMARKS))
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]

"""Measures configurations of the Triton kernels on the GPU at hand, and remembers the fastest on disk."""

# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import warnings
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lowbit import LowbitError, RowTiles
from lowbit_dbllm.triton_configurations import (
    BUCKETS,
    Configuration,
    Plan,
    candidate_configurations,
    read_configuration,
)
from lowbit_dbllm.triton_launch import product

SOURCES = ("triton_expand.py", "triton_gemv.py", "triton_gemm.py", "triton_launch.py", "triton_configurations.py")
"""Files whose change makes earlier measurements worthless."""


class TuningCache:
    """Fastest configurations by workload, in one JSON file a GPU, Triton version and state of the kernels' source.

    A file that cannot be read is ignored with a warning, one that cannot be written likewise: only time is lost.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, key: str) -> Plan | None:
        """Return what was found fastest for a workload, `None` if nothing was."""
        entry = self._entries().get(key)
        if entry is None:
            return None
        try:
            return {int(bucket): read_configuration(int(bucket), values) for bucket, values in entry.items()}
        except (TypeError, ValueError, AttributeError) as error:
            self._warn("has an entry that is no configuration", error)
            return None

    def write(self, key: str, plan: Plan) -> None:
        """Remember what was found fastest for a workload; other processes' entries are kept."""
        entries = self._entries()
        entries[key] = {str(bucket): asdict(configuration) for bucket, configuration in plan.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.stem, suffix=".tmp")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(entries, file, indent=1, sort_keys=True)
            Path(name).replace(self.path)
        except OSError as error:
            self._warn("cannot be written", error)

    def _entries(self) -> dict[str, dict[str, dict[str, int]]]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(entries, dict):
                raise ValueError(f"expected an object, got {type(entries).__name__}")
            return entries
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            self._warn("cannot be read and is ignored", error)
            return {}

    def _warn(self, trouble: str, error: Exception) -> None:
        warnings.warn(f"the kernel tuning cache {self.path} {trouble}: {error}", stacklevel=3)


def cache_path(gpu: str, triton_version: str) -> Path:
    """Return the tuning file of a GPU under `LOWBIT_CACHE_DIR`, else under `lowbit` in the user's cache folder."""
    chosen = os.environ.get("LOWBIT_CACHE_DIR")
    folder = Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lowbit").expanduser()
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-").lower()
    return folder / "kernels" / f"dual-binary-{name}-triton-{triton_version}-{_source_hash()}.json"


def workload_key(tiles: RowTiles, dtype: torch.dtype) -> str:
    """Name a weight's shape and the dtypes, everything that the best configuration depends on within one GPU."""
    names = [str(kind).removeprefix("torch.") for kind in (tiles.scale_dtype, dtype)]
    return f"{tiles.rows}x{tiles.columns} group {tiles.group_size} {names[0]} scales {names[1]} activations"


def tuned_plan(tiles: RowTiles, dtype: torch.dtype, tuning_cache: TuningCache | None = None) -> Plan:
    """Return the fastest configurations for a weight on its GPU, measuring them if nobody has yet.

    While a CUDA graph is captured nothing is measured: an unknown workload then gets an empty plan, the defaults.

    Raises:
        LowbitError: No configuration of some bucket can run.
    """
    import triton

    device = tiles.words.device
    found = tuning_cache or TuningCache(cache_path(torch.cuda.get_device_name(device), triton.__version__))
    key = workload_key(tiles, dtype)
    plan = found.read(key)
    if plan is None and torch.cuda.is_current_stream_capturing():
        return {}
    if plan is None:
        plan = {bucket: _fastest(tiles, dtype, bucket) for bucket in BUCKETS}
        found.write(key, plan)
    return plan


def _fastest(tiles: RowTiles, dtype: torch.dtype, bucket: int) -> Configuration:
    x = torch.randn(bucket, tiles.columns, device=tiles.words.device, dtype=torch.float32).to(dtype)
    times: dict[Configuration, float] = {}
    failures = []
    for configuration in candidate_configurations(tiles, bucket, dtype == torch.float32):
        try:
            times[configuration] = _milliseconds(x, tiles, configuration)
        except Exception as error:  # out of registers or shared memory on a smaller GPU, or a compiler's error
            failures.append(f"{configuration}: {type(error).__name__}: {error}")
    if not times:
        raise LowbitError(f"no configuration of the Triton kernel runs for {bucket} rows: {'; '.join(failures)}")
    return min(times, key=times.__getitem__)


def _milliseconds(x: Tensor, tiles: RowTiles, configuration: Configuration) -> float:
    """Return the median time of a product; the cache of the GPU is cleared before each."""
    from triton.testing import do_bench

    return float(do_bench(lambda: product(x, tiles, None, configuration), warmup=5, rep=40, return_mode="median"))


@cache
def _source_hash() -> str:
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in SOURCES)).hexdigest()[:12]

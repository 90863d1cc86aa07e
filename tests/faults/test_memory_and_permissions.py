"""A memory limit, and a directory that cannot be written: one clear error, and the same command succeeds afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from dense_plugin import dense_plugin
from distillation.small_training import tokens_file
from faults.conftest import environment
from faults.phases import hashes
from small_models import ModelFolder, quantize

from lowbit.errors import LowbitError
from lowbit.memory_errors import memory_errors_told

# The limit is set when the second block begins, a little above what the process has by then.
HUNGRY = dense_plugin(
    "hungry",
    """
    if Hungry.weights > 10 and pathlib.Path(__file__).with_name("limit").exists():
        has = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + 2**26, resource.RLIM_INFINITY))
        torch.ones(2**28)
    """,
    "pathlib, resource, torch",
)


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "lowbit.cli.main", *command]
    return subprocess.run(whole, capture_output=True, text=True, env=environment(), check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
def test_a_memory_limit_is_one_clear_error_after_which_the_run_continues(tmp_path: Path, parent: ModelFolder) -> None:
    plugin = tmp_path / "hungry.py"
    plugin.write_text(HUNGRY)
    command = ["quantize", "--method", "hungry", "--plugin", str(plugin), "--model", str(parent("llama")), "-o"]
    (tmp_path / "limit").touch()
    failed = run([*command, str(tmp_path / "out")])
    assert failed.returncode == 1, failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("lowbit: error: ")]
    assert "memory did not suffice" in line and "--dry_run" in line
    assert "Traceback" not in failed.stderr
    assert (tmp_path / "out.partial" / "block-00000.safetensors").exists()
    (tmp_path / "limit").unlink()
    done = run([*command, str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    assert "1 of 3 blocks were finished before" in done.stderr or "finished before" in done.stderr
    assert run([*command, str(tmp_path / "whole")]).returncode == 0
    expected = {name.removeprefix("whole/"): sha256 for name, sha256 in hashes(tmp_path / "whole").items()}
    assert {name.removeprefix("out/"): sha256 for name, sha256 in hashes(tmp_path / "out").items()} == expected


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=["python", "cuda", "torch", "system"],
)
def test_every_kind_of_memory_error_is_told_alike(error: Exception) -> None:
    with pytest.raises(LowbitError, match="memory did not suffice"), memory_errors_told():
        raise error


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match="no such thing"), memory_errors_told():
        raise ValueError("no such thing")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """An empty directory that nobody can write to, root included."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        if os.geteuid() == 0:
            pytest.skip("file systems cannot be mounted here, and modes do not hold root back")
        folder.chmod(0o555)
        yield folder
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("work", ["quantize", "bench", "generate"])
def test_a_directory_that_cannot_be_written_is_refused_before_any_work(read_only: Path, work: str) -> None:
    commands = {
        "quantize": ["quantize", "--method", "rtn", "-o", str(read_only / "out")],
        "bench": ["bench", "--method", "rtn", "--limit", "3", "-o", str(read_only)],
        "generate": ["generate", "--n_samples", "2", "--seq_len", "4", "-o", str(read_only / "out.npz")],
    }
    refused = run(commands[work])
    assert refused.returncode == 1, refused.stderr
    assert "cannot be written" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    assert "evaluating" not in refused.stderr and "block" not in refused.stderr
    assert list(read_only.iterdir()) == []


def test_saving_by_the_clock_changes_neither_bytes_nor_identity(tmp_path: Path, parent: ModelFolder) -> None:
    from small_models import make_recipe

    made, identities = [], set()
    for number, minutes in enumerate((10.0, 1e-6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        parts = {
            "reconstruction": {"steps": 3, "batch_size": 4, "checkpoint_minutes": minutes},
            "distillation": {"steps": 3, "batch_size": 4, "held_out": 2, "checkpoint_minutes": minutes},
            "calibration": {"source": str(tokens_file(tmp_path))},
            "training_data": {"source": "calibration"},
            "quantizer": {"grid_candidates": 4, "iterations": 2},
        }
        quantize(parent("llama"), folder / "out", "dbllm-ptq", **parts)
        made.append(hashes(folder / "out"))
        recipe = make_recipe(parent("llama"), "dbllm-ptq", **parts)
        identities.add((recipe.sha256(), json.dumps(recipe.checkpoint_part(), sort_keys=True)))
        assert recipe.to_dict()["distillation"]["checkpoint_minutes"] == minutes
    assert made[0] == made[1]
    assert len(identities) == 1

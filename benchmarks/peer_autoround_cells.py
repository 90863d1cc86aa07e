"""One cell of auto-round in the comparison with it: its environment, its making, and its evaluation by lowbit."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods_cells import CELLS, PARENT, Cell, Job, Settings, read_cell, recipe_of, signature_of

from lowbit.calibration import CalibrationTokens
from lowbit.durable import make_directory, write_json, write_whole
from lowbit.embedded import task_configs
from lowbit.errors import LowbitError
from lowbit.models.streamed import StreamedModel
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.identity import calibration_record
from lowbit.pipeline.load import load_tokenizer
from lowbit.pipeline.prepare import calibration_tokens, model_folder
from lowbit.recipe import Recipe

REPORTS = "reports"
WORKER = Path(__file__).with_name("peer_autoround_worker.py")
PEERS: dict[str, dict[str, Any]] = {
    "auto-round": {},
    "auto-round-asym": {"sym": False},
    "auto-round-fp32": {"amp": False},
    "auto-round-asym-fp32": {"sym": False, "amp": False},
}
"""Settings that differ from auto-round's defaults, by the name of the row."""


def requirements() -> dict[str, str]:
    """Return the packages that the environment must have: auto-round, and what it computes with as lowbit does."""
    shared = {name: importlib.metadata.version(name).partition("+")[0] for name in ("torch", "transformers")}
    return {"auto-round": "0.16.1", **shared}


def prepare_environment(folder: Path) -> Path:
    """Return the Python of auto-round's environment; what is missing is made and installed first.

    Args:
        folder: Of the virtual environment.

    Raises:
        LowbitError: Something else is in the folder, or pip failed.
    """
    python = folder.absolute() / "bin" / "python"
    if not (folder / "pyvenv.cfg").is_file():
        if folder.exists() and any(folder.iterdir()):
            raise LowbitError(f"{folder} is neither empty nor a virtual environment; choose another --environment")
        _run([sys.executable, "-m", "venv", str(folder)])
    wanted = requirements()
    if installed_versions(python, list(wanted)) != wanted:
        packages = [f"{name}=={version}" for name, version in wanted.items()]
        _run([str(python), "-I", "-m", "pip", "install", "--quiet", *packages])
        if (found := installed_versions(python, list(wanted))) != wanted:
            raise LowbitError(f"{folder} has {found} after pip installed {wanted}")
    return python


def installed_versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the public versions of those packages that an environment has."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name']: d.version.partition('+')[0] for d in m.distributions()}\n"
        "print(json.dumps({name: have[name] for name in sys.argv[1:] if name in have}))"
    )
    versions: dict[str, str] = json.loads(_run([str(python), "-I", "-c", code, *packages]))
    return versions


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise LowbitError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise LowbitError(f"{' '.join(command[:5])} failed: {_last_line(done.stderr)}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def plan_peers(models: Sequence[str | None], peers: Sequence[str], group: int, seeds: Sequence[int]) -> Iterator[Job]:
    """Yield auto-round's jobs, all with the first seed before any with the second.

    Raises:
        LowbitError: There is no such form of auto-round.
    """
    if unknown := sorted(set(peers) - set(PEERS)):
        raise LowbitError(f"unknown peer {', '.join(unknown)}; there are {', '.join(PEERS)}")
    for seed in seeds:
        for model in models:
            yield from (Job(model, peer, group, seed) for peer in peers)


def peer_settings(job: Job, iterations: int) -> dict[str, Any]:
    """Return the arguments of `auto_round.AutoRound` that are given, beside the model and the tokens."""
    return {
        "scheme": "W2A16",
        "group_size": job.group,
        "iters": iterations,
        "seed": job.seed,
        "device_map": "cpu",
        **PEERS[job.method],
    }


def judged_recipe(job: Job, settings: Settings) -> Recipe:
    """Return the recipe that the parent is judged by, which is what lowbit's methods are judged by too."""
    return recipe_of(replace(job, method=PARENT, group=None), settings)


def peer_signature(job: Job, settings: Settings, iterations: int) -> dict[str, Any]:
    """Return what a cell of auto-round depends on, without paths."""
    parent = replace(job, method=PARENT, group=None)
    return {
        **signature_of(parent, recipe_of(parent, settings)),
        "peer": {
            "requirements": requirements(),
            "settings": peer_settings(job, iterations),
            "worker_sha256": hashlib.sha256(WORKER.read_bytes()).hexdigest(),
        },
    }


def finished_peer(job: Job, settings: Settings, iterations: int, folder: Path) -> Cell | None:
    """Return auto-round's cell if it is there, without an error, and depends on what it would depend on now."""
    file = folder / CELLS / job.file_name
    cell = read_cell(file) if file.is_file() else None
    if cell is None or cell.error is not None:
        return None
    return cell if cell.signature == json.loads(json.dumps(peer_signature(job, settings, iterations))) else None


def run_peer(job: Job, settings: Settings, iterations: int, python: Path, folder: Path) -> Cell:
    """Make a cell of auto-round and write it; an error becomes part of it.

    Args:
        job: Model, form of auto-round, group size and seed.
        settings: Hold for all cells.
        iterations: Of auto-round, for each block.
        python: Of auto-round's environment.
        folder: Keeps cells and reports.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    signature = peer_signature(job, settings, iterations)
    cell = Cell(job.model_name, job.method, job.group, job.seed, signature, date)
    try:
        cell = _measured(cell, job, settings, python, folder)
    except Exception as error:
        cell = replace(cell, error=f"{type(error).__name__}: {error}")
    make_directory(folder / CELLS)
    write_json(folder / CELLS / job.file_name, asdict(cell))
    return cell


def _measured(cell: Cell, job: Job, settings: Settings, python: Path, folder: Path) -> Cell:
    recipe = judged_recipe(job, settings)
    tokens = tokens_of(recipe)
    make_directory(folder / REPORTS)
    with tempfile.TemporaryDirectory(prefix="lowbit_peer_") as work:
        report = quantize(python, recipe, tokens, cell.signature["peer"]["settings"], Path(work))
        write_json(folder / REPORTS / job.file_name, report)
        judged = judge(Path(work) / "model", recipe)
    bits = report["bits"]
    return replace(
        cell,
        **judged,
        bits=(float(bits["nominal"]), bits["linear"], bits["file"]),
        seconds=report["seconds"],
        calibration=calibration_record(tokens, job.seed),
    )


def tokens_of(recipe: Recipe) -> CalibrationTokens:
    """Return the tokens that lowbit's methods are calibrated on by the same recipe."""
    folder = model_folder(recipe)
    source = StreamedModel(folder, recipe.model.trust_remote_code, "cpu")
    return calibration_tokens(recipe, source, load_tokenizer(folder, recipe.model.trust_remote_code))


def quantize(
    python: Path, recipe: Recipe, tokens: CalibrationTokens, settings: dict[str, Any], work: Path
) -> dict[str, Any]:
    """Quantize a recipe's model in auto-round's environment, and return the report; `work` gets the checkpoints.

    Raises:
        LowbitError: auto-round failed.
    """
    token_file = work / "tokens.npz"
    write_whole(token_file, lambda path: _save_tokens(path, tokens.tokens))
    command = [python, "-I", WORKER, model_folder(recipe), token_file, work, json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise LowbitError(f"auto-round failed: {_last_line(done.stderr)}")
    report: dict[str, Any] = json.loads((work / "report.json").read_text(encoding="utf-8"))
    return report


def _save_tokens(path: Path, tokens: torch.Tensor) -> None:
    with path.open("wb") as file:
        np.savez(file, tokens=tokens.numpy())


def judge(checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """Evaluate a plain checkpoint as the recipe's own model is evaluated, and return those fields of a cell.

    Raises:
        LowbitError: It cannot be loaded or evaluated.
    """
    model = recipe.model.model_copy(update={"path": str(checkpoint)})
    with tempfile.TemporaryDirectory(prefix="lowbit_judge_") as work:
        options = BenchOptions(Path(work), extra_tasks=task_configs())
        [row] = bench([recipe.model_copy(update={"model": model})], options)
        if row.error is not None:
            raise LowbitError(row.error)
        [file] = (Path(work) / checkpoint.name).glob("*.json")
        counts = json.loads(file.read_text(encoding="utf-8"))["n-samples"]
    [(task, metric)] = row.metrics.items()
    return {
        "task": task,
        "metric": metric.name,
        "perplexity": metric.value if math.isfinite(metric.value) else None,
        "evaluated": counts[task]["effective"],
    }

"""Quantizes in one or several processes, forks of this one, so that torch is imported once for all of them.

Argument: a JSON file with a list of scenarios. Each has a name, the parent's folder, a method, flags of the recipe, and
attempts that run one after the other into the same output: the number of processes, which of them is killed and at the
how-many-th call of which function, and environment variables. Prints for each attempt the exit status of every process,
and how long the others outlived the first that ended badly.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_models import make_recipe

from lowbit.contracts import QuantizedLayer
from lowbit.distillation.processes import is_main_process, part_from_others
from lowbit.pipeline.quantize import HookEvents, quantize_to

PATIENCE = 30.0
"""Seconds that the others may take to end after one process ended badly."""

KILLED_AT = {
    "entering": "lowbit.modeling.activations._Writer.append",
    "complete": "lowbit.modeling.activations._Writer.require_complete",
    "reducing": "lowbit.quantization.ranks.DistributedRanks.sum",
    "sharing": "lowbit.quantization.ranks.DistributedRanks.broadcast",
    "committing": "lowbit.modeling.journal.Journal.commit",
    "tensors": "lowbit.modeling.journal.write_tensors",
    "dropping": "lowbit.modeling.activations.StoredActivations.drop",
    "opening": "lowbit.modeling.journal.Journal.open",
    "checkpoint": "lowbit.pipeline.make_checkpoint.write_checkpoint",
}


class Listener(HookEvents):
    """Writes down the weights that it hears of."""

    file: Path

    def layer_quantized(self, layer: QuantizedLayer) -> None:
        with self.file.open("a") as file:
            print(layer.block, layer.number, layer.layers, layer.name, layer.seconds >= 0, file=file)


def die_at(place: str, call: int) -> None:
    """Let this process be killed at a call of a function, counted from 1."""
    path, name = KILLED_AT[place].rsplit(".", 1)
    module, _, owner = path.rpartition(".")
    try:
        holder: Any = importlib.import_module(path)
    except ModuleNotFoundError:
        holder = getattr(importlib.import_module(module), owner)
    function: Callable[..., Any] = getattr(holder, name)
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(holder, name, counted)


def start(scenario: dict[str, Any], attempt: dict[str, Any], output: Path, rank: int, port: int) -> int:
    """Fork one process; returns its process id."""
    child = os.fork()
    if child:
        return child
    log = os.open(output.with_name(f"{output.name}.log-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    size = attempt["size"]
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    if size > 1:
        os.environ.update({key: str(value) for key, value in place.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    os.environ.update(attempt.get("environment", {}))
    killed = attempt.get("killed")
    if killed is not None and killed["rank"] == rank:
        die_at(killed["at"], killed["call"])
    try:
        recipe = make_recipe(Path(scenario["parent"]), scenario["method"], **scenario["flags"])
        events = Listener(recipe)
        events.file = output.with_name(f"{output.name}.heard-{rank}")
        quantize_to(recipe, output, events)
        part_from_others()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}" if is_main_process() else type(error).__name__, flush=True)
        os._exit(1)
    os._exit(0)


def run(scenario: dict[str, Any], attempt: dict[str, Any], output: Path) -> dict[str, Any]:
    """Run every process of an attempt to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {start(scenario, attempt, output, rank, port): rank for rank in range(attempt["size"])}
    statuses: dict[int, int] = {}
    failed_at: float | None = None
    outlived = 0.0
    while len(statuses) < len(ranks):
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            statuses[ranks[child]] = os.waitstatus_to_exitcode(status)
            if failed_at is not None:
                outlived = time.monotonic() - failed_at
            elif statuses[ranks[child]] != 0:
                failed_at = time.monotonic()
            continue
        if failed_at is not None and time.monotonic() - failed_at > PATIENCE:
            for left, rank in ranks.items():
                if rank not in statuses:
                    os.kill(left, signal.SIGKILL)
        time.sleep(0.005)
    return {"statuses": [statuses[rank] for rank in sorted(statuses)], "outlived": outlived}


def main(scenarios: list[dict[str, Any]], root: Path) -> None:
    """Run everything; the first attempt loads what all forks need."""
    torch.set_num_threads(1)
    first = scenarios[0]
    recipe = make_recipe(Path(first["parent"]), first["method"], **first["flags"])
    quantize_to(recipe, root / "imports", HookEvents(recipe))
    gc.freeze()
    found = {}
    for scenario in scenarios:
        output = root / scenario["name"]
        found[scenario["name"]] = [run(scenario, attempt, output) for attempt in scenario["attempts"]]
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).parent)

"""Forks several `lowbit bench` runs into one directory and kills some; a program for a process of its own.

Each run is a fork of this process, so that a kill falls into the run and not into the import of torch. Prints one JSON
object: for each start its number, its exit status, and what it wrote to its standard error.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from lowbit.cli.main import main as lowbit_main


def arguments(output: Path, number: int, methods: str) -> list[str]:
    """Return a command line; the folder of further tasks tells runs apart that share checkpoints and parents."""
    folder = output.parent / f"tasks-{number}"
    folder.mkdir(exist_ok=True)
    command = ["bench", "--method", methods, "--limit", "5", "--log_samples", "--include_path", str(folder)]
    return [*command, "--tasks", "smallworld_choice", "-o", str(output)]


def start(output: Path, number: int, methods: str, attempt: int) -> int:
    """Start a run in a fork; returns its process id."""
    child = os.fork()
    if child:
        return child
    log = os.open(output.parent / f"log-{number}-{attempt}", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        lowbit_main(arguments(output, number, methods))
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(99)


def main(root: Path, runs: int, kills: int, methods: str) -> None:
    """Run, kill, and run again what was killed."""
    torch.set_num_threads(1)
    # What is imported on the way is there for every fork then.
    begun = time.monotonic()
    try:
        lowbit_main(arguments(root / "imports", runs, methods))
    except SystemExit as end:
        assert not end.code, end.code
    length = time.monotonic() - begun
    gc.freeze()
    output = root / "results"
    drawn = random.Random()
    children = {number: start(output, number, methods, 0) for number in range(runs)}
    doomed = drawn.sample(range(runs), kills)
    moments = sorted((drawn.uniform(0.05, 0.6) * length, number) for number in doomed)
    begun = time.monotonic()
    for moment, number in moments:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        os.kill(children[number], signal.SIGKILL)
    first = {number: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for number, child in children.items()}
    again = {number: start(output, number, methods, 1) for number, status in first.items() if status != 0}
    second = {number: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for number, child in again.items()}
    logs = {log.name: log.read_text(errors="replace") for log in sorted(root.glob("log-*"))}
    print(json.dumps({"first": first, "second": second, "moments": moments, "length": length, "logs": logs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

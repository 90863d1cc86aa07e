"""Runs whose disk is full, once at each kind of write: a program for a process of its own, which prints JSON.

Two ways: a limit on the size of a file (`RLIMIT_FSIZE`), which cuts any writer off in the middle, compiled ones too;
and a call that gives a file its name, or opens it, that answers that no space is left.

Arguments: parent, folder, tokens, seed, number of faults, phases by comma.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.faulty_run import Bench, Calls, finish, start
from faults.phases import Phase

LIMITS = (0, 40, 200, 700, 1500, 4000, 9000, 15000, 30000)


def limited(size: int) -> Callable[[], None]:
    """Return what limits the size of files of this process."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def refuse() -> None:
    """Answer as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


def logged_in_pipe(command: list[str], prepare: Callable[[], None]) -> tuple[int, str]:
    """Run a command line, and return its status and output, which no limit on the size of files cuts off."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 2**20)
    status = finish(start(command, writing, prepare))
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as output:
        return status, output.read()


def trial(bench: Bench, phase: Phase, prepare: Callable[[], None], kind: str, name: str) -> dict[str, Any]:
    """Run on a full disk, look at what it left, and run again with space."""
    folder = bench.folder(name)
    status, log = logged_in_pipe(bench.command(phase, folder), prepare)
    left = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    made = phase.made(folder) if (folder / phase.output).exists() else {}
    state = phase.state(folder)
    log_again = bench.root / f"{name}-again.log"
    again = bench.again(phase, folder, log_again)
    told = {
        "phase": phase.name,
        "kind": kind,
        "status": status,
        "log": log,
        "left": left,
        "wrong": [
            name
            for name, sha256 in made.items()
            # A journal of unfinished work says by its name what it is.
            if ".partial/" not in name and bench.expected[phase.name].get(name) != sha256
        ],
        "state": state,
        "again": again,
        "log_again": log_again.read_text(),
        "identical": again == 0 and phase.made(folder) == bench.expected[phase.name],
    }
    shutil.rmtree(folder)
    return told


def main(parent: Path, root: Path, tokens: Path, seed: int, faults: int, phases: list[str]) -> None:
    """Print every trial."""
    bench = Bench(root, parent, tokens, phases)
    drawn = random.Random(seed)
    trials = []
    for turn in range(faults):
        phase, name = bench.phases[turn % len(bench.phases)], f"trial-{turn}"
        if drawn.random() < 0.5:
            size = drawn.choice(LIMITS)
            trials.append(trial(bench, phase, limited(size), f"files of {size} bytes", name))
        else:
            at = drawn.randrange(bench.calls[phase.name])
            trials.append(trial(bench, phase, Calls(at, False, refuse).install, f"no space at call {at}", name))
    print(json.dumps({"trials": trials}))


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:4]]
    main(*places, int(sys.argv[4]), int(sys.argv[5]), sys.argv[6].split(","))

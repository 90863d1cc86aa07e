"""Ends runs at drawn moments and continues them; a program for a process of its own, which prints one JSON object.

Arguments: parent, folder, tokens, seed, number of faults, phases by comma, signal (9, 15 or 2).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from faults.faulty_run import Bench, Calls, finish, start
from faults.phases import Phase


def fault(bench: Bench, phase: Phase, drawn: random.Random, number: int, folder: Path) -> dict[str, Any]:
    """Run a phase with a signal at a drawn moment, and return what came of it."""
    kind, log = signal.Signals(number), folder.with_suffix(".log")
    by_clock = drawn.random() < 0.3
    at, after = drawn.randrange(bench.calls[phase.name]), drawn.random() < 0.5
    moment = drawn.uniform(0, 1) * bench.seconds[phase.name]
    sent = folder.with_suffix(".sent")

    def act() -> None:
        sent.write_text(str(time.time()))
        os.kill(os.getpid(), kind)

    calls = Calls(-1 if by_clock else at, after, act)
    child = start(bench.command(phase, folder), log, calls.install)
    if by_clock:
        time.sleep(moment)
        sent.write_text(str(time.time()))
        os.kill(child, kind)
    status = finish(child)
    took = time.time() - float(sent.read_text()) if sent.exists() else None
    moment_told = f"after {moment:.3f} s" if by_clock else f"{'after' if after else 'before'} call {at}"
    return {"phase": phase.name, "moment": moment_told, "status": status, "seconds": took, "log": log.read_text()}


def trial(bench: Bench, phase: Phase, drawn: random.Random, number: int, name: str) -> dict[str, Any]:
    """End a run, look at what it left, continue it, and look again."""
    folder = bench.folder(name)
    told = fault(bench, phase, drawn, number, folder)
    left = phase.state(folder)
    seen = bench.root / f"{name}.seen"
    log = bench.root / f"{name}-again.log"
    again = bench.again(phase, folder, log, seen)
    told |= {
        "left": left,
        "again": again,
        "seen": json.loads(seen.read_text()) if seen.exists() else {},
        "log_again": log.read_text(),
        "identical": again == 0 and phase.made(folder) == bench.expected[phase.name],
        "after": sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()),
        "state": phase.state(folder),
    }
    shutil.rmtree(folder)
    return told


def main(parent: Path, root: Path, tokens: Path, seed: int, faults: int, phases: list[str], number: int) -> None:
    """Print every trial."""
    bench = Bench(root, parent, tokens, phases)
    drawn = random.Random(seed)
    trials = [
        trial(bench, bench.phases[turn % len(bench.phases)], drawn, number, f"trial-{turn}") for turn in range(faults)
    ]
    print(json.dumps({"seconds": bench.seconds, "calls": bench.calls, "trials": trials}))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    places = [Path(argument) for argument in arguments[:3]]
    main(*places, int(arguments[3]), int(arguments[4]), arguments[5].split(","), int(arguments[6]))

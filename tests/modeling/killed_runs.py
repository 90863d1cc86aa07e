"""Kills quantizations at random moments and finishes them; a program for a process of its own.

Each run is a fork of this process, so that a kill falls into the run and not into the import of torch.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from small_models import quantize

METHOD = "hessian-rounding"


def run(parent: Path, output: Path, tokens: Path) -> None:
    """Quantize in this process."""
    quantize(parent, output, METHOD, calibration={"source": str(tokens), "n_samples": 6, "seq_len": 32})


def run_child(parent: Path, output: Path, tokens: Path) -> int:
    """Start a quantization in a fork; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        run(parent, output, tokens)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def finish(child: int) -> int:
    """Wait for a child; returns its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def main(parent: Path, root: Path, tokens: Path, kills: int) -> None:
    """Print for each kill where it fell and what came of the run."""
    torch.set_num_threads(1)
    # What is imported on the way is there for every fork then, and kills fall into work instead of imports.
    run(parent, root / "imports", tokens)
    gc.freeze()  # A collection in a fork would copy every page of what was imported.
    started = time.monotonic()
    assert finish(run_child(parent, root / "undisturbed", tokens)) == 0
    length = time.monotonic() - started
    expected = hashes(root / "undisturbed")
    drawn = random.Random(7)
    trials = []
    for trial in range(3 * kills):
        folder = root / f"trial-{trial}"
        folder.mkdir()
        child = run_child(parent, folder / "out", tokens)
        time.sleep(length * drawn.uniform(0.1, 1))
        os.kill(child, signal.SIGKILL)
        if finish(child) != -signal.SIGKILL:
            # It ended before it was killed: the first run was slower than this one.
            length *= 0.8
            continue
        left = sorted(file.name for file in folder.rglob("*"))
        finished = finish(run_child(parent, folder / "out", tokens))
        trials.append(
            {
                "left": left,
                "status": finished,
                "identical": hashes(folder / "out") == expected,
                "after": sorted(file.name for file in folder.iterdir()),
            }
        )
        shutil.rmtree(folder)
        if len(trials) == kills:
            break
    print(json.dumps({"files": sorted(expected), "trials": trials}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

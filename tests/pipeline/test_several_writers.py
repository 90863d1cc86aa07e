"""Several `lowbit bench` processes that write to one directory, some of which are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lowbit.results.store import StoredResult, read_results

PROGRAM = Path(__file__).with_name("several_writers_program.py")
METHODS = "rtn,dbllm-ptq"
EXPECTED = {"parent": 1, "rtn": 1, "dbllm-ptq": 1}


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def run_of(result: StoredResult) -> int:
    """Which run wrote a result: runs have nothing but the folder of further tasks to tell them apart."""
    return int(result.lowbit["recipe"]["eval"]["include_path"].rpartition("-")[2])


def check_directory(folder: Path, finished: Counter[int], started: Counter[int]) -> None:
    """Every finished run is there with all it measured, nothing is broken, and equal runs have equal numbers."""
    found = read_results(folder)
    assert found.unreadable == ()
    kinds = Counter((run_of(result), result.method) for result in found.results)
    for number, times in started.items():
        for method in EXPECTED:
            assert finished[number] <= kinds[number, method] <= times, (number, method, kinds)
    for result in found.results:
        count = result.harness["n-samples"]["smallworld_choice"]["effective"]
        samples = [json.loads(line) for line in result.samples["smallworld_choice"].read_text().splitlines()]
        assert [sample["doc_id"] for sample in samples] == list(range(count))
        values = [sample["acc"] for sample in samples]
        reported = result.harness["results"]["smallworld_choice"]["acc,none"]
        assert sum(values) / count == pytest.approx(reported)
    for method in EXPECTED:
        numbers = {json.dumps(r.harness["results"], sort_keys=True) for r in found.results if r.method == method}
        assert len(numbers) == 1, f"{method} has different numbers"
    assert len({result.path for result in found.results}) == len({result.identity for result in found.results})


def check_nothing_left(folder: Path) -> None:
    left = [file for kind in ("*.lock", "*.partial") for file in folder.rglob(kind)]
    assert left == [], "locks and journals of finished checkpoints are removed"


def test_runs_that_share_a_directory_finish_whatever_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), str(tmp_path), "4", "2", METHODS]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    first = {int(number): status for number, status in report["first"].items()}
    second = {int(number): status for number, status in report["second"].items()}
    assert set(first.values()) <= {0, -signal.SIGKILL}, report["logs"]
    assert set(second.values()) <= {0}, report["logs"]
    finished = Counter([*(n for n, status in first.items() if status == 0), *second])
    check_directory(tmp_path / "results", finished, Counter([*first, *second]))
    check_nothing_left(tmp_path / "results")
    waiting = [text.count("waiting for another process that is evaluating") for text in report["logs"].values()]
    assert max(waiting) == 1, "a process that waits says so, and says so once"


def launch(root: Path, number: int, attempt: int) -> subprocess.Popen[bytes]:
    folder = root / f"tasks-{number}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lowbit.cli.main", "bench", "--method", METHODS, "--limit", "5", "--log_samples"]
    command += ["--tasks", "smallworld_choice", "--include_path", str(folder), "-o", str(root / "results")]
    with (root / f"log-{number}-{attempt}").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment())


def ends_of_logs(root: Path) -> dict[str, str]:
    return {log.name: log.read_text()[-1000:] for log in sorted(root.glob("log-*"))}


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(3))
def test_eight_processes_of_which_some_are_killed(tmp_path: Path, trial: int) -> None:
    drawn = random.Random(trial)
    begun = time.monotonic()
    assert launch(tmp_path, 99, 0).wait() == 0, ends_of_logs(tmp_path)
    length = time.monotonic() - begun
    for file in (tmp_path / "results").rglob("*"):
        if file.is_file():
            file.unlink()
    begun = time.monotonic()
    processes = {number: launch(tmp_path, number, 0) for number in range(8)}
    # Eight processes on few cores take longer than one alone.
    slowdown = max(1.0, 8 / (os.cpu_count() or 1))
    moments = sorted((drawn.uniform(0.5, 1.1) * length * slowdown, n) for n in drawn.sample(range(8), 4))
    killed = []
    for moment, number in moments:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        if processes[number].poll() is None:
            processes[number].kill()
            killed.append(number)
    first = {number: process.wait() for number, process in processes.items()}
    assert set(first.values()) <= {0, -signal.SIGKILL}, ends_of_logs(tmp_path)
    finished = Counter(number for number, status in first.items() if status == 0)
    check_directory(tmp_path / "results", finished, Counter(list(first)))
    left = sorted(str(file.relative_to(tmp_path)) for kind in ("*.tmp", "*.lock") for file in tmp_path.rglob(kind))
    print(f"alone {length:.0f} s; killed {killed} after {[round(m) for m, _ in moments]} s; they left {left}")
    again = {number: launch(tmp_path, number, 1) for number, status in first.items() if status != 0}
    second = {number: process.wait() for number, process in again.items()}
    assert set(second.values()) <= {0}, ends_of_logs(tmp_path)
    check_directory(tmp_path / "results", finished + Counter(list(second)), Counter([*first, *second]))
    check_nothing_left(tmp_path / "results")
    count = len(read_results(tmp_path / "results").results)
    print(f"{len(finished)} finished at once, {len(second)} when run again; {count} results, none broken")

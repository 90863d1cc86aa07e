from __future__ import annotations

import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lowbit.durable import one_at_a_time, open_whole, temporary_name, write_text
from lowbit.errors import LowbitError

FORK = multiprocessing.get_context("fork")


def hold(lock: Path, held: Path) -> None:
    with one_at_a_time(lock, "working"):
        held.touch()
        time.sleep(60)


def wait_for(path: Path) -> None:
    for _ in range(1000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not appear")


def test_one_process_waits_for_the_other_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock, inside, most = tmp_path / "lock", [], []

    def work() -> None:
        with one_at_a_time(lock, "counting sheep"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.6)
            inside.pop()

    with caplog.at_level(logging.WARNING):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for another process that is counting sheep (lock {lock})"
    ]


def test_the_lock_of_a_killed_process_does_not_block(tmp_path: Path) -> None:
    lock, held = tmp_path / "lock", tmp_path / "held"
    process = FORK.Process(target=hold, args=(lock, held))
    process.start()
    wait_for(held)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    begun = time.monotonic()
    with one_at_a_time(lock, "working"):
        assert lock.exists()
    assert time.monotonic() - begun < 5


def test_a_lock_that_was_removed_after_the_work_is_made_again(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(2):
        with one_at_a_time(lock, "working"):
            lock.unlink()
    assert not lock.exists()


def test_a_place_that_cannot_be_locked_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LowbitError, match="cannot lock"), one_at_a_time(tmp_path / "file" / "lock", "working"):
        raise AssertionError("never reached")


def test_a_file_system_without_locks_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LowbitError, match="cannot lock"), one_at_a_time(tmp_path / "lock", "working"):
        raise AssertionError("never reached")


def test_temporary_names_differ_also_where_process_numbers_are_equal(tmp_path: Path) -> None:
    names = {temporary_name(tmp_path / "file.json").name for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("file.json.") and name.endswith(".tmp") for name in names)


def test_a_name_that_is_too_long_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240 + ".csv")
    with pytest.raises(LowbitError, match=r"cannot write .*too long"):
        write_text(path, "text")
    with pytest.raises(LowbitError, match=r"cannot write .*too long"), open_whole(path):
        pass

"""SIGTERM and SIGINT: save what can be saved, and be gone within ten seconds.

A signal raises `Interrupted` in the main thread, or, where a section says that it can save (`saving`), waits until that
section asks (`requested`). Python's own handlers run between two steps of the interpreter only. So a thread watches
beside, which hears of a signal also during a long call into compiled code, and ends a process that is still there when
its time is up. That is safe: files are whole or absent, and finished work is in the journal.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

GRACE_VARIABLE = "LOWBIT_GRACE_SECONDS"
GRACE_SECONDS = 8.0
"""How long a process may go on after a signal."""
ONE_SIGNAL_SECONDS = 1.0
"""Launchers, and `timeout`, send a signal to a process and to its group: so soon after each other, they are one."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
KEPT = "finished work is kept, and the same command continues from there"
_STOP = 0
_HANDLED = 128
"""Added to a signal's number by the handler, to tell its byte from the one that the interpreter writes at once."""


class Interrupted(KeyboardInterrupt):
    """The process shall end: by SIGTERM or SIGINT.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.number).name}"


class _State:
    """What this process knows of signals."""

    saving = 0
    number: int | None = None


_state = _State()


def exit_code(number: int | None) -> int:
    """Return what a process exits with after a signal: 143 after SIGTERM, 130 after SIGINT or where none is known."""
    return 128 + (signal.SIGINT if number is None else number)


def requested() -> bool:
    """Say whether a signal came that a saving section has not yet followed."""
    return _state.number is not None


def received() -> int | None:
    """Return the signal that came since handling began, if one did."""
    return _state.number


def stop() -> NoReturn:
    """Stop after saving, as a signal asked of this process, or of another one of the same run.

    Raises:
        Interrupted: Always.
    """
    raise Interrupted(_state.number or signal.SIGTERM)


@contextmanager
def saving() -> Iterator[None]:
    """Let a signal wait while this section is at work: it asks `requested` after each step, saves, and stops.

    Raises:
        Interrupted: A signal came after the last step.
    """
    _state.saving += 1
    try:
        yield
    finally:
        _state.saving -= 1
    if requested() and not _state.saving:
        stop()


@contextmanager
def handling() -> Iterator[None]:
    """Handle signals as this module says; elsewhere than in the main thread, do nothing.

    A signal that was ignored before stays so, as a shell does it with what runs in the background.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.number, _state.saving = None, 0
    watch = _Watch()

    def handle(number: int, frame: FrameType | None) -> None:
        watch.tell(number + _HANDLED)
        _state.number = _state.number or number
        if not _state.saving:
            raise Interrupted(number)

    before: dict[int, Any] = {n: signal.getsignal(n) for n in SIGNALS}
    before = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    fork_guard = _ForkGuard(before)
    for number in before:
        signal.signal(number, handle)
    descriptor = signal.set_wakeup_fd(watch.writing, warn_on_full_buffer=False)
    fork_guard.descriptor = descriptor
    try:
        yield
    finally:
        fork_guard.active = False
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        watch.stop()
        _state.number = None


class _ForkGuard:
    """Gives a fork of this process the handlers that held before, so that its signals are its own.

    Args:
        before: The handlers by signal.
    """

    def __init__(self, before: dict[int, Any]) -> None:
        self._before = before
        self.descriptor = -1
        self.active = True
        os.register_at_fork(after_in_child=self._restore)

    def _restore(self) -> None:
        if not self.active:
            return
        self.active = False
        with suppress(ValueError):  # Forked elsewhere than in a main thread, where no handler runs.
            signal.set_wakeup_fd(self.descriptor)
            for number, handler in self._before.items():
                signal.signal(number, handler)


class _Watch:
    """A thread that ends the process when its time is up after a signal, whatever the main thread does."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self._grace = _grace()
        self._process = os.getpid()
        self._number: int | None = None
        self._since = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="lowbit-preemption", daemon=True)
        self._thread.start()

    def tell(self, byte: int) -> None:
        """Pass a byte to the thread, which a fork of this process has none of."""
        if os.getpid() == self._process:
            with suppress(OSError):  # A full pipe says the same already.
                os.write(self.writing, bytes([byte]))

    def stop(self) -> None:
        """Let the thread end, or, after a signal, go on until the process is gone."""
        self.tell(_STOP)
        if self._number is None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not (self._stopped and self._number is None):
            ready, _, _ = select.select([self._reading], [], [], self._left())
            if ready:
                for byte in os.read(self._reading, 256):
                    self._hear(byte)
            elif self._number is not None:
                if not self._stopped or not threading.main_thread().is_alive():
                    _leave(self._number, f"{self._grace:g} s after {signal.Signals(self._number).name}")
                break  # The command ended; who called it goes on.
        os.close(self._reading)
        os.close(self.writing)

    def _left(self) -> float | None:
        """Return the seconds until the process is ended; `None` where no signal came."""
        if self._number is None:
            return None
        return max(0.0, self._since + self._grace - time.monotonic())

    def _hear(self, byte: int) -> None:
        """Take in what came: the end of the command, a first signal, or another one."""
        if byte == _STOP:
            self._stopped = True
        elif byte % _HANDLED in SIGNALS:
            if self._number is None:
                self._number, self._since = byte % _HANDLED, time.monotonic()
            elif byte < _HANDLED and time.monotonic() - self._since > ONE_SIGNAL_SECONDS and not self._stopped:
                _leave(self._number, "by a second signal")


def _grace() -> float:
    """Return how many seconds a process may go on after a signal."""
    try:
        return max(0.0, float(os.environ.get(GRACE_VARIABLE, GRACE_SECONDS)))
    except ValueError:
        return GRACE_SECONDS


def _leave(number: int, how: str) -> None:
    """End the process at once."""
    try:
        os.write(2, f"\nlowbit: ended {how}, in the middle of its work; {KEPT}\n".encode())
    finally:
        os._exit(exit_code(number))

"""Hostile input by seed: evil values, mutations of trees and bytes, and a guard over what is done with them.

`LOWBIT_FUZZ_SEED` chooses other cases; `LOWBIT_FUZZ_CASES` multiplies their number (a decimal number, 1 by default).
"""

from __future__ import annotations

import copy
import math
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from lowbit.errors import LowbitError

SEED = int(os.environ.get("LOWBIT_FUZZ_SEED", "20240"))
SCALE = float(os.environ.get("LOWBIT_FUZZ_CASES", "1"))
SECONDS = 10.0
"""How long one case may take; the slowest honest one takes a tenth of it."""
EXTRA_BYTES = 2**31
"""Address space that one case may take beyond what the process has; a thread's stack and arena take some of it."""
LONGEST_MESSAGE = 4000
"""Characters of an error; a message that repeats the input is no clear one."""


def nested(depth: int, leaf: Any = 0, mapping: bool = False) -> Any:
    """Return lists, or mappings, inside each other."""
    for _ in range(depth):
        leaf = {"a": leaf} if mapping else [leaf]
    return leaf


EVIL: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, -(2**63), 10**30, 10**12, 1.5, -0.5, 1e308),
    *(math.nan, math.inf, -math.inf, "", " ", "\x00", "../../etc/passwd", "/etc/passwd", "~root", "a" * 10**6),
    *("\x1b[2J", "1e400", "nan", "é\u202e", "%s%n{0}", "__class__", "!!python/object:os.system", "${HOME}"),
    *([], {}, [None], {"": None}, [[]], {"name": {}}, [1, "a", None], {"a": 1}),
    *(nested(200), nested(200, mapping=True)),
)
"""Values that no honest file holds where they are put; each is a JSON value but NaN and the infinities."""

Path_ = tuple[str | int, ...]


def generator(name: str) -> random.Random:
    """Return the random numbers of one test: the same for the same seed, whatever else runs."""
    return random.Random(f"{SEED}:{name}")


def number(count: int) -> int:
    """Return how many cases to run where `count` is the ordinary number."""
    return max(1, round(count * SCALE))


def places(tree: Any, prefix: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every value in a tree of mappings and lists, but the root's."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from places(value, (*prefix, key))


def replaced(tree: Any, path: Path_, change: Callable[[Any, Any], None]) -> Any:
    """Return a copy of a tree in which `change(container, key)` was done at a path."""
    made = copy.deepcopy(tree)
    parent = made
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return made


def at(tree: Any, path: Path_, value: Any) -> Any:
    """Return a copy of a tree with another value at a path."""
    return replaced(tree, path, lambda parent, key: parent.__setitem__(key, value))


def mutated_trees(tree: Any, rng: random.Random, count: int, evil: Sequence[Any] = EVIL) -> Iterator[tuple[str, Any]]:
    """Yield mutations of a tree with what was done: keys deleted, added, renamed, and values replaced or swapped.

    Every key is deleted once where `count` allows; the rest is drawn.
    """
    found = list(places(tree))
    deletions = rng.sample(found, min(len(found), max(1, count // 4)))
    for path in deletions:
        yield f"delete {_shown(path)}", replaced(tree, path, lambda parent, key: parent.__delitem__(key))
    for _ in range(count - len(deletions)):
        path = rng.choice(found)
        kind = rng.randrange(10)
        if kind == 0:
            other = rng.choice(found)
            yield f"{_shown(path)} = {_shown(other)}", at(tree, path, copy.deepcopy(value_at(tree, other)))
        elif kind == 1:
            value = rng.choice(evil)
            yield f"beside {_shown(path)} add {_shown(value)}", replaced(tree, path, _adding(value))
        elif kind == 2:
            swapped = _another_type(value_at(tree, path))
            yield f"{_shown(path)} = {_shown(swapped)}", at(tree, path, swapped)
        else:
            value = rng.choice(evil)
            yield f"{_shown(path)} = {_shown(value)}", at(tree, path, copy.deepcopy(value))


def value_at(tree: Any, path: Path_) -> Any:
    """Return the value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def _adding(value: Any) -> Callable[[Any, Any], None]:
    def change(parent: Any, key: Any) -> None:
        if isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        else:
            parent[f"{key}_extra"] = copy.deepcopy(value)

    return change


def _another_type(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return str(value)
    return list(value) if isinstance(value, dict) else dict(enumerate_keys(value))


def enumerate_keys(values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield list items under their positions as text."""
    return ((str(position), item) for position, item in enumerate(values))


def mutated_bytes(data: bytes, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield mutations of bytes with what was done: flipped, cut, inserted, repeated, overwritten."""
    for _ in range(count):
        start = rng.randrange(len(data) or 1)
        length = min(rng.choice((1, 2, 8, 64, 1024)), len(data) - start)
        kind = rng.randrange(6)
        if kind == 0:
            bit = 1 << rng.randrange(8)
            yield f"flip bit {bit} of byte {start}", data[:start] + bytes([data[start] ^ bit]) + data[start + 1 :]
        elif kind == 1:
            yield f"cut at {start}", data[:start]
        elif kind == 2:
            noise = rng.randbytes(length)
            yield f"insert {length} random bytes at {start}", data[:start] + noise + data[start:]
        elif kind == 3:
            piece = data[start : start + length]
            yield f"repeat {length} bytes at {start}", data[:start] + piece + data[start:]
        elif kind == 4:
            filler = rng.choice((b"\x00", b"\xff", b"[", b'"', b"\xed\xa0\x80", b"\n"))
            changed = data[:start] + (filler * length)[:length] + data[start + length :]
            yield f"overwrite {length} bytes at {start} with {filler!r}", changed
        else:
            yield f"remove {length} bytes at {start}", data[:start] + data[start + length :]


class Failure(AssertionError):
    """What hostile input did that it must not do."""


class TooSlow(BaseException):
    """A case ran into its time limit; no `except Exception` may swallow it."""


@dataclass
class Outcomes:
    """Runs cases one by one and keeps those that failed.

    Args:
        name: Of the test, for the message that says how to repeat it.
        seconds: How long one case may take.
        allowed: The errors that a user may see.
    """

    name: str
    seconds: float = SECONDS
    allowed: tuple[type[BaseException], ...] = (LowbitError, click.ClickException)
    run: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, description: str, action: Callable[[], Any], accept: Callable[[Any], object] | None = None) -> None:
        """Run one case: it is refused by one clear error, or succeeds with what `accept` takes.

        Args:
            description: What was done to the input.
            action: Reads the input.
            accept: Returns a false value or raises for a success that is none; without it, every success is one.
        """
        self.run += 1
        try:
            with guarded(self.seconds):
                result = action()
        except self.allowed as error:
            self.refused += 1
            problem = _unclear(error)
        except TooSlow:
            problem = f"took over {self.seconds} seconds"
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:200]} {_where(error)}"
        else:
            problem = _unaccepted(result, accept)
        if problem:
            self.failures.append(f"[{self.run}] {description[:300]} -> {problem}")

    def finish(self, refusals: int = 1) -> None:
        """Fail with every case that failed, and unless at least some were refused."""
        if self.failures:
            shown = "\n".join(self.failures[:40])
            raise Failure(
                f"{len(self.failures)} of {self.run} cases of {self.name} failed; repeat them with "
                f"LOWBIT_FUZZ_SEED={SEED} LOWBIT_FUZZ_CASES={SCALE:g}:\n{shown}"
            )
        if self.refused < refusals:
            raise Failure(f"{self.name}: {self.refused} of {self.run} cases were refused, expected {refusals} or more")


def _unclear(error: BaseException) -> str:
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if not message.strip():
        return f"{type(error).__name__} without a message"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message)} characters: {message[:100]}"
    if any(character < " " and character not in "\n\t" for character in message):
        return f"a message with control characters: {message[:100]!r}"
    if "Traceback (most recent call last)" in message:
        return "a traceback for a message"
    return ""


def _unaccepted(result: Any, accept: Callable[[Any], object] | None) -> str:
    if accept is None:
        return ""
    try:
        return "" if accept(result) else f"accepted with another meaning: {str(result)[:100]}"
    except Exception as error:
        return f"accepted, then {type(error).__name__}: {str(error)[:200]}"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}lowbit{os.sep}" in frame.filename]
    last = (ours or frames)[-1]
    return f"(at {Path(last.filename).name}:{last.lineno})"


@contextmanager
def guarded(seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> Iterator[None]:
    """Bound the time and the address space of what runs inside, in the main thread."""
    before = signal.signal(signal.SIGALRM, _raise_too_slow)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + extra_bytes, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _raise_too_slow(*_: object) -> None:
    raise TooSlow


def _address_space() -> int:
    """Return the bytes of address space that this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


_WATCHED: list[list[str]] = []
_HOOKED: list[bool] = []


@contextmanager
def watching_opens() -> Iterator[list[str]]:
    """Collect every path that Python opens, and every module that it looks for, while the context is open."""
    if not _HOOKED:
        _HOOKED.append(True)
        sys.addaudithook(_note)
    seen: list[str] = []
    _WATCHED.append(seen)
    try:
        yield seen
    finally:
        _WATCHED.remove(seen)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        told = os.fsdecode(arguments[0])
    elif event in ("import", "pickle.find_class", "os.system", "subprocess.Popen"):
        told = f"{event} {arguments[0]}" if event != "pickle.find_class" else f"{event} {arguments[:2]}"
    else:
        return
    for seen in _WATCHED:
        seen.append(told)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ".".join(map(str, value))
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)} characters)"

"""Times calls in turn, burst by burst, beside the memory bandwidth of the same minutes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

PAUSE_SECONDS = 0.003
"""Before a burst, so that threads which still spin from the burst before have gone to sleep."""
BANDWIDTH_BYTES = {"cpu": 2**28, "cuda": 2**30}
FEWEST_ROUNDS = 3
UNKNOWN_CACHE = 2**25

Call = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds a call.

    Args:
        median: Of all calls.
        lower: A quarter of the calls took less.
        upper: A quarter of the calls took more.
        fastest: Of all calls.
        calls: How many were timed.
    """

    median: float
    lower: float
    upper: float
    fastest: float
    calls: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Return median and quartiles of at least one call."""
        quarters = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        return cls(statistics.median(seconds), quarters[0], quarters[2], min(seconds), len(seconds))


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second that memory gives.

    Args:
        copy: Of a large `copy_`, what is read and what is written counted both.
        read: Of a large `sum`, which only reads.
    """

    copy: float
    read: float


class Clock(Protocol):
    """Times a burst of calls."""

    def burst(self, calls: Sequence[Call], first: int, count: int) -> list[float]:
        """Return the seconds of `count` calls, rotating through `calls` from the one with the index `first`."""


class HostClock:
    """Times each call on the CPU; one goes first untimed, for threads to wake up."""

    def burst(self, calls: Sequence[Call], first: int, count: int) -> list[float]:
        """Return the seconds of each call."""
        time.sleep(PAUSE_SECONDS)
        calls[first % len(calls)]()
        seconds = []
        for number in range(first + 1, first + 1 + count):
            call = calls[number % len(calls)]
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        return seconds


class GraphClock:
    """Times replays of a CUDA graph of all calls, so that what starting a kernel costs the CPU does not count.

    Calls that wait for the device cannot be in a graph; they are timed as they come, one after the other.
    """

    def __init__(self) -> None:
        self._graphs: dict[int, tuple[Sequence[Call], Call]] = {}

    def burst(self, calls: Sequence[Call], first: int, count: int) -> list[float]:
        """Return the mean seconds of a call for each of `count` replays."""
        if id(calls) not in self._graphs:
            self._graphs[id(calls)] = calls, _captured(calls)
        replay = self._graphs[id(calls)][1]
        replay()
        seconds = []
        for _ in range(count):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000 / len(calls))
        return seconds


def _captured(calls: Sequence[Call]) -> Call:
    """Return what makes all calls: the replay of a graph, or the calls themselves where there can be none."""

    def all_calls() -> None:
        for call in calls:
            call()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        all_calls()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            all_calls()
    except RuntimeError:
        return all_calls
    return graph.replay


def clock_for(device: torch.device) -> Clock:
    """Return what times calls on a device."""
    return GraphClock() if device.type == "cuda" else HostClock()


def interleaved(
    contenders: Mapping[str, Sequence[Call]], clock: Clock, rounds: int, calls: int, budget: float
) -> dict[str, Times]:
    """Time all contenders in turn: in each round a burst of each, in an order that shifts from round to round.

    Args:
        contenders: The calls of each, one a copy of its weight.
        clock: Times a burst.
        rounds: Bursts of each.
        calls: Calls a burst.
        budget: Seconds for one contender; a slow one gets shorter bursts, and three rounds at least.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    plans = {name: _plan(made, clock, rounds, calls, budget) for name, made in contenders.items()}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            wanted_rounds, burst = plans[name]
            if number < wanted_rounds:
                first = len(seconds[name]) + number
                seconds[name] += clock.burst(contenders[name], first, burst)
    return {name: Times.of(found) for name, found in seconds.items()}


def _plan(made: Sequence[Call], clock: Clock, rounds: int, calls: int, budget: float) -> tuple[int, int]:
    """Return how many rounds a contender takes part in, and the calls of its bursts."""
    affordable = budget / max(1e-9, min(clock.burst(made, 0, 2)))
    burst = int(max(1, min(calls, affordable / rounds - 1)))
    return int(min(rounds, max(FEWEST_ROUNDS, affordable / (burst + 1)))), burst


def bandwidth_calls(device: torch.device, size: int | None = None) -> dict[str, list[Call]]:
    """Return calls that copy and read `size` bytes."""
    count = (size or BANDWIDTH_BYTES[device.type]) // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)

    def copy() -> Tensor:
        return target.copy_(source)

    return {"copy": [copy], "read": [source.sum]}


def bandwidth_of(times: Mapping[str, Times], device: torch.device, size: int | None = None) -> Bandwidth:
    """Return the bandwidth from the times of `bandwidth_calls`."""
    moved = size or BANDWIDTH_BYTES[device.type]
    return Bandwidth(2 * moved / times["copy"].median, moved / times["read"].median)


def cache_bytes(device: torch.device) -> int:
    """Return the size of the last cache."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    found = [_size(file.read_text()) for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(found, default=UNKNOWN_CACHE)


def _size(text: str) -> int:
    text = text.strip()
    return int(text.rstrip("KM")) * {"K": 2**10, "M": 2**20}.get(text[-1], 1)


def host_facts(device: torch.device) -> dict[str, object]:
    """Return what the numbers were measured on."""
    facts: dict[str, object] = {
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cache_bytes": cache_bytes(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")

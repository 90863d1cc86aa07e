"""A connection to a Ray cluster: a running one, or one of this machine's own for as long as the run lasts."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lowbit import preemption
from lowbit.errors import LowbitError

LOCAL = "local"
SECONDS_TO_CONNECT = 10.0
SECONDS_TO_ANSWER = 60.0
# Cells pass paths and lines of text to one another; weights go through files.
OBJECT_STORE_BYTES = 100_000_000
PASSED_ON = (
    *("LOWBIT_DATA_DIR", "LOWBIT_PLUGINS", "LOWBIT_CACHE_DIR", "GOMP_SPINCOUNT", "TRANSFORMERS_OFFLINE"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    *("TOKENIZERS_PARALLELISM", "TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"),
)
"""Environment variables that workers of a running cluster get from whoever starts a grid; no secret is among them."""


@dataclass(frozen=True)
class ClusterSettings:
    """Which cluster runs a grid.

    Args:
        address: As `ray.init` takes it: `HOST:PORT`, or `auto`; `None` starts one on this machine.
    """

    address: str | None = None


def import_ray() -> Any:
    """Return the module `ray`.

    Raises:
        LowbitError: It is not installed.
    """
    # A local cluster of one command reports to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise LowbitError("--engine ray needs Ray: pip install 'lowbit[ray]'") from error
    return ray


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[Any]:
    """Connect to a cluster while the context is open, and yield the module `ray`.

    Raises:
        LowbitError: There is no such cluster, or this process is connected to one already.
    """
    ray = import_ray()
    if ray.is_initialized():
        raise LowbitError("this process is connected to a Ray cluster already; call ray.shutdown() first")
    if settings.address is not None:
        _require_listening(settings.address)
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    own: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        own = {"address": LOCAL, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    with _signals_kept():
        try:
            ray.init(
                **own,
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level=logging.ERROR,
                namespace="lowbit",
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            where = settings.address or "on this machine"
            reason = " ".join(str(error).split())[:300]
            raise LowbitError(
                f"no Ray cluster at {where}: {reason}; give --ray_address HOST:PORT of its head"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listening(address: str) -> None:
    """Check that somebody listens at an address; Ray itself would try for many minutes.

    Raises:
        LowbitError: It is no address, or nobody answers.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and int(port) < 1 << 16):
        raise LowbitError(f"--ray_address {address!r}: expected HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS_TO_ANSWER)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else "what listens there does not answer as one"
        raise LowbitError(
            f"no Ray cluster at {address}: {reason}; `ray start --head` prints the address of a cluster's head"
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Give back the handlers of signals that Ray replaces by its own.

    Raises:
        Interrupted: Ray's own handler of SIGTERM ran before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        raise preemption.Interrupted(signal.SIGTERM) from end
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def largest_node_cpus(ray: Any) -> int:
    """Return the cores of the largest living node; 0 where none has any yet."""
    cores = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return int(max(cores, default=0))


def fitting_nodes(ray: Any, wanted: dict[str, float]) -> int:
    """Return how many living nodes have the resources, whether these are free or not.

    Args:
        ray: The module, connected.
        wanted: Amounts by Ray's names: CPU, GPU, memory.
    """
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in alive)

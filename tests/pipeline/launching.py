"""Starts programs in several processes, as users do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def start(program: list[str], launcher: tuple[str, ...] = (), processes: int = 2) -> subprocess.Popen[str]:
    """Start a program in some processes that find each other on a free port, by torchrun or another launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chosen = launcher or ("torch.distributed.run", "--nproc_per_node", str(processes), "--master_addr", "127.0.0.1")
    port_option = "--main_process_port" if launcher else "--master_port"
    command = [sys.executable, "-m", *chosen, port_option, str(port), *program]
    paths = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


def launch(
    program: list[str], launcher: tuple[str, ...] = (), timeout: int = 240, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Run a program in some processes to its end."""
    with start(program, launcher, processes) as running:
        try:
            output, error = running.communicate(timeout=timeout)
        except BaseException:
            running.kill()
            raise
        return subprocess.CompletedProcess(running.args, running.returncode, output, error)

"""Runs the code blocks of a page the way that a reader does who has a small model and little time."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from docs.code_blocks import CodeBlock

from lowbit.cli.main import main

SHELL = re.compile(r"&&|\|\||[|;<>]|\$\(")
TRAINED = {"dbllm": True, "lsq": True, "pbllm-qat": False}
"""Methods that train, and whether they reconstruct blocks first."""
SHORT_DATA = ("training_data.generated.n_samples=8", "training_data.generated.batch_size=8", "training_data.seq_len=64")
SHORT_DISTILLATION = ("distillation.steps=1", "distillation.evaluate_every=1", "distillation.held_out=2")


@dataclass(frozen=True)
class Reader:
    """Runs blocks in one folder.

    Args:
        folder: Where commands run.
        substitutions: What stands in the place of names that only the reader knows.
        environment: Variables that are set.
    """

    folder: Path
    substitutions: Mapping[str, str]
    environment: Mapping[str, str]

    def run(self, block: CodeBlock) -> None:
        """Run a block, and fail with its place if one of its commands does."""
        if block.language == "python":
            self._run_python(block)
        for command in block.commands() if block.language == "bash" else ():
            self.run_command(command, block.line)

    def run_command(self, command: str, line: int) -> None:
        """Run one command; lowbit's in this process, others in a shell."""
        for name, replacement in self.substitutions.items():
            command = command.replace(name, replacement)
        words = shlex.split(command, comments=True)
        if SHELL.search(command.split(" #")[0]) or words[0] != "lowbit":
            self._run_shell(command, line)
            return
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.chdir(self.folder)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            main(shortened(words[1:]))
        assert not ended.value.code, f"line {line}: {command} ended with exit code {ended.value.code}"

    def _run_python(self, block: CodeBlock) -> None:
        text = block.text
        for name, replacement in self.substitutions.items():
            text = text.replace(name, replacement)
        file = self.folder / (block.file_name or f"block_at_line_{block.line}.py")
        file.write_text(text)
        self._run_shell(f"{shlex.quote(sys.executable)} {file.name}", block.line)

    def _run_shell(self, command: str, line: int) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PATH": path, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"line {line}: {command}\n{done.stdout}\n{done.stderr}"


def shortened(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with less to do: few documents, few tokens, a step of training."""
    arguments = list(arguments)
    if arguments[0] == "reproduce":
        return [*arguments, "--dry_run"]
    if arguments[0] == "generate":
        return [*arguments, "--n_samples", "8", "--seq_len", "64"]
    if arguments[0] not in ("bench", "quantize", "eval"):
        return arguments
    if arguments[0] != "quantize" and "--samples" not in arguments:
        arguments += ["--limit", "2"]
    if arguments[0] == "eval":
        return arguments
    arguments += ["--n_samples", "8", "--seq_len", "64"]
    for method in _trained(arguments):
        settings = [*SHORT_DATA, *SHORT_DISTILLATION]
        settings += ["reconstruction.steps=1"] if TRAINED[method] else []
        arguments += [word for setting in settings for word in ("--set", f"{method}:{setting}")]
    return arguments


def _trained(arguments: Sequence[str]) -> list[str]:
    """Return the methods of a command that train; `lowbit bench` without methods runs the default ones."""
    named = [value for option, value in pairwise(arguments) if option == "--method"]
    methods = [name for value in named for name in value.split(",")] or ["dbllm", "rtn"]
    return [method for method in methods if method in TRAINED]


def lowbit_commands(block: CodeBlock) -> Iterator[list[str]]:
    """Yield the arguments of every call of lowbit in a shell block."""
    for command in block.commands() if block.language == "bash" else ():
        for part in re.split(r"&&|\|\||[|;]", command):
            words = shlex.split(part, comments=True)
            names = [index for index, word in enumerate(words) if word == "lowbit" or word.endswith("/lowbit")]
            if names and all("=" in word or word in ("srun", "time") for word in words[: names[0]]):
                ends = [index for index, word in enumerate(words) if word in (">", ">>", "2>", "<")]
                yield words[names[0] + 1 : ends[0] if ends else None]

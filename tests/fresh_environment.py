"""A fresh virtual environment with lowbit and two plugins in it, as an author and a stranger would have them.

lowbit, a plugin that `lowbit plugins new` wrote in this very environment, and the ternary example are installed from
wheels. What they depend on is lent by the environment that runs the tests, through lines in a `.pth` file. Such a line
does not load the lender's own `.pth` files, so that an editable lowbit there is out of sight.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLE = REPOSITORY / "docs" / "examples" / "ternary"
NAME = "my-quantizer"


@dataclass(frozen=True)
class PluginEnvironment:
    """A virtual environment, the wheels in it, and the plugins' sources.

    Args:
        folder: Where everything lies.
    """

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / "venv" / ("Scripts" if os.name == "nt" else "bin")

    @property
    def generated(self) -> Path:
        return self.folder / NAME

    @property
    def example(self) -> Path:
        return self.folder / "ternary"

    @property
    def wheels(self) -> Path:
        return self.folder / "wheels"

    def run(self, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment."""
        hidden = ("PYTHON", "LOWBIT_", "COVERAGE", "PYTEST")
        variables = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        variables["PATH"] = f"{self.scripts}{os.pathsep}{variables.get('PATH', '')}"
        variables["VIRTUAL_ENV"] = str(self.folder / "venv")
        executable = str(self.scripts / command[0])
        return subprocess.run(
            [executable, *command[1:]], cwd=cwd, env=variables, capture_output=True, text=True, check=False
        )

    def succeed(self, *command: str, cwd: Path) -> str:
        """Run a command that must end well, and return what it printed."""
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_tests(self, project: Path) -> str:
        """Run a plugin's own tests; none may be missing."""
        return self.succeed("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)

    def bench(self, method: str, *more: str) -> dict[str, Any]:
        """Bench a method on a few documents, and return the record that its result holds; once a method.

        All benches share a results directory, and so the parent's results.
        """
        self.succeed("lowbit", "bench", "--method", method, "--limit", "20", *more, cwd=self.folder)
        files = (self.folder / "lowbit_results").rglob("results_*.json")
        records = [json.loads(path.read_text(encoding="utf-8"))["lowbit"] for path in files]
        [record] = [each for each in records if each["role"] == "quantized" and each["method"] == method]
        return dict(record)


def plugin_environment(factory: pytest.TempPathFactory) -> PluginEnvironment:
    """Return the environment; the first of all the processes that run tests makes it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "plugin_environment"
    made = folder / "made"
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(PluginEnvironment(folder))
            made.touch()
    return PluginEnvironment(folder)


def ruff(project: Path) -> str:
    """Return what format and lint checks complain about in a project; they read its own settings."""
    commands = (["format", "--check"], ["check"])
    done = [
        subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=project, capture_output=True, text=True
        )
        for command in commands
    ]
    return "".join(each.stdout + each.stderr for each in done if each.returncode)


def _make(environment: PluginEnvironment) -> None:
    environment.wheels.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "lowbit_results", "dist", "build", ".*_cache", ".venv")
    shutil.copytree(EXAMPLE, environment.example, ignore=ignored)
    _build(environment.wheels, [REPOSITORY, environment.example])
    venv.create(environment.folder / "venv", with_pip=False, symlinks=os.name != "nt")
    _lend_dependencies(environment)
    _install(environment, sorted(environment.wheels.glob("*.whl")))
    environment.succeed("lowbit", "plugins", "new", NAME, cwd=environment.folder)
    _build(environment.wheels, [environment.generated])
    _install(environment, sorted(environment.wheels.glob("my_quantizer-*.whl")))


def _lend_dependencies(environment: PluginEnvironment) -> None:
    where = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(environment.succeed("python", "-c", where, cwd=environment.folder).strip())
    lent = dict.fromkeys([sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]])
    (site / "lent.pth").write_text("\n".join(lent) + "\n", encoding="utf-8")
    # The lender's script would start the lender's Python.
    runner = environment.scripts / "pytest"
    runner.write_text(f'#!/bin/sh\nexec "{environment.scripts / "python"}" -m pytest "$@"\n', encoding="utf-8")
    runner.chmod(0o755)


def _build(wheels: Path, projects: Sequence[Path]) -> None:
    """Build wheels; without hatchling at hand pip fetches it, which takes a network and longer."""
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    _pip("wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", str(wheels), *map(str, projects))


def _install(environment: PluginEnvironment, wheels: Sequence[Path]) -> None:
    assert wheels
    python = str(environment.scripts / "python")
    _pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", *map(str, wheels))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"

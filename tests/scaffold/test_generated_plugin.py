"""The plugin that `lowbit plugins new` writes, installed into a fresh environment and used."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh_environment import NAME, REPOSITORY, PluginEnvironment, plugin_environment, ruff


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> PluginEnvironment:
    return plugin_environment(tmp_path_factory)


def test_what_is_tested_is_what_the_wheels_installed(environment: PluginEnvironment) -> None:
    modules = ("lowbit", "lowbit_my_quantizer", "lowbit_ternary")
    code = f"import importlib; [print(importlib.import_module(name).__file__) for name in {modules}]"
    places = environment.succeed("python", "-c", code, cwd=environment.folder).split()
    assert len(places) == 3
    assert all(Path(place).is_relative_to(environment.folder / "venv") for place in places)


def test_the_wheel_holds_the_whole_template(environment: PluginEnvironment) -> None:
    template = REPOSITORY / "lowbit" / "scaffold" / "template"
    there = {
        f"lowbit/scaffold/template/{p.relative_to(template).as_posix()}" for p in template.rglob("*") if p.is_file()
    }
    [wheel] = environment.wheels.glob("lowbit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert there <= set(archive.namelist())
    assert {Path(name).name for name in there} >= {".gitignore.jinja", "ci.yml.jinja", "copier.yml", "LICENSE"}


def test_its_own_tests_pass(environment: PluginEnvironment) -> None:
    printed = environment.run_tests(environment.generated)
    assert " passed" in printed
    assert "failed" not in printed


def test_it_is_benched_through_its_entry_point_with_bits_from_the_file(environment: PluginEnvironment) -> None:
    record = environment.bench(NAME)
    assert record["bits"]["quantized_bits"] == pytest.approx(2 + 16 / 64)
    assert record["bits"]["nominal_bits"] == 2.0


def test_it_is_formatted_and_without_complaint(environment: PluginEnvironment) -> None:
    assert ruff(environment.generated) == ""


@pytest.mark.slow
def test_it_installs_completely_into_an_empty_environment(environment: PluginEnvironment, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    empty = PluginEnvironment(tmp_path)
    wheels = ["--find-links", str(environment.wheels)]
    empty.succeed("python", "-m", "pip", "install", "--quiet", *wheels, "lowbit[plugin]", cwd=tmp_path)
    empty.succeed("lowbit", "plugins", "new", NAME, cwd=tmp_path)
    empty.succeed("python", "-m", "pip", "install", "--quiet", *wheels, "-e", ".[test]", cwd=empty.generated)
    empty.run_tests(empty.generated)
    empty.succeed("lowbit", "plugins", "check", NAME, cwd=tmp_path)
    assert empty.bench(NAME)["bits"]["nominal_bits"] == 2.0

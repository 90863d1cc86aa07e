"""What `--plugin` is given by mistake or malice: code runs from a .py file or a module, and from nothing else."""

from __future__ import annotations

import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from fuzz.cases import Outcomes, generator, mutated_bytes, number
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowbit.errors import LowbitError
from lowbit.registry import Registry

HONEST = "from lowbit import hookimpl\n\n@hookimpl\ndef lowbit_methods():\n    return []\n"


def load(target: str) -> Registry:
    registry = Registry()
    registry.load(target)
    return registry


def marking(marker: Path) -> str:
    """Return Python source that leaves a file behind when it runs."""
    return f"open({str(marker)!r}, 'w').close()\n{HONEST}"


def test_what_is_no_python_file_and_no_module_is_refused_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(marking(marker))
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "plugin.txt").write_text(marking(marker))
    with zipfile.ZipFile(tmp_path / "plugin.zip", "w") as archive:
        archive.writestr("plugin.py", marking(marker))
        archive.writestr("../../evil.py", marking(marker))
    (tmp_path / "plugin.whl").write_bytes((tmp_path / "plugin.zip").read_bytes())
    with tarfile.open(tmp_path / "plugin.tar", "w") as tar:
        tar.add(tmp_path / "plugin.txt", "plugin.py")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "round.py").symlink_to(tmp_path / "round.py")
    (tmp_path / "device.py").symlink_to("/dev/zero")
    names = ("package", "folder.py", "plugin.txt", "plugin.zip", "plugin.whl", "plugin.tar", "pipe.py", "gone.py",
             "round.py", "device.py", "absent.py", "plugin.zip/plugin.py", "x\x00.py", "a" * 300 + ".py")  # fmt: skip
    targets = [str(tmp_path / name) for name in names]
    targets += [
        "https://example.org/plugin.py",
        "file:///etc/passwd",
        "git+https://example.org/x",
        "plugin.zip",
        "",
        ".",
        "..",
        "...",
        "..os",
        "os..path",
        "../evil",
        "os.path;import",
        "a b",
        "\x1b[2J",
        "\ud800",
        "-m",
        "__main__.x",
        "é" * 10**5,
        "nonesuch_module",
        "nonesuch.module",
        "%s",
        "lowbit.nonesuch",
        "/",
        "~",
    ]
    outcomes = Outcomes("plugin targets", seconds=5)
    for target in targets:
        outcomes.check(repr(target)[:80], lambda target=target: load(target), lambda _: False)
    outcomes.finish(refusals=len(targets))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def broken(:\n", "SyntaxError"),
        (b"# \xff\xfe\nx = '\xff'\n", "SyntaxError"),
        (b"x = 1\x00\n", "SyntaxError|ValueError"),
        (b"(" * 10_000, "SyntaxError|MemoryError|RecursionError"),
        (b"import nonesuch_module\n", "nonesuch_module"),
        (b"raise SystemExit(3)\n", "SystemExit"),
        (b"1 / 0\n", "ZeroDivisionError"),
        (b"# -*- coding: nonesuch -*-\n", "SyntaxError"),
    ],
)
def test_a_file_that_does_not_import_is_one_clear_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_bytes(content)
    before = set(sys.modules)
    with pytest.raises(LowbitError, match=message) as caught:
        load(str(tmp_path / "plugin.py"))
    assert "\n" not in str(caught.value)
    assert not [name for name in set(sys.modules) - before if name.startswith("lowbit_plugin_")]


def test_damaged_sources_are_refused_or_register_nothing_wrong(tmp_path: Path) -> None:
    outcomes = Outcomes("damaged sources")
    for position, (description, data) in enumerate(mutated_bytes(HONEST.encode(), generator("source"), number(150))):
        file = tmp_path / f"plugin{position}.py"
        file.write_bytes(data)
        outcomes.check(description, lambda file=file: load(str(file)))
    outcomes.finish(refusals=number(40))


def test_a_file_named_like_a_library_takes_nobodys_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    marker = tmp_path / "ran"
    (tmp_path / "json.py").write_text(marking(marker))
    monkeypatch.chdir(tmp_path)
    load("json")
    assert not marker.exists()
    load("./json.py")
    assert marker.exists()
    assert sys.modules["json"] is json
    assert str(tmp_path) not in sys.path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=40).filter(lambda text: not text.isidentifier()))
def test_any_text_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(LowbitError):
        load(text + "!")

"""`lowbit plugins new`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lowbit.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["plugins", "new", *arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_a_name_alone_writes_a_folder_of_that_name_and_says_what_is_next(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, errors = run(capsys, "my-quantizer")
    assert (code, errors) == (0, "")
    assert (tmp_path / "my-quantizer" / "lowbit_my_quantizer" / "quantizer.py").is_file()
    assert "your idea" in printed
    steps = printed.split("Next:")[1].split("\n")
    assert [step.strip() for step in steps if step.strip()] == [
        "cd my-quantizer",
        "pip install -e '.[test]'",
        "lowbit plugins check my-quantizer",
        "lowbit bench --method my-quantizer --limit 20",
    ]


def test_options_choose_folder_author_and_description(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "my plugins" / "one"
    code, printed, _ = run(
        capsys, "soft-sign", "--output", str(folder), "--author", "A. N. Other", "--description", "Softer signs"
    )
    assert code == 0
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    assert '"A. N. Other"' in text and '"Softer signs"' in text
    assert f"cd '{folder}'" in printed


@pytest.mark.parametrize("name", ["9lives", "lowbit", "cpu"])
def test_a_bad_name_is_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    code, printed, errors = run(capsys, name, "--output", str(tmp_path / "a"))
    assert (code, printed) == (1, "")
    assert errors.startswith(f"lowbit: error: '{name}' cannot name a plugin")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_a_second_run_touches_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, "soft-sign", "--output", str(tmp_path / "a"))
    (tmp_path / "a" / "README.md").write_text("mine", encoding="utf-8")
    code, _, errors = run(capsys, "soft-sign", "--output", str(tmp_path / "a"))
    assert code == 1
    assert "is not empty" in errors
    assert (tmp_path / "a" / "README.md").read_text(encoding="utf-8") == "mine"


def test_it_asks_nothing_and_loads_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lowbit.cli.main import main\n"
        "try:\n    main(['plugins', 'new', 'soft-sign'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "soft-sign" / "pyproject.toml").is_file()

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lowbit.cli.main import COMMANDS, main
from lowbit.cli.options import join_values, recipe_flags


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_help_names_every_command_and_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from lowbit.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'triton', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


def test_help_answers_quickly() -> None:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lowbit.cli.main", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    bare = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    bare = time.perf_counter() - bare
    # The target is 0.3 s; a busy machine starts even a bare interpreter slowly.
    assert min(times) < max(0.3, 12 * bare)


def test_an_unknown_command_exits_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "benhc")
    assert code == 2
    assert "benhc" in error


def test_an_unknown_method_is_one_line_with_the_nearest_names(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "recipe", "show", "dblm")
    assert code == 1
    assert error.strip().count("\n") == 0
    assert "did you mean dbllm" in error


def test_a_recipe_is_shown_with_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "recipe", "show", "rtn", "--set", "quantizer.bits=3")
    recipe = yaml.safe_load(out)
    assert code == 0
    assert recipe["quantizer"] == {
        "name": "rtn",
        "bits": 3,
        "group_size": 64,
        "symmetric": False,
        "scale_dtype": "float16",
    }


def test_a_recipe_file_with_a_typo_is_refused_with_the_nearest_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("method: rtn\nquantiser: {name: rtn}\n")
    code, _, error = run(capsys, "recipe", "check", str(file))
    assert code == 1
    assert "quantiser" in error and "quantizer" in error


def test_plugins_and_doctor_describe_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    assert "reference" in run(capsys, "doctor")[1]
    code, out, _ = run(capsys, "plugins", "show", "rtn")
    assert code == 0
    assert "group_size" in out


def test_dashes_work_in_place_of_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bench", "--show-config", "--method", "rtn", "--num-fewshot", "2", "--tasks", "a", "b")
    recipe = yaml.safe_load(out)
    assert code == 0
    assert recipe["eval"]["num_fewshot"] == 2
    assert recipe["eval"]["tasks"] == ["a", "b"]


def test_one_method_can_be_overridden_alone(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "dbllm,rtn", "--set", "rtn:quantizer.bits=4", "--set", "quantizer.group_size=32"]
    _, out, _ = run(capsys, "bench", "--show_config", *arguments)
    first, second = yaml.safe_load_all(out)
    assert first["quantizer"]["group_size"] == second["quantizer"]["group_size"] == 32
    assert second["quantizer"]["bits"] == 4


def test_values_after_an_option_with_several_are_joined() -> None:
    joined = join_values(["--tasks", "a", "b", "--limit", "3", "-M", "x", "y"])
    assert joined == ["--tasks", "a,b", "--limit", "3", "-M", "x,y"]


def test_options_become_recipe_keys() -> None:
    flags = recipe_flags({"tasks": "piqa", "seed": "7", "n_samples": 4, "model_args": "pretrained=x,dtype=float32"})
    assert flags == {
        "eval": {"tasks": "piqa", "seed": "7"},
        "seed": 7,
        "calibration": {"n_samples": 4},
        "model": {"path": "x", "dtype": "float32"},
    }

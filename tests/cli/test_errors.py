"""Bad input ends in one clear line and a non-zero exit code, and leaves nothing that looks whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowbit.cli.main import main


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 1, error
    assert error.startswith("lowbit: error: ")
    return error


def test_a_missing_model_folder_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = fails(capsys, "quantize", "--method", "rtn", "--model", str(tmp_path / "absent"), "-o", str(tmp_path / "o"))
    assert "absent" in error
    assert not (tmp_path / "o").exists()


def test_a_missing_recipe_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "absent.yaml" in fails(capsys, "bench", "--config", str(tmp_path / "absent.yaml"))


def test_a_misspelled_option_names_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = fails(capsys, "quantize", "--method", "rtn", "-o", str(tmp_path / "o"), "--set", "quantizer.bit=3")
    assert "did you mean bits" in error


def test_an_override_for_a_method_that_is_not_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "rtm" in fails(capsys, "bench", "--method", "rtn", "--set", "rtm:quantizer.bits=3")


def test_a_rule_that_applies_to_no_layer_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = fails(
        capsys, "quantize", "--method", "rtn", "-o", str(tmp_path / "o"), "--set", "modules_to_not_convert=[up_porj]"
    )
    assert "up_porj" in error and "model.layers.0" in error


def test_an_unknown_task_names_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = fails(capsys, "bench", "--method", "rtn", "--tasks", "smallworld_chioce", "-o", str(tmp_path / "o"))
    assert "smallworld_choice" in error


def test_a_file_in_the_place_of_the_checkpoint_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "o").write_text("precious")
    assert "no lowbit checkpoint" in fails(capsys, "quantize", "--method", "rtn", "-o", str(tmp_path / "o"))
    assert (tmp_path / "o").read_text() == "precious"


def test_a_calibration_file_of_another_tokenizer_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plugin = tmp_path / "needs_statistics.py"
    plugin.write_text(
        "from lowbit import DenseWeight, Method, StatisticsNeed, WeightQuantizer, hookimpl\n"
        "class Q(WeightQuantizer):\n"
        "    name = 'needs-statistics'\n"
        "    needs = StatisticsNeed.HESSIAN\n"
        "    def quantize(self, weight, statistics, generator):\n"
        "        return DenseWeight(weight.clone(), nominal_bits=32)\n"
        "@hookimpl\n"
        "def lowbit_weight_quantizers():\n    yield Q\n"
        "@hookimpl\n"
        "def lowbit_methods():\n    yield Method('needs-statistics', quantizer='needs-statistics')\n"
    )
    import numpy as np

    np.savez(tmp_path / "tokens.npz", tokens=np.full((2, 16), 10**6))
    arguments = ["--method", "needs-statistics", "--plugin", str(plugin), "-o", str(tmp_path / "o")]
    error = fails(
        capsys,
        "quantize",
        *arguments,
        "--calibration",
        str(tmp_path / "tokens.npz"),
        "--n_samples",
        "2",
        "--seq_len",
        "16",
    )
    assert "another tokenizer" in error
    error = fails(capsys, "quantize", *arguments, "--calibration", str(tmp_path / "absent.txt"))
    assert "absent.txt" in error

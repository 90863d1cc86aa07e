"""`lowbit generate` writes token files that every method takes as calibration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import ModelFolder

from lowbit.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def generate(capsys: pytest.CaptureFixture[str], model: Path, output: Path, *more: str) -> tuple[int, str, str]:
    shape = ("--n_samples", "6", "--seq_len", "16", "--batch_size", "4")
    return run(capsys, "generate", "--model", str(model), "-o", str(output), *shape, *more)


def test_its_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from lowbit.cli.main import main\n"
        "try:\n    main(['generate', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'datasets', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--greedy_tokens" in done.stdout


def test_the_token_file_serves_as_calibration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, parent: ModelFolder
) -> None:
    output = tmp_path / "tokens.npz"
    code, out, error = generate(capsys, parent("llama"), output, "--seed", "3", "--greedy-tokens", "2,4")
    assert code == 0, error
    described = json.loads((tmp_path / "tokens.json").read_text())
    assert described["sha256"] in out and "6 sequences of 16 tokens" in out
    assert described["seed"] == 3 and described["settings"]["greedy_tokens"] == [2, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.json", "tokens.npz"]
    quantized = tmp_path / "quantized"
    arguments = ("--model", str(parent("llama")), "--method", "gptq", "--calibration", str(output))
    code, _, error = run(capsys, "quantize", *arguments, "-o", str(quantized))
    assert code == 0, error
    used = json.loads((quantized / "config.json").read_text())["quantization_config"]["calibration"]
    assert used["sha256"] == described["sha256"]


def test_the_same_command_leaves_the_file_and_another_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, parent: ModelFolder
) -> None:
    output = tmp_path / "tokens.npz"
    generate(capsys, parent("llama"), output)
    written = output.stat().st_mtime_ns
    code, _, _ = generate(capsys, parent("llama"), output)
    assert code == 0
    assert output.stat().st_mtime_ns == written
    code, _, error = generate(capsys, parent("llama"), output, "--temperature", "0.5", "--seed", "1")
    assert code == 1
    assert "seed: 0 there, 1 now; settings.temperature: 1.0 there, 0.5 now" in " ".join(error.split())
    assert output.stat().st_mtime_ns == written


def test_a_file_that_lowbit_did_not_generate_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, parent: ModelFolder
) -> None:
    output = tmp_path / "tokens.npz"
    np.savez(output, tokens=np.zeros((2, 2), dtype=np.int64))
    before = output.read_bytes()
    code, _, error = generate(capsys, parent("llama"), output)
    assert code == 1
    assert "tokens.json" in error
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--greedy_tokens", "5,3"),
        ("--greedy_tokens", "a"),
        ("--temperature", "0"),
        ("--n_samples", "0"),
        ("--seq_len", "1"),
        ("--first_tokens", "all"),
    ],
)
def test_a_wrong_value_names_its_option(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, value: str
) -> None:
    code, _, error = run(capsys, "generate", "-o", str(tmp_path / "tokens.npz"), option, value)
    assert code == 2
    assert option in error

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lowbit
from lowbit.embedded import calibration_path, model_path, task_configs
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.load import logits_of
from lowbit.recipe import Recipe
from lowbit.registry import registry
from lowbit.results.table import Row, to_markdown

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 20


def recipes(methods: str, **flags: Any) -> list[Recipe]:
    evaluation = {"tasks": "smallworld_text,smallworld_choice", "limit": LIMIT, "bootstrap_iters": 100}
    return resolve_grid(None, methods, {"eval": {**evaluation, **flags.pop("eval", {})}, **flags})


def run(output: Path, methods: str = "dbllm-ptq,rtn", **flags: Any) -> list[Row]:
    return list(bench(recipes(methods, **flags), BenchOptions(output, extra_tasks=task_configs())))


def result_files(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((output / name).glob("results_*.json"))]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    rows = run(folder)
    assert [row.error for row in rows] == [None] * 3
    return folder


def test_the_parent_comes_first_and_every_method_has_bits_tasks_time_and_memory(output: Path) -> None:
    rows = run(output)
    assert [row.method for row in rows] == ["parent", "dbllm-ptq", "rtn"]
    for row in rows[1:]:
        assert set(row.metrics) == {"smallworld_text", "smallworld_choice"}
        assert row.seconds is not None and row.memory_bytes is not None
        assert row.bits is not None and row.bits[0] == 2.0
    assert rows[1].bits is not None and rows[1].bits[1] == pytest.approx(2.5)


def test_a_result_has_everything_that_says_what_it_is(output: Path) -> None:
    result = result_files(output, "embedded__dbllm-ptq")[0]
    ours = result["lowbit"]
    assert result["results"]["smallworld_choice"]["acc,none"] >= 0
    assert ours["coverage"]["share"] == 1.0
    assert ours["recipe"]["quantizer"]["group_size"] == 64
    assert ours["parent"]["sha256"] and ours["checkpoint_sha256"]
    assert ours["versions"]["lowbit"] and ours["plugins"]
    assert ours["data_sha256"].keys() == {"smallworld_text", "smallworld_choice"}
    assert ours["context_length"] == 256
    assert ours["packed_against_dense"]["relative_perplexity"] < 1e-3
    assert ours["kernels"] in (["cpu-bit-planes"], ["reference"])
    assert ours["recovery"]["smallworld_choice"]["acc,none"]["recovery_percent"] is not None
    assert len(ours["layers"]) == ours["coverage"]["quantized_targets"]
    assert "plane1_density" in ours["layers"][0]["diagnostics"]


def test_reported_bits_agree_with_the_file_to_the_byte(output: Path) -> None:
    ours = result_files(output, "embedded__dbllm-ptq")[0]["lowbit"]
    size = sum(file.stat().st_size for file in Path(ours["checkpoint"]).glob("*.safetensors"))
    assert ours["bits"]["file_bytes"] == sum(ours["bits"]["items"].values()) == size


def test_a_second_run_reuses_checkpoint_and_parent_and_gives_the_same_numbers(output: Path) -> None:
    run(output)
    first, *_, last = result_files(output, "embedded__rtn")
    assert first["results"] == last["results"]
    parents = result_files(output, "embedded")
    assert parents[0]["lowbit"]["from_cache"] is False and parents[-1]["lowbit"]["from_cache"] is True
    assert parents[0]["results"] == parents[-1]["results"]


def test_packed_and_dense_backends_agree(output: Path) -> None:
    dense = run(output, "dbllm-ptq")[1].metrics["smallworld_text"].value
    packed = run(output, "dbllm-ptq", backend="packed")[1].metrics["smallworld_text"].value
    assert packed == pytest.approx(dense, rel=1e-3)


def test_plain_transformers_gives_the_logits_of_the_dense_model(output: Path) -> None:
    checkpoint = result_files(output, "embedded__dbllm-ptq")[0]["lowbit"]["checkpoint"]
    tokens = torch.arange(1, 65).unsqueeze(0)
    packed = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    dense = lowbit.load(checkpoint, backend="dense", dtype="float32")
    torch.testing.assert_close(logits_of(packed, tokens), logits_of(dense, tokens), rtol=1e-4, atol=1e-4)


def test_log_samples_puts_the_documents_beside_the_result(tmp_path: Path) -> None:
    run(tmp_path, "none", eval={"log_samples": True})
    files = list((tmp_path / "embedded").glob("samples_smallworld_choice_*.jsonl"))
    assert len(files) == 1
    assert len(files[0].read_text().splitlines()) == LIMIT


def test_a_method_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    plugin = tmp_path / "broken_quantizer.py"
    plugin.write_text(
        "from lowbit import LowbitError, Method, WeightQuantizer, hookimpl\n"
        "class Broken(WeightQuantizer):\n"
        "    name = 'broken'\n"
        "    def quantize(self, weight, statistics, generator):\n"
        "        raise LowbitError('this quantizer is broken')\n"
        "@hookimpl\n"
        "def lowbit_weight_quantizers():\n    yield Broken\n"
        "@hookimpl\n"
        "def lowbit_methods():\n    yield Method('broken', quantizer='broken')\n"
    )
    registry().load(str(plugin))
    rows = run(tmp_path / "out", "broken,rtn")
    assert rows[1].error == "this quantizer is broken"
    assert rows[2].error is None


@pytest.mark.parametrize(("file", "method"), [("sign_quantizer", "sign"), ("sign_format", "packed-sign")])
def test_the_examples_for_plugin_authors_run_as_they_stand(tmp_path: Path, file: str, method: str) -> None:
    registry().load(str(REPOSITORY / "docs" / "examples" / f"{file}.py"))
    row = run(tmp_path, method, eval={"limit": 4})[1]
    assert row.error is None
    assert row.bits is not None and row.bits[0] < 2
    # A claim is not a measurement: without a format the file holds plain values.
    assert row.bits[1] == (32.0 if method == "sign" else pytest.approx(1 + 16 / 128, abs=0.05))


def test_the_quantizer_in_the_readme_is_the_example() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    code = readme.split("```python\n# sign_quantizer.py")[1].split("```")[0]
    example = (REPOSITORY / "docs" / "examples" / "sign_quantizer.py").read_text()
    for line in code.splitlines()[1:]:
        assert line.split("#")[0].strip() in example


def test_the_calibration_default_of_the_embedded_model_is_its_own_text() -> None:
    assert calibration_path().is_file()
    assert (model_path() / "model.safetensors").stat().st_size < 12_000_000


def test_speed_times_packed_and_dense_decoding_and_adds_a_column(tmp_path: Path) -> None:
    options = BenchOptions(tmp_path, extra_tasks=task_configs(), speed=True)
    rows = list(bench(recipes("dbllm-ptq"), options))
    timed = result_files(tmp_path, "embedded__dbllm-ptq")[0]["lowbit"]["speed"]
    assert list(timed) == ["packed", "dense"]
    for speed in timed.values():
        assert 0 < speed["lower"] <= speed["tokens_per_second"] <= speed["upper"]
        assert speed["runs"] == 5
    assert timed["packed"]["model_bytes"] < timed["dense"]["model_bytes"]
    assert rows[0].decoding == ()
    assert rows[1].decoding == tuple(timed[name]["tokens_per_second"] for name in ("packed", "dense"))
    last_columns = [line.split("|")[-2].strip() for line in to_markdown(rows).splitlines()]
    assert last_columns[0] == "tokens/s (x dense)"
    assert last_columns[2] == "-"
    assert last_columns[3].endswith(f"({rows[1].decoding[0] / rows[1].decoding[1]:.2f})")

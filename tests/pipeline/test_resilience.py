"""What must not go wrong when plugins change, methods fail, or parents do not hold together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowbit.embedded import model_path, task_configs
from lowbit.errors import CheckpointError, LowbitError
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.inspection import inspect_checkpoint
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.pipeline.resources import require_device
from lowbit.recipe import resolve_recipe
from lowbit.registry import PluginSource, Registry, registry
from lowbit.results.table import Row

PLUGIN = """
from lowbit import DenseWeight, Method, WeightQuantizer, hookimpl
class Scaled(WeightQuantizer):
    name = "{name}"
    def quantize(self, weight, statistics, generator):
        return DenseWeight({expression}, nominal_bits=16)
@hookimpl
def lowbit_weight_quantizers():
    yield Scaled
@hookimpl
def lowbit_methods():
    yield Method("{name}", quantizer="{name}")
"""


def write_plugin(path: Path, name: str, expression: str) -> Path:
    path.write_text(PLUGIN.format(name=name, expression=expression))
    return path


def run(output: Path, models: list[str] | None, methods: str) -> list[Row]:
    flags = {"eval": {"tasks": "smallworld_choice", "limit": 4, "bootstrap_iters": 0}}
    return list(bench(resolve_grid(models, methods, flags), BenchOptions(output, extra_tasks=task_configs())))


def test_an_edited_plugin_is_another_plugin(tmp_path: Path) -> None:
    contents = []
    for expression in ("weight.half()", "weight.half() * 2"):
        fresh = Registry()
        fresh.load(str(write_plugin(tmp_path / f"edited_{len(contents)}.py", "edited", expression)))
        contents.append(fresh.source("method", "edited").content)
    assert contents[0] and contents[1] and contents[0] != contents[1]


def test_first_class_plugins_carry_the_hash_of_their_code() -> None:
    assert all(source.content for source in registry().plugins if source.distribution == "lowbit")
    assert PluginSource("a", "b", "1", "x") == PluginSource("a", "b", "1", "y")


def test_a_quantizer_that_raises_anything_becomes_a_failed_row(tmp_path: Path) -> None:
    registry().load(str(write_plugin(tmp_path / "divides.py", "divides", "weight / (1 // 0)")))
    rows = run(tmp_path / "out", None, "divides,rtn")
    assert rows[1].error is not None and "divides failed on model.layers.0" in rows[1].error
    assert rows[2].error is None


def test_a_parent_that_fails_does_not_take_the_others_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lowbit.pipeline.observed_evaluation as room

    broken = tmp_path / "broken"
    shutil.copytree(model_path(), broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config))  # other bytes, so that no kept result is found
    original = room.evaluate

    def fails_on_broken(*args: object, model_name: str, **options: object) -> object:
        if model_name == str(broken):
            raise LowbitError("this parent is broken")
        return original(*args, model_name=model_name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "evaluate", fails_on_broken)
    rows = run(tmp_path / "out", [str(model_path()), str(broken)], "rtn")
    assert [(row.model, row.method, row.error) for row in rows] == [
        ("model", "parent", None),
        ("model", "rtn", None),
        ("broken", "parent", "this parent is broken"),
    ]


def test_tokenizer_and_generation_files_are_the_parents_bytes(tmp_path: Path) -> None:
    recipe = resolve_recipe(registry(), "rtn")
    quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "checkpoint" / name).read_bytes() == (model_path() / name).read_bytes()


def test_a_parent_with_more_layers_than_its_configuration_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(model_path(), parent)
    config = json.loads((parent / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (parent / "config.json").write_text(json.dumps(config))
    recipe = resolve_recipe(registry(), "rtn", flags={"model": {"path": str(parent)}})
    with pytest.raises(CheckpointError, match=r"no place for, such as model\.layers\.3"):
        quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))


def test_an_index_that_names_the_wrong_file_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(model_path(), parent)
    tensors = {name: tensor.clone() for name, tensor in load_file(parent / "model.safetensors").items()}
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({name: tensors[name] for name in members}, parent / file, metadata={"format": "pt"})
    (parent / "model.safetensors").unlink()
    weight_map = {name: file for file, members in halves.items() for name in members}
    weight_map[names[0]] = "b.safetensors"
    (parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    recipe = resolve_recipe(registry(), "rtn", flags={"model": {"path": str(parent)}})
    with pytest.raises(CheckpointError, match=r"is not in b\.safetensors"):
        quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))


def test_inspection_refuses_a_checkpoint_that_lacks_a_tensor(tmp_path: Path) -> None:
    recipe = resolve_recipe(registry(), "rtn")
    quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    file = tmp_path / "checkpoint" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    del tensors["model.layers.0.self_attn.q_proj.scales"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.layers\.0\.self_attn\.q_proj\.scales"):
        inspect_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("device", ["foo", "meta", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_one_clear_error(device: str) -> None:
    with pytest.raises(LowbitError, match="cannot be used"):
        require_device(device)


def test_the_example_divides_a_shorter_last_group_by_its_own_length() -> None:
    fresh = Registry()
    fresh.load(str(Path(__file__).resolve().parents[2] / "docs" / "examples" / "sign_quantizer.py"))
    weight = torch.ones(2, 172)
    quantized = fresh.quantizer("sign")().quantize(weight, None, torch.Generator())
    assert torch.equal(quantized.dequantize(), weight)

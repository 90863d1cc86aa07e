"""The examples of the pages on hooks do what they say."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from distillation.batches import random_batch
from docs.code_blocks import code_blocks
from small_models import ModelFolder, make_recipe

from lowbit import CalibrationSource, DataAccess, LowbitError, TrainingStep, Workload, hookimpl
from lowbit.contracts import EvaluationStep, QuantizedLayer
from lowbit.embedded import task_configs
from lowbit.packing import GenericPacker
from lowbit.pipeline.api import resolve_grid
from lowbit.pipeline.bench import BenchOptions, bench
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.registry import PluginSource, Registry, registry

PAGES = Path(__file__).resolve().parents[2] / "docs" / "hooks"
Load = Callable[..., Registry]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads the examples of hooks' pages into a registry of their own."""

    def run(*hooks: str) -> Registry:
        made = Registry()
        for hook in hooks:
            file = tmp_path / f"{hook}_example.py"
            file.write_text(source_of(hook))
            made.load(str(file))
        return made

    return run


def source_of(hook: str) -> str:
    return next(block.text for block in code_blocks(PAGES / f"{hook}.md") if "@hookimpl" in block.text)


def matrix(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_quantizer_rounds_to_powers_of_two(load: Load) -> None:
    quantizer = load("lowbit_weight_quantizers").quantizer("power-of-two")()
    weight = torch.tensor([[0.9, -3.1, 1e-6, 0.0]])
    quantized = quantizer.quantize(weight, None, torch.Generator())
    assert quantized.dequantize().tolist() == [[1.0, -4.0, 0.0, 0.0]]


def test_the_loss_is_least_where_student_and_teacher_agree(load: Load) -> None:
    loss = load("lowbit_distillation_losses").distillation_loss("top-tokens")()
    batch = random_batch()
    same = type(batch)(batch.teacher_logits, batch.teacher_logits, batch.labels)
    assert loss(same).value.abs().max() < 1e-5
    assert (loss(batch).value > 1e-3).all()


def test_format_packer_and_kernel_belong_together(load: Load) -> None:
    made = load("lowbit_formats", "lowbit_packers", "lowbit_kernels")
    weight = made.format("row-sign")(matrix(20, 11) > 0, matrix(20).abs().half())
    packer = made.packer("column-signs")()
    packed = packer.pack(weight)
    layout = packer.layout(packed.spec, type(weight))
    assert {name: (item.shape, item.dtype) for name, item in layout.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in packed.tensors.items()
    }
    assert torch.equal(packer.unpack(packed, type(weight)).dequantize(), weight.dequantize())
    [kernel] = [found() for found in made.kernels()]
    plain = GenericPacker().pack(weight)
    workload = Workload(plain.spec, GenericPacker(), type(weight), torch.device("cpu"), torch.float32)
    assert kernel.supports(workload).served
    x, bias = matrix(3, 11), matrix(20)
    expected = torch.nn.functional.linear(x, weight.dequantize(), bias)
    torch.testing.assert_close(kernel.bind(plain, workload)(x, bias), expected)
    other = Workload(packed.spec, packer, type(weight), torch.device("cpu"), torch.float32)
    assert "column-signs" in kernel.supports(other).reason


def test_the_calibration_source_reads_its_folder(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load("lowbit_calibration_sources").calibration_source("notes")()
    with pytest.raises(LowbitError, match="NOTES"):
        list(source.documents(DataAccess()))
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    monkeypatch.setenv("NOTES", str(tmp_path))
    assert list(source.documents(DataAccess())) == ["first", "second"]


def test_a_calibration_source_of_a_plugin_calibrates(tmp_path: Path, parent: ModelFolder) -> None:
    class Words(CalibrationSource):
        name = "words"
        domain = "words"

        def documents(self, access: DataAccess) -> Iterator[str]:
            yield " ".join(f"w{3 + number % 90}" for number in range(400))

    class Plugin:
        @hookimpl
        def lowbit_calibration_sources(self) -> Iterator[type[CalibrationSource]]:
            yield Words

    plugin = Plugin()
    registry().register(plugin, PluginSource("words", "tests"))
    try:
        calibration = {"source": "words", "n_samples": 4, "seq_len": 32}
        recipe = make_recipe(parent("llama"), "gptq", calibration=calibration)
        outcome = quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    finally:
        registry().unregister(plugin)
    assert outcome.calibration is not None
    assert outcome.calibration["name"] == "words"
    assert outcome.layers[0]["calibration_tokens"] == 4 * 32


def test_the_published_file_is_named_after_its_paper(load: Load) -> None:
    assert load("lowbit_published_results").published_file("mine").path.name == "mine.json"


def test_the_methods_resolve(load: Load) -> None:
    made = load("lowbit_methods")
    assert made.method("rtn4").options == {"bits": 4}
    assert made.method("lsq-row").presets["quick"]["distillation"]["loss"] == "kl"


EVENTS = (
    "lowbit_tokens_generated",
    "lowbit_run_started",
    "lowbit_block_quantized",
    "lowbit_distillation_step",
    "lowbit_checkpoint_finished",
    "lowbit_run_failed",
)
NUMBERS = ("lowbit_diagnostics", "lowbit_output_diagnostics")


class Witness:
    """Keeps everything that it is told of."""

    def __init__(self) -> None:
        self.steps: list[TrainingStep] = []
        self.seen: list[tuple[str, Any]] = []

    @hookimpl
    def lowbit_tokens_generated(self, recipe: Mapping[str, Any], finished: int, batches: int) -> None:
        self.seen.append(("tokens", (recipe["method"], finished, batches)))

    @hookimpl
    def lowbit_layer_quantized(self, layer: QuantizedLayer) -> None:
        self.seen.append(("layer", (layer.block, layer.number, layer.layers)))

    @hookimpl
    def lowbit_distillation_step(self, step: TrainingStep) -> None:
        self.steps.append(step)

    @hookimpl
    def lowbit_checkpoint_finished(
        self, recipe: Mapping[str, Any], checkpoint: Path, bits: Mapping[str, Any], cost: Mapping[str, float]
    ) -> None:
        assert cost["seconds"] > 0
        self.seen.append(("checkpoint", (checkpoint / "config.json").is_file() and bits["quantized_bits"] > 1))

    @hookimpl
    def lowbit_evaluation_started(self, recipe: Mapping[str, Any], role: str, tasks: Sequence[str]) -> None:
        self.seen.append(("started", (role, tuple(tasks))))

    @hookimpl
    def lowbit_evaluation_step(self, step: EvaluationStep) -> None:
        self.seen.append(("answered", (step.tasks, step.unit, step.done, step.total)))

    @hookimpl
    def lowbit_evaluation_finished(self, recipe: Mapping[str, Any], role: str, results: Mapping[str, Any]) -> None:
        self.seen.append(("finished", (role, tuple(results["results"]))))

    def told(self, kind: str) -> list[Any]:
        return [what for of, what in self.seen if of == kind]


@pytest.fixture
def witness() -> Iterator[Witness]:
    """A plugin that observes everything, registered with the process's registry."""
    made = Witness()
    registry().register(made, PluginSource("hook-witness", f"tests-{id(made)}"))
    yield made
    registry().unregister(made)


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers the examples that observe with the process's registry."""
    monkeypatch.chdir(tmp_path)
    plugins: list[Any] = []
    for hook in (*EVENTS, *NUMBERS):
        names: dict[str, Any] = {}
        exec(compile(source_of(hook), hook, "exec"), names)
        plugins.append(type(hook, (), {hook: staticmethod(names[hook])})())
    for number, plugin in enumerate(plugins):
        registry().register(plugin, PluginSource(f"example-{number}", f"tests-{id(plugin)}"))
    yield
    for plugin in plugins:
        registry().unregister(plugin)


def test_the_observing_examples_see_a_whole_training(
    registered: None, witness: Witness, tmp_path: Path, parent: ModelFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"seq_len": 16, "source": "generated", "generated": {"n_samples": 8, "batch_size": 8}}
    flags = {
        "training_data": training,
        "reconstruction": {"steps": 2, "batch_size": 4},
        "distillation": {"steps": 3, "batch_size": 4, "evaluate_every": 1, "held_out": 2},
    }
    recipe = make_recipe(parent("llama"), "lsq", **flags)
    outcome = quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    printed = capsys.readouterr().out.splitlines()
    writing = [line for line in printed if line.endswith("batches of training text")]
    assert writing[-1] == "lsq: 1 of 1 batches of training text"
    printed = printed[len(writing) - 1 :]
    assert printed[1] == "lsq, seed 0: 3 of 3 blocks to go"
    assert [line.split(":")[0] for line in printed[2:5]] == [f"block {number} of 3" for number in (1, 2, 3)]
    assert printed[5].startswith(f"{tmp_path / 'checkpoint'}: ")
    assert witness.told("tokens")[-1] == ("lsq", 1, 1)
    assert witness.told("layer") == [(block, number, 7) for block in range(3) for number in range(1, 8)]
    assert witness.told("checkpoint") == [True]
    with (tmp_path / "curve.csv").open() as file:
        assert [row[0] for row in csv.reader(file)] == ["1", "2", "3"]
    stages = [(step.stage, step.block, step.step) for step in witness.steps]
    assert stages == [
        *(("reconstruction", block, step) for block in range(3) for step in (1, 2)),
        *(("distillation", None, step) for step in (1, 2, 3)),
    ]
    assert {"zero share", "output error %"} <= outcome.layers[0]["diagnostics"].keys()


def test_a_failure_leaves_the_file_that_the_example_writes(
    registered: None, tmp_path: Path, parent: ModelFolder
) -> None:
    (tmp_path / "taken").write_text("")
    recipe = make_recipe(parent("llama"), "rtn")
    with pytest.raises(LowbitError):
        quantize_to(recipe, tmp_path / "taken", HookEvents(recipe))
    assert (tmp_path / "FAILED").read_text().startswith("rtn: LowbitError: ")


def test_an_evaluation_is_told_from_start_to_end(tmp_path: Path, witness: Witness) -> None:
    flags = {"eval": {"tasks": "smallworld_choice", "limit": 4, "bootstrap_iters": 0}}
    rows = list(bench(resolve_grid(None, "rtn", flags), BenchOptions(tmp_path, extra_tasks=task_configs())))
    assert [row.error for row in rows] == [None, None]
    task = ("smallworld_choice",)
    for kind in ("started", "finished"):
        assert witness.told(kind) == [("parent", task), ("quantized", task)]
    answered = witness.told("answered")
    assert {(tasks, unit) for tasks, unit, _, _ in answered} == {(task, "requests")}
    done, total = [step[2] for step in answered], answered[-1][3]
    assert total >= 4
    assert max(done) == done[-1] == total
    assert done.count(total) == 2, "parent and quantized model each answer all requests"
    assert witness.told("checkpoint") == [True]

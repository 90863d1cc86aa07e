"""The block-wise engine: what quantizers are given, and what it refuses."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lowbit_baselines import RoundToNearest
from small_models import FUSED_EXPERTS, VOCABULARY, ModelFolder, load_model, make_config, make_parent
from torch import Tensor
from transformers import PreTrainedModel

from lowbit.calibration.accumulator import InputAccumulator
from lowbit.contracts import (
    DenseWeight,
    LayerStatistics,
    QuantizedBlock,
    QuantizedLayer,
    QuantizedWeight,
    StatisticsNeed,
    WeightQuantizer,
)
from lowbit.errors import LowbitError, QuantizationWarning
from lowbit.modeling.activations import StoredActivations
from lowbit.modeling.journal import Journal
from lowbit.models import WeightTarget, find_decoder, read_weight, write_weight
from lowbit.models.experts import use_expert_loop
from lowbit.models.streamed import StreamedModel
from lowbit.quantization.engine import Engine
from lowbit.quantization.plan import decoder_targets, make_plan

SAMPLES, LENGTH = 5, 12
ROUNDING = RoundToNearest(RoundToNearest.Config(bits=2, group_size=16))
CALIBRATED = ["llama", "opt", "gpt-neox", "gpt2", "qwen3", "gemma3", "mixtral", "qwen3-moe", "deepseek-v3"]
if FUSED_EXPERTS:
    CALIBRATED.append("gpt-oss")


class Recorder(WeightQuantizer):
    """Rounds to nearest and keeps the statistics that it is given, in the order of the targets."""

    name: ClassVar[str] = "recorder"
    needs: StatisticsNeed = StatisticsNeed.HESSIAN

    def __init__(self) -> None:
        super().__init__()
        self.given: list[LayerStatistics | None] = []

    def quantize(
        self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator
    ) -> QuantizedWeight:
        self.given.append(statistics)
        return ROUNDING.quantize(weight, None, generator)


class DiagonalRecorder(Recorder):
    needs: StatisticsNeed = StatisticsNeed.SECOND_MOMENT


@dataclass
class Events:
    """Keeps every block that the engine reports."""

    started: list[tuple[int, int]] = field(default_factory=list)
    blocks: list[QuantizedBlock] = field(default_factory=list)

    def run_started(self, blocks: int, finished: int) -> None:
        self.started.append((blocks, finished))

    def layer_quantized(self, layer: QuantizedLayer) -> None:
        """Do nothing."""

    def block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        self.blocks.append(block)

    def run_ended(self) -> None:
        pass


def calibration_tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(9))


def run_engine(folder: Path, quantizer: WeightQuantizer, journal: Path, tokens: Tensor | None) -> Events:
    """Quantize every target of a model by one quantizer."""
    source = StreamedModel(folder)
    targets = [target for block in decoder_targets(source.decoder) for target in block]
    plan = make_plan(source.decoder, {target.name: quantizer for target in targets})
    store = Journal(journal, "plain", SAMPLES)
    store.open({})
    events = Events()
    Engine(source, plan, store, events, lambda quantized: {}, seed=0).run(tokens)
    return events


@torch.no_grad()
def plain_statistics(model: PreTrainedModel, tokens: Tensor) -> dict[str, tuple[int, Tensor | None]]:
    """Quantize a whole model in memory, block by block, and collect each target's inputs by running all of it."""
    use_expert_loop(model)
    decoder = find_decoder(model)
    found: dict[str, tuple[int, Tensor | None]] = {}
    for targets in decoder_targets(decoder):
        inputs = collect_inputs(model, targets, tokens)
        for target in targets:
            rows = torch.cat(inputs[target.name]).double() if inputs[target.name] else None  # [tokens, in]
            hessian = None if rows is None else 2 * rows.T @ rows / len(rows)
            found[target.name] = (0 if rows is None else len(rows), hessian)
        for target in targets:
            weight = read_weight(model, target).contiguous()
            write_weight(model, target, ROUNDING.quantize(weight, None, torch.Generator()).dequantize())
    return found


def collect_inputs(
    model: PreTrainedModel, targets: tuple[WeightTarget, ...], tokens: Tensor
) -> dict[str, list[Tensor]]:
    """Run the model on every sample and keep what enters each target."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    observed: list[Any] = []

    def keep(name: str, x: Tensor) -> None:
        inputs[name].append(x.reshape(-1, x.shape[-1]).clone())

    for target in targets:
        module = model.get_submodule(target.module)
        if target.expert is None:
            handles.append(module.register_forward_pre_hook(lambda _, args, name=target.name: keep(name, args[0])))
        elif module not in observed:
            observed.append(module)
            module.lowbit_observer = lambda parameter, expert, x, prefix=target.module: keep(
                f"{prefix}.{parameter}.{expert}", x
            )
    for sample in tokens.split(1):
        model(input_ids=sample, use_cache=False)
    for handle in handles:
        handle.remove()
    for module in observed:
        del module.lowbit_observer
    return inputs


@pytest.mark.parametrize("architecture", CALIBRATED)
def test_hessians_equal_those_of_a_plain_loop_over_quantized_predecessors(
    architecture: str, parent: ModelFolder, tmp_path: Path
) -> None:
    recorder = Recorder()
    events = run_engine(parent(architecture), recorder, tmp_path / "journal", calibration_tokens())
    expected = plain_statistics(load_model(parent(architecture)), calibration_tokens())
    reports = [report for block in events.blocks for report in block.reports]
    assert [report.name for report in reports] == list(expected)
    for report, given in zip(reports, recorder.given, strict=True):
        count, hessian = expected[report.name]
        assert report.calibration_tokens == count
        if hessian is None:
            assert given is None
            continue
        assert given is not None
        assert given.tokens == count
        torch.testing.assert_close(given.hessian.double(), hessian, rtol=2e-3, atol=2e-4 * float(hessian.abs().max()))


def test_second_moments_are_the_halved_diagonals_of_hessians(parent: ModelFolder, tmp_path: Path) -> None:
    recorder = DiagonalRecorder()
    run_engine(parent("llama"), recorder, tmp_path / "journal", calibration_tokens())
    expected = plain_statistics(load_model(parent("llama")), calibration_tokens())
    for given, (_, hessian) in zip(recorder.given, expected.values(), strict=True):
        assert given.hessian is None
        torch.testing.assert_close(given.second_moment.double(), hessian.diagonal() / 2, rtol=2e-3, atol=1e-5)


def test_query_key_value_and_gate_up_share_one_object(parent: ModelFolder, tmp_path: Path) -> None:
    recorder = Recorder()
    events = run_engine(parent("llama"), recorder, tmp_path / "journal", calibration_tokens())
    names = [report.name for block in events.blocks for report in block.reports]
    given = dict(zip(names, recorder.given, strict=True))
    block = "model.layers.1."
    attention = [given[f"{block}self_attn.{name}_proj"] for name in "qkv"]
    assert attention[0] is attention[1] is attention[2]
    assert given[f"{block}mlp.gate_proj"] is given[f"{block}mlp.up_proj"]
    assert len({id(statistics) for name, statistics in given.items() if name.startswith(block)}) == 4


def test_an_expert_without_tokens_gets_none_and_is_reported(tmp_path: Path) -> None:
    config = make_config("qwen3-moe")
    config.num_experts = 64
    folder = make_parent(tmp_path / "parent", config)
    recorder = Recorder()
    tokens = calibration_tokens()[:, :2].repeat(1, 2)
    events = run_engine(folder, recorder, tmp_path / "journal", tokens)
    reports = [report for block in events.blocks for report in block.reports]
    idle = [r.name for r, given in zip(reports, recorder.given, strict=True) if given is None]
    assert idle
    assert all(".experts." in name for name in idle)
    assert [r.name for r in reports if r.calibration_tokens == 0] == idle


def test_a_quantizer_that_needs_nothing_runs_no_forward_pass(
    parent: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamedModel, "calls", None)
    events = run_engine(parent("llama"), ROUNDING, tmp_path / "journal", None)
    assert [report.calibration_tokens for block in events.blocks for report in block.reports] == [None] * 21
    assert not list((tmp_path / "journal").glob("activations*"))


def test_calibration_is_asked_for_by_name(parent: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="--calibration"):
        run_engine(parent("llama"), Recorder(), tmp_path / "journal", None)


def test_activations_of_finished_blocks_are_dropped(parent: ModelFolder, tmp_path: Path) -> None:
    run_engine(parent("llama"), Recorder(), tmp_path / "journal", calibration_tokens())
    assert not list((tmp_path / "journal").glob("activations*"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_blocks_end_where_the_whole_quantized_model_ends(
    architecture: str, parent: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StoredActivations, "drop", lambda self, before: None)
    run_engine(parent(architecture), Recorder(), tmp_path / "journal", calibration_tokens())
    model = load_model(parent(architecture))
    plain_statistics(model, calibration_tokens())
    store = Journal(tmp_path / "journal", "plain", SAMPLES)
    entered: list[Tensor] = []
    last = find_decoder(model).blocks[-1]
    last.register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        for sample in calibration_tokens().split(1):
            model(input_ids=sample, use_cache=False)
    torch.testing.assert_close(torch.cat(list(store.activations(2))), torch.cat(entered), rtol=1e-3, atol=1e-4)


class Wrong(WeightQuantizer):
    """Returns what it is told to."""

    name: ClassVar[str] = "wrong"

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def quantize(self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator) -> Any:
        return self.result(weight)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda weight: weight, "must return a QuantizedWeight"),
        (lambda weight: None, "must return a QuantizedWeight"),
        (lambda weight: DenseWeight(weight[:-1].clone(), 2.0), "returned shape"),
        (lambda weight: DenseWeight(weight * float("nan"), 2.0), "broke its format"),
    ],
)
def test_a_quantizer_that_breaks_its_contract_is_named(
    result: Any, message: str, parent: ModelFolder, tmp_path: Path
) -> None:
    with pytest.raises(LowbitError, match=message) as caught:
        run_engine(parent("llama"), Wrong(result), tmp_path / "journal", None)
    assert "wrong" in str(caught.value)
    assert "model.layers.0.self_attn" in str(caught.value)


class Drawing(Recorder):
    """Keeps the first number that its generator draws."""

    needs: StatisticsNeed = StatisticsNeed.NONE

    def quantize(
        self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator
    ) -> QuantizedWeight:
        self.given.append(float(torch.rand((), generator=generator)))
        return ROUNDING.quantize(weight, None, generator)


def test_random_draws_depend_on_seed_and_name_only(parent: ModelFolder, tmp_path: Path) -> None:
    first, second = Drawing(), Drawing()
    run_engine(parent("llama"), first, tmp_path / "first", None)
    run_engine(parent("llama"), second, tmp_path / "second", None)
    assert first.given == second.given
    assert len(set(first.given)) == 21


class Outspoken(Recorder):
    """Says something about every weight, and something that is not its own to say."""

    needs: StatisticsNeed = StatisticsNeed.NONE

    def quantize(
        self, weight: Tensor, statistics: LayerStatistics | None, generator: torch.Generator
    ) -> QuantizedWeight:
        warnings.warn("worked around", QuantizationWarning, stacklevel=2)
        warnings.warn("somebody else's", UserWarning, stacklevel=2)
        return ROUNDING.quantize(weight, None, generator)


def test_what_a_quantizer_worked_around_stands_in_the_report(parent: ModelFolder, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="somebody else's"):
        events = run_engine(parent("llama"), Outspoken(), tmp_path / "journal", None)
    notes = {report.notes for block in events.blocks for report in block.reports}
    assert notes == {("worked around",)}
    stored = json.loads((tmp_path / "journal" / "block-00000.json").read_text())
    assert stored["layers"][0]["notes"] == ["worked around"]


def test_inputs_that_are_not_finite_are_refused_with_the_layers_name(
    parent: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = InputAccumulator.add

    def overflowing(self: InputAccumulator, x: Tensor) -> None:
        changed = x.clone()
        changed[..., 3] = torch.inf
        add(self, changed)

    monkeypatch.setattr(InputAccumulator, "add", overflowing)
    with pytest.raises(LowbitError, match=r"inputs of model\.layers\.0\.self_attn\.q_proj.* are not finite in 1 of"):
        run_engine(parent("llama"), Recorder(), tmp_path / "journal", calibration_tokens())

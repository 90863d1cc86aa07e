"""The forecast against what is written and measured: disk, memory, time."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import make_parent
from transformers import LlamaConfig

from lowbit.contracts import StatisticsNeed
from lowbit.pipeline.block_cost import _statistics_bytes, affordable_tokens
from lowbit.pipeline.forecast import forecast
from lowbit.pipeline.measuring import Line, Stopwatch, line_through, peak_bytes_of, saved_bytes_of
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.pipeline.quantizer_cost import QuantizerCost, _twice_as_wide
from lowbit.pipeline.trial_model import TrialModel
from lowbit.recipe import Recipe, resolve_recipe
from lowbit.registry import registry

TRAINING = {"training_data": {"source": "calibration"}, "reconstruction": None, "distillation": None}
STEPS = {"steps": 8, "batch_size": 4}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Processor time stands for time where there is one thread, whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _model(folder: Path, hidden: int, layers: int) -> Path:
    shape = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 32}
    return make_parent(folder, LlamaConfig(**shape, **heads, vocab_size=200, max_position_embeddings=256))


def _recipe(folder: Path, method: str, hidden: int, layers: int, samples: int = 8, **flags: Any) -> Recipe:
    tokens = folder / "tokens.npz"
    np.savez(tokens, tokens=np.random.default_rng(0).integers(3, 200, (samples, 128), dtype=np.int64))
    model = {"model": {"path": str(_model(folder / "model", hidden, layers))}}
    return resolve_recipe(registry(), method, flags={**model, "calibration": {"source": str(tokens)}, **flags})


@pytest.mark.parametrize("method", ["dbllm-ptq", "rtn"])
def test_the_forecast_agrees_with_what_is_written(tmp_path: Path, method: str) -> None:
    recipe = resolve_recipe(registry(), method)
    expected = forecast(recipe)
    found = quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    assert expected.coverage.to_dict() == found.coverage
    assert expected.quantized_bits == pytest.approx(found.bits.quantized_bits, rel=0.02)
    assert expected.checkpoint_bytes == pytest.approx(found.bits.file_bytes, rel=0.05)


def test_rules_change_the_forecast() -> None:
    skipped = resolve_recipe(registry(), "rtn", {"modules_to_not_convert": ["*.down_proj"]})
    found = forecast(skipped)
    assert found.coverage.share < 1
    assert all(name.endswith("down_proj") for name in found.coverage.skipped)
    assert found.checkpoint_bytes > forecast(resolve_recipe(registry(), "rtn")).checkpoint_bytes


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("gptq", {}),
        ("dbllm-ptq", {}),
        ("dbllm", {**TRAINING, "reconstruction": STEPS}),
        ("dbllm", {**TRAINING, "distillation": STEPS}),
    ],
    ids=["gptq", "dbllm-ptq", "reconstruction", "distillation"],
)
def test_time_is_forecast_within_a_factor_of_two(tmp_path: Path, method: str, flags: dict[str, Any]) -> None:
    recipe = _recipe(tmp_path, method, 128, 3, **flags)
    told = forecast(recipe, clock=time.process_time)
    started = time.process_time()
    quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    taken = time.process_time() - started
    # Beside its work a run builds the model's structure and imports its class: about half a second.
    assert told.seconds < 2 * taken
    assert told.seconds + 0.6 > taken / 2
    assert 0 < told.least_seconds <= told.seconds


def test_only_a_training_that_may_stop_early_has_two_times(tmp_path: Path) -> None:
    short = {"steps": 40, "batch_size": 4, "evaluate_every": 4}
    stopping = {**TRAINING, "distillation": {**short, "patience": 2}}
    found = forecast(_recipe(tmp_path, "dbllm", 64, 2, **stopping))
    assert found.least_seconds < 0.7 * found.seconds
    endless = {**TRAINING, "distillation": {**short, "patience": None}}
    recipe = resolve_recipe(registry(), "dbllm", flags={**_paths(tmp_path), **endless})
    lasting = forecast(recipe)
    assert lasting.least_seconds == pytest.approx(lasting.seconds)


def _paths(folder: Path) -> dict[str, Any]:
    return {"model": {"path": str(folder / "model")}, "calibration": {"source": str(folder / "tokens.npz")}}


def test_more_tokens_and_steps_take_longer(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "gptq", 64, 2)
    few = forecast(recipe, clock=time.process_time).seconds_by_part
    flags = _paths(tmp_path)
    np.savez(tmp_path / "more.npz", tokens=np.full((64, 128), 5, dtype=np.int64))
    flags["calibration"] = {"source": str(tmp_path / "more.npz")}
    many = forecast(resolve_recipe(registry(), "gptq", flags=flags), clock=time.process_time).seconds_by_part
    assert many["statistics"] > 3 * few["statistics"]
    assert many["forward"] > 3 * few["forward"]


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tmp_path, "gptq", 64, 2)

    def refuse(*_: Any) -> Any:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("lowbit.models.checkpoint.ParentCheckpoint.tensor", refuse)
    monkeypatch.setattr("lowbit.models.checkpoint.ParentCheckpoint.slices", refuse)
    assert forecast(recipe).seconds > 0


def test_a_trial_block_has_the_models_shapes_and_is_dropped_again(tmp_path: Path) -> None:
    model = TrialModel(_model(tmp_path, 64, 2))
    with model.block(1) as block:
        weight = block.self_attn.q_proj.weight
        assert weight.shape == (64, 64)
        assert float(weight.std()) == pytest.approx(0.02, rel=0.2)
    assert all(parameter.is_meta for parameter in model.decoder.blocks[1].parameters())


def test_statistics_are_counted_as_they_are_kept() -> None:
    wide = _statistics_bytes(StatisticsNeed.HESSIAN, 1024)
    assert 4 * 1024**2 <= wide <= 4.6 * 1024**2  # half of a float64 matrix, a strip's diagonal whole
    assert _statistics_bytes(StatisticsNeed.SECOND_MOMENT, 1024) == 8 * 1024


def test_a_line_goes_through_the_ends_and_never_falls() -> None:
    rising = line_through([(4, 9.0), (2, 5.0)])
    assert (rising.fixed, rising.slope) == (1.0, 2.0)
    assert rising.at(10) == 21.0
    falling = line_through([(2, 5.0), (4, 3.0)])
    assert falling.at(100) == 5.0
    steep = line_through([(2, 1.0), (4, 8.0)])
    assert (steep.fixed, steep.at(8)) == (0.0, 16.0)
    assert line_through([(4, 8.0)]).at(2) == 4.0


def test_the_cost_of_a_wide_matrix_grows_as_from_a_quarter_to_a_half_of_its_width() -> None:
    quarter = QuantizerCost(Line(1.0, 1.0), Line(8.0, 1.0), 64)
    half = QuantizerCost(Line(7.0, 2.0), Line(32.0, 9.0), 64)
    whole = _twice_as_wide(quarter, half)
    assert (whole.seconds.fixed, whole.seconds.slope) == (49.0, 4.0)
    assert (whole.peak_bytes.fixed, whole.peak_bytes.slope) == (128.0, 36.0)  # no row takes more than the square


def test_tokens_are_halved_until_they_fit() -> None:
    assert affordable_tokens(2048, lambda tokens: tokens / 1000, 10) == 2048
    assert affordable_tokens(2000, lambda tokens: tokens / 1000, 0.6) == 512
    assert affordable_tokens(2048, lambda tokens: tokens, 0.1) == 64


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux's own mark")
def test_a_peak_counts_what_was_held_for_a_moment() -> None:
    peak = peak_bytes_of(lambda: torch.ones(8_000_000).sum(), torch.device("cpu"))
    assert peak == pytest.approx(32e6, rel=0.1)


def test_saved_bytes_count_each_storage_once_and_no_parameter() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    inputs = torch.ones(10, 100)
    assert saved_bytes_of(lambda: (inputs @ weight).square(), [weight]) == 10 * 100 * 4 * 2
    assert saved_bytes_of(lambda: (inputs @ weight) + (inputs @ weight), [weight]) == 10 * 100 * 4


def test_a_stopwatch_takes_the_median() -> None:
    times = iter([0.0, 5.0, 10.0, 10.1, 20.0, 20.1])
    watch = Stopwatch(torch.device("cpu"), lambda: next(times))
    assert watch.typical(lambda: None) == 5.0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rtn", "gptq", "dbllm-ptq", "billm", "reconstruction", "distillation"])
@pytest.mark.parametrize(("hidden", "layers"), [(384, 4), (512, 3)])
def test_time_and_disk_are_forecast_within_a_quarter(tmp_path: Path, method: str, hidden: int, layers: int) -> None:
    trained = method in ("reconstruction", "distillation")
    flags = {**TRAINING, method: {"steps": 12, "batch_size": 4}} if trained else {}
    recipe = _recipe(tmp_path, "dbllm" if trained else method, hidden, layers, 16, **flags)
    told = statistics.median(forecast(recipe, clock=time.process_time).seconds for _ in range(3))
    taken, size = [], 0
    for run in range(3):
        started = time.process_time()
        found = quantize_to(recipe, tmp_path / str(run), HookEvents(recipe))
        taken.append(time.process_time() - started)
        size = found.bits.file_bytes
    assert forecast(recipe).checkpoint_bytes == pytest.approx(size, rel=0.05)
    # The structure that a run builds before its clock starts is in the processor time, and in no forecast.
    assert told == pytest.approx(statistics.median(taken), rel=0.25, abs=0.4)

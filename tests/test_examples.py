"""The examples of the documentation run as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from distillation.batches import random_batch
from fresh_environment import PluginEnvironment, plugin_environment, ruff

from lowbit.registry import Registry

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
SHORT_TRAINING = (
    "training_data.source=generated",
    "training_data.seq_len=64",
    "training_data.generated.n_samples=32",
    "reconstruction.n_samples=16",
    "reconstruction.steps=4",
    "distillation.steps=8",
    "distillation.evaluate_every=8",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> PluginEnvironment:
    return plugin_environment(tmp_path_factory)


def test_the_example_loss_is_lowest_where_both_models_are_sure_of_the_same_token() -> None:
    registry = Registry()
    registry.load(str(EXAMPLES / "agreement_loss.py"))
    loss = registry.distillation_loss("agreement")()
    batch = random_batch()
    term = loss(batch)
    expected = -(batch.teacher_logits.softmax(-1) * batch.student_logits.softmax(-1)).sum(-1).log()
    assert term.value.tolist() == pytest.approx(expected.tolist())
    assert term.weight is None


def test_the_ternary_plugin_passes_its_own_tests_and_those_of_its_contracts(environment: PluginEnvironment) -> None:
    printed = environment.run_tests(environment.example)
    assert " passed" in printed
    assert "failed" not in printed


@pytest.mark.slow
def test_the_ternary_plugin_passes_the_check_of_everything_it_registers(environment: PluginEnvironment) -> None:
    assert environment.succeed("lowbit", "plugins", "check", "lowbit-ternary", cwd=environment.folder)


def test_the_ternary_plugin_is_benched_packed_through_its_entry_point(environment: PluginEnvironment) -> None:
    record = environment.bench("ternary", "--backend", "packed")
    # A row of the embedded model fills its last byte with up to four digits of nothing.
    assert record["bits"]["quantized_bits"] == pytest.approx(1.6 + 16 / 64, abs=0.03)
    assert record["bits"]["nominal_bits"] == 2.0
    assert record["bits"]["items"].keys() >= {"digits", "scales"}
    assert record["kernels"] == ["cpu-bit-planes"]


def test_the_ternary_plugin_trains_with_its_own_loss(environment: PluginEnvironment) -> None:
    settings = [word for setting in SHORT_TRAINING for word in ("--set", setting)]
    record = environment.bench("ternary-trained", *settings)
    assert record["recipe"]["distillation"]["loss"][0]["name"] == "jsd"
    held_out = [loss for _, loss in record["training"]["distillation"]["held_out"]]
    assert held_out[-1] < held_out[0]


def test_the_ternary_plugin_is_formatted_and_without_complaint(environment: PluginEnvironment) -> None:
    assert ruff(environment.example) == ""

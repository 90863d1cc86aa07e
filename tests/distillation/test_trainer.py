"""Optimizer steps, held-out loss, early stop, checkpoints and divergence of a distillation."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from distillation.small_training import make_trainer, random_tokens
from small_models import ModelFolder
from torch import Tensor

from lowbit import DistillationBatch, DistillationLoss, TokenLoss
from lowbit.contracts import TrainingStep
from lowbit.distillation.curve import Curve
from lowbit.distillation.training_store import TrainingStore
from lowbit.errors import LowbitError

DAD = {"name": "dad", "mixing": 1.0}


class TurnsBad(DistillationLoss):
    """Squared difference of logits, until a call from which on it is not a number."""

    name: ClassVar[str] = "turns-bad"

    def __init__(self, good_calls: int) -> None:
        super().__init__()
        self.calls_left = good_calls

    def __call__(self, batch: DistillationBatch) -> TokenLoss:
        self.calls_left -= 1
        value = (batch.student_logits - batch.teacher_logits).square().mean(-1)
        return TokenLoss(value if self.calls_left >= 0 else value * torch.nan)


def train(folder: Path, store: Path, **options: Any) -> tuple[Curve, dict[str, Tensor]]:
    trainer, work = make_trainer(folder, store, **options)
    return trainer.run(), work.weights.state()


def test_training_lowers_the_held_out_loss_and_ends_in_its_best_state(parent: ModelFolder, tmp_path: Path) -> None:
    steps: list[TrainingStep] = []
    curve, state = train(parent("llama"), tmp_path, on_step=steps.append, steps=16)
    assert curve.best_loss < curve.held_out[0][1]
    assert [step.step for step in steps] == list(range(1, 17))
    assert [step.loss for step in steps] == curve.losses
    assert [step.step for step in steps if step.held_out_loss is not None] == list(range(2, 17, 2))
    best = TrainingStore(tmp_path).best(curve.best_step)
    assert best.keys() == state.keys()
    assert all(torch.equal(best[name], tensor) for name, tensor in state.items())


def test_held_out_sequences_are_watched_and_never_trained_on(parent: ModelFolder, tmp_path: Path) -> None:
    tokens = random_tokens(10)
    trainer, work = make_trainer(parent("llama"), tmp_path, tokens, held_out=3, steps=6)
    seen: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    work.student.register_forward_pre_hook(
        lambda _, args: seen[torch.is_grad_enabled()].update(map(tuple, args[0].tolist()))
    )
    trainer.run()
    assert seen[True] == set(map(tuple, tokens[:7].tolist()))
    assert seen[False] == set(map(tuple, tokens[7:].tolist()))


@pytest.mark.parametrize("loss", ["kl", DAD, "mse"], ids=["kl", "dad", "mse"])
def test_parts_of_a_batch_and_recomputed_activations_give_the_same_curve(
    parent: ModelFolder, tmp_path: Path, loss: Any
) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"micro_batch_size": 1},
        {"micro_batch_size": 3, "chunk_elements": 700},
        {"gradient_checkpointing": True},
    ]
    curves = [
        train(parent("llama"), tmp_path / str(number), loss=loss, steps=3, evaluate_every=1, **variant)[0]
        for number, variant in enumerate(variants)
    ]
    for curve in curves[1:]:
        assert curve.losses == pytest.approx(curves[0].losses, rel=1e-5)
        found, expected = ([loss for _, loss in one.held_out] for one in (curve, curves[0]))
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ["gemma3", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_bfloat16_stays_near_float32(parent: ModelFolder, tmp_path: Path, architecture: str) -> None:
    curves = [
        train(parent(architecture), tmp_path / precision, precision=precision, gradient_checkpointing=True, steps=4)[0]
        for precision in ("float32", "bfloat16")
    ]
    assert curves[1].losses == pytest.approx(curves[0].losses, rel=0.2)
    assert curves[1].losses != curves[0].losses


@pytest.mark.parametrize("loss", ["kl", DAD], ids=["kl", "dad"])
@pytest.mark.parametrize("killed_after", [1, 5])
def test_a_continued_training_takes_the_same_steps(
    parent: ModelFolder, tmp_path: Path, killed_after: int, loss: Any
) -> None:
    def kill(step: TrainingStep) -> None:
        if step.step == killed_after:
            raise KeyboardInterrupt

    whole, expected = train(parent("llama"), tmp_path / "whole", loss=loss)
    with pytest.raises(KeyboardInterrupt):
        train(parent("llama"), tmp_path / "killed", on_step=kill, loss=loss)
    spent = TrainingStore(tmp_path / "killed").seconds()
    assert (spent > 0) == (killed_after >= 2)
    continued, state = train(parent("llama"), tmp_path / "killed", loss=loss)
    assert continued == whole
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert TrainingStore(tmp_path / "killed").seconds() > spent


def test_a_finished_training_is_not_repeated(parent: ModelFolder, tmp_path: Path) -> None:
    curve, state = train(parent("llama"), tmp_path)
    steps: list[TrainingStep] = []
    again, found = train(parent("llama"), tmp_path, on_step=steps.append)
    assert again == curve
    assert steps == []
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_training_stops_early_and_goes_back_to_the_best_state(parent: ModelFolder, tmp_path: Path) -> None:
    curve, state = train(
        parent("llama"), tmp_path, steps=50, evaluate_every=1, patience=3, warmup=0.0,
        weight_rate=1.0, scale_rate=1.0, explosion=1e9,
    )  # fmt: skip
    assert len(curve.losses) == curve.best_step + 3 < 50
    best = TrainingStore(tmp_path).best(curve.best_step)
    assert all(torch.equal(best[name], tensor) for name, tensor in state.items())


def test_divergence_names_the_step_and_the_best_state(parent: ModelFolder, tmp_path: Path) -> None:
    rate = 1e30
    with pytest.raises(LowbitError, match=r"diverged in step \d+ of 40: .*best state, of step 0, is kept as") as caught:
        train(parent("llama"), tmp_path, steps=40, evaluate_every=50, warmup=0.0, weight_rate=rate, scale_rate=rate)
    file = tmp_path / "best-0000000.safetensors"
    assert str(file) in str(caught.value)
    assert TrainingStore(tmp_path).best(0)


def test_a_loss_that_turns_bad_in_a_step_ends_the_training(parent: ModelFolder, tmp_path: Path) -> None:
    # One call for each look at the held-out sequences, one for each step.
    with pytest.raises(LowbitError, match="diverged in step 4 of 6: loss nan") as caught:
        train(
            parent("llama"), tmp_path, losses=[(TurnsBad(good_calls=5), 1.0)], micro_batch_size=4, weight_rate=0.02,
            scale_rate=0.01,
        )  # fmt: skip
    assert "best-0000002.safetensors" in str(caught.value)
    assert (tmp_path / "best-0000002.safetensors").is_file()


def test_a_held_out_loss_that_turns_bad_ends_the_training(parent: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match=r"diverged in step 2 of 6: held-out loss nan after it.*of step 0"):
        train(parent("llama"), tmp_path, losses=[(TurnsBad(good_calls=3), 1.0)], micro_batch_size=4)
    assert (tmp_path / "best-0000000.safetensors").is_file()
    with pytest.raises(LowbitError, match="nan before the first step"):
        train(parent("llama"), tmp_path / "other", losses=[(TurnsBad(good_calls=0), 1.0)])


def test_a_batch_that_processes_cannot_share_is_refused(parent: ModelFolder, tmp_path: Path) -> None:
    three = SimpleNamespace(num_processes=3, process_index=0, device=torch.device("cpu"), is_main_process=True)
    with pytest.raises(LowbitError, match=r"batch_size 4 cannot be shared out among 3 processes; give a multiple"):
        make_trainer(parent("llama"), tmp_path, accelerator=three)


def test_too_few_sequences_are_refused(parent: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="4 training sequences, of which 4 are held out, leave none"):
        make_trainer(parent("llama"), tmp_path, random_tokens(4), held_out=4)

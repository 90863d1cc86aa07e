"""Checks of what a training keeps, restores and leaves alone."""

from __future__ import annotations

import copy

import torch

from lowbit.contracts import Parametrization, WeightQuantizer
from lowbit.testing.failure import ConformanceError, require
from lowbit.testing.matrices import gaussian
from lowbit.testing.packers import require_same_weight
from lowbit.testing.sameness import tensor_difference
from lowbit.testing.training_subject import TrainingSubject

WEIGHT = "gaussian(6, 100)"


class TrainingStateChecks(TrainingSubject):
    """State of a training: its own, its start, its frozen weights, random numbers."""

    def test_training_takes_strided_weights(self) -> None:
        """The latent weight may be a transpose."""
        training = self.start(gaussian(6, 100))
        training.walk(0.01)
        strided = training.latent.detach().t().contiguous().t()
        code = self.training_code(WEIGHT, "training.parametrization(training.latent.detach().t().contiguous().t())")
        outputs = {
            "the parametrization's output": training.parametrization(strided),
            "freeze(...).dequantize()": training.quantizer.freeze(strided, training.parametrization).dequantize(),
        }
        for name, output in outputs.items():
            difference = tensor_difference(name, training.output().detach(), output.detach())
            require(not difference, "the same for a latent weight that is not contiguous", difference, code)

    def test_training_draws_no_global_random_numbers(self) -> None:
        """Two trainings from one start go the same way, and leave the global generator alone."""
        self.require_repeatable()
        weight, found = gaussian(9, 130), []
        code = self.training_code("gaussian(9, 130)", "training.walk(0.02)", "training.frozen()")
        with torch.random.fork_rng(devices=[]):
            for seed in (0, 1):
                torch.manual_seed(seed)
                before = torch.get_rng_state()
                training = self.start(weight)
                training.output().square().sum().backward()
                untouched = torch.equal(torch.get_rng_state(), before)
                require(untouched, "a global random state as it was", "another one", code)
                training.walk(0.02)
                found.append(training.frozen())
        require_same_weight(found[0], found[1], "the same weight whatever torch.manual_seed was before", code)

    def test_training_changes_neither_the_weight_nor_its_start(self) -> None:
        """Error is measured against both."""
        weight = gaussian(6, 100)
        training = self.start(weight)
        start = copy.deepcopy(training.start)
        training.walk(0.1)
        code = self.training_code(WEIGHT, "training.walk(0.1)", "weight, training.start")
        difference = tensor_difference("weight", gaussian(6, 100), weight)
        require(not difference, "the weight as it was", difference, code)
        require_same_weight(start, training.start, "the quantized weight that training started from, as it was", code)

    def test_training_leaves_frozen_weights_alone(self) -> None:
        """What `freeze` returned does not move with further steps."""
        training = self.start(gaussian(6, 100))
        training.walk(0.02)
        frozen = training.frozen()
        dense = frozen.dequantize().clone()
        training.walk(0.5)
        code = self.training_code(WEIGHT, "frozen = training.frozen()", "training.walk(0.5)", "frozen.dequantize()")
        difference = tensor_difference("dequantize()", dense, frozen.dequantize())
        require(not difference, "a frozen weight that stays what it was", difference, code)
        moved = not torch.equal(training.frozen().dequantize(), dense)
        require(moved, "another frozen weight after more steps", "the same one", code)

    def test_training_projects_once_and_for_all(self) -> None:
        """`project` changes nothing at the start, and nothing the second time."""
        training = self.start(gaussian(6, 100))
        code = self.training_code(WEIGHT, "training.parametrization.project()", "training.parametrization.state_dict()")
        self._require_unmoved(training.parametrization, "a start that `project` leaves as it is", code)
        training.walk(0.5)
        self._require_unmoved(training.parametrization, "a second `project` that changes nothing", code)

    def _require_unmoved(self, parametrization: Parametrization, what: str, code: str) -> None:
        before = copy.deepcopy(parametrization.state_dict())
        parametrization.project()
        after = parametrization.state_dict()
        require(before.keys() == after.keys(), what, f"other tensors: {sorted(after)}", code)
        for name, tensor in before.items():
            if difference := tensor_difference(name, tensor, after[name]):
                raise ConformanceError(what, difference, code)

    def test_training_goes_on_from_a_loaded_state(self) -> None:
        """A parametrization's `state_dict` is all of its state: an interrupted training starts from it."""
        weight = gaussian(6, 100)
        training, again = self.start(weight), self.start(weight)
        training.walk(0.05)
        again.parametrization.load_state_dict(training.parametrization.state_dict())
        again.latent.data.copy_(training.latent)
        code = self.training_code(
            WEIGHT, "training.walk(0.05)", "# load training.parametrization.state_dict() into another one"
        )
        difference = tensor_difference("output()", training.output().detach(), again.output().detach())
        require(not difference, "the same output from a loaded state", difference, code)
        require_same_weight(training.frozen(), again.frozen(), "the same frozen weight from a loaded state", code)

    def test_training_is_offered_whole_or_not_at_all(self) -> None:
        """A quantizer that does not override `parametrize` says that it offers no training."""
        quantizer = self.subject()
        has_freeze = quantizer.freeze is not WeightQuantizer.freeze
        require(
            quantizer.is_trainable() == has_freeze,
            "both `parametrize` and `freeze`, or neither",
            "`freeze` alone" if has_freeze else "`parametrize` alone",
            self.code(WEIGHT),
        )

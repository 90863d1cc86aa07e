"""Checks of a quantizer that offers training: from the start over steps to the frozen weight.

Latent weights and parameters are float32: training in less is no part of the contract.
"""

from __future__ import annotations

import torch

from lowbit.testing.failure import require
from lowbit.testing.gradient_checks import GradientChecks
from lowbit.testing.matrices import SHAPES, gaussian, special_weights
from lowbit.testing.packers import require_same_weight
from lowbit.testing.sameness import tensor_difference
from lowbit.testing.training_state_checks import TrainingStateChecks


class TrainingChecks(GradientChecks, TrainingStateChecks):
    """Where training starts, and that a frozen weight is what was trained."""

    def test_training_of_any_shape_freezes_to_its_output(self) -> None:
        """Before and after steps; and steps change something."""
        for shape in SHAPES:
            weight = f"gaussian{shape}"
            training = self.start(gaussian(*shape))
            self.require_freezes(training, self.training_code(weight, "training.output(), training.frozen()"))
            before = training.output().detach()
            training.walk(0.05)
            code = self.training_code(weight, "training.walk(0.05)", "training.output(), training.frozen()")
            self.require_freezes(training, code)
            moved = not torch.equal(training.output(), before)
            require(moved, "another output after optimizer steps", "the same", code)

    def test_training_of_degenerate_weights_stays_finite(self) -> None:
        """With small steps and with absurd ones."""
        for kind, weight in special_weights().items():
            for rate in (1e-3, 0.3):
                training = self.start(weight)
                made = f"special_weights()[{kind!r}]"
                training.output().square().mean().backward()
                for parameter in training.trained():
                    require(
                        parameter.grad is None or bool(parameter.grad.isfinite().all()),
                        "finite gradients",
                        f"others, for {made}",
                        self.training_code(made, "training.output().square().mean().backward()"),
                    )
                training.walk(rate)
                code = self.training_code(made, f"training.walk({rate})", "training.output(), training.frozen()")
                self.require_freezes(training, code)
                finite = all(bool(parameter.isfinite().all()) for parameter in training.trained())
                require(finite, "finite parameters after optimizer steps", f"others, for {made}", code)

    def test_training_starts_from_the_quantized_weight_unless_its_class_says_otherwise(self) -> None:
        """`starts_as_quantized` is a promise; a class that does not give it says so in its docstring."""
        for shape in SHAPES:
            training = self.start(gaussian(*shape))
            code = self.training_code(f"gaussian{shape}", "training.output(), training.start.dequantize()")
            kind = type(training.parametrization)
            if not kind.starts_as_quantized:
                told = "first output need not be" in " ".join(str(kind.__doc__).split())
                require(told, "'first output need not be ...' in the docstring", "nothing of it", code)
                continue
            difference = tensor_difference("output()", training.start.dequantize(), training.output())
            require(not difference, "an output that starts as what the weight was quantized to", difference, code)
            require_same_weight(training.start, training.frozen(), "a start that freezes to itself", code)

    def test_training_lowers_an_error_that_it_descends(self) -> None:
        """Forty steps on the squared error to another matrix."""
        for magnitude in (1.0, 0.02):
            weight = gaussian(16, 128) * magnitude
            target = weight + magnitude * gaussian(16, 128, seed=1)
            training = self.start(weight)
            optimizer = torch.optim.AdamW(training.trained(), lr=0.03 * magnitude, weight_decay=0)
            errors = []
            for _ in range(40):
                error = (training.output() - target).square().mean()
                errors.append(float(error.detach()))
                optimizer.zero_grad()
                error.backward()
                optimizer.step()
                training.parametrization.project()
            code = self.training_code(
                f"gaussian(16, 128) * {magnitude}",
                f"target = weight + {magnitude} * gaussian(16, 128, seed=1)",
                "# 40 steps of AdamW on (training.output() - target).square().mean()",
                "training.output(), training.frozen()",
            )
            require(
                errors[-1] < 0.95 * errors[0],
                "a squared error that falls by 5 % or more in 40 steps",
                f"{errors[0]:.5g} at first, {errors[-1]:.5g} at last",
                code,
            )
            self.require_freezes(training, code)

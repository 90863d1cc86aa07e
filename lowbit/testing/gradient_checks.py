"""Checks of the gradients of a parametrization."""

from __future__ import annotations

import torch

from lowbit.testing.failure import ConformanceError, require
from lowbit.testing.matrices import gaussian
from lowbit.testing.training_subject import TrainingSubject


class GradientChecks(TrainingSubject):
    """What comes back through a parametrization."""

    def test_training_has_finite_float32_gradients_everywhere(self) -> None:
        """Every trained parameter gets one, of its shape, that is not all zeros."""
        for shape in ((8, 64), (7, 65), (4, 172)):
            training = self.start(gaussian(*shape))
            training.output().backward(gaussian(*shape, seed=1))
            code = self.training_code(f"gaussian{shape}", f"training.output().backward(gaussian(*{shape}, seed=1))")
            require(bool(training.trained()), "something to train", "no parameter", code)
            for number, parameter in enumerate(training.trained()):
                gradient = parameter.grad
                which = f"parameter {number} of shape {tuple(parameter.shape)}"
                require(parameter.dtype == torch.float32, "float32 parameters", f"{parameter.dtype}: {which}", code)
                if gradient is None:
                    raise ConformanceError("a gradient of every trained parameter", f"none of {which}", code)
                require(bool(gradient.isfinite().all()), "finite gradients", f"others in {which}", code)
                require(bool(gradient.any()), "a gradient that is not zero", f"nothing but zeros in {which}", code)

    def test_training_of_scales_alone_has_the_same_gradients(self) -> None:
        """A latent weight that needs no gradient changes no other one."""
        weight, incoming = gaussian(6, 100), gaussian(6, 100, seed=1)
        whole, part = self.start(weight), self.start(weight)
        part.latent.requires_grad_(False)
        whole.output().backward(incoming)
        code = self.training_code("gaussian(6, 100)", "training.latent.requires_grad_(False)", "training.output()")
        if not list(part.parametrization.parameters()):
            require(not part.output().requires_grad, "an output without gradient", "one with a gradient", code)
            return
        part.output().backward(incoming)
        require(part.latent.grad is None, "no gradient of a frozen latent weight", "one", code)
        pairs = zip(whole.parametrization.parameters(), part.parametrization.parameters(), strict=True)
        for first, second in pairs:
            same = first.grad is None or (second.grad is not None and torch.equal(first.grad, second.grad))
            require(same, "gradients of scales that do not depend on whether the latent weight has one", "others", code)

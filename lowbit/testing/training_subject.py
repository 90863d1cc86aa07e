"""The training that a class of checks is about."""

from __future__ import annotations

from unittest import SkipTest

import torch
from torch import Tensor

from lowbit.testing.failure import ConformanceError, require
from lowbit.testing.packers import require_packs
from lowbit.testing.quantizer_subject import QuantizerSubject
from lowbit.testing.sameness import tensor_difference
from lowbit.testing.training import Training, start_training


class TrainingSubject(QuantizerSubject):
    """Matrices in training, for the checks to use."""

    def start(self, weight: Tensor) -> Training:
        """Start to train a matrix.

        Raises:
            SkipTest: The quantizer offers no training.
        """
        if not self.subject().is_trainable():
            raise SkipTest(f"quantizer {self.subject().name!r} offers no training")
        return start_training(self.subject(), weight, self.options)

    def training_code(self, weight: str, *lines: str) -> str:
        """Return code that starts to train a matrix, and further lines."""
        start = f"training = start_training({self.subject().__name__}, weight, {dict(self.options)!r})"
        return self.code(weight, start, *lines).replace("\nquantized = ", "\n# quantized = ")

    def require_freezes(self, training: Training, code: str) -> None:
        """Check that freezing gives a weight that packs, and dequantizes to exactly what the training computed."""
        output, frozen = training.output(), training.frozen()
        require(
            output.dtype == torch.float32 and output.shape == training.latent.shape,
            f"a parametrization's output of float32 {tuple(training.latent.shape)}",
            f"{output.dtype} {tuple(output.shape)}",
            code,
        )
        require(bool(output.isfinite().all()), "finite output", "numbers that are not", code)
        if difference := tensor_difference("freeze(...).dequantize()", output.detach(), frozen.dequantize()):
            raise ConformanceError(
                "a frozen weight that dequantizes to exactly the parametrization's output", difference, code
            )
        require_packs(frozen, code.replace("training.frozen()", "quantized = training.frozen()"))

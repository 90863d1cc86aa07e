"""`QuantizerConformance`: everything that a weight quantizer must hold to."""

from __future__ import annotations

from lowbit.testing.checkpoint_checks import CheckpointChecks
from lowbit.testing.matrix_checks import MatrixChecks
from lowbit.testing.options_checks import OptionsChecks
from lowbit.testing.packing_checks import PackingChecks
from lowbit.testing.repeat_checks import RepeatChecks
from lowbit.testing.training_checks import TrainingChecks


class QuantizerConformance(MatrixChecks, RepeatChecks, PackingChecks, CheckpointChecks, TrainingChecks, OptionsChecks):
    """The checks of a weight quantizer, of the weights it makes, and of its training where it offers any.

    Example:
        class TestMine(QuantizerConformance):
            quantizer = MyQuantizer
    """

    checked = "quantizer"

"""Ternary quantization for lowbit: a quantizer, its format, packer and training, and a distillation loss."""

from collections.abc import Iterator

from lowbit import DistillationLoss, Method, Packer, QuantizedWeight, WeightQuantizer, hookimpl, training_presets

from lowbit_ternary.format import TernaryWeight
from lowbit_ternary.loss import JensenShannon
from lowbit_ternary.packer import Base3Packer
from lowbit_ternary.quantizer import TernaryQuantizer

__all__ = ["Base3Packer", "JensenShannon", "TernaryQuantizer", "TernaryWeight"]


@hookimpl
def lowbit_weight_quantizers() -> Iterator[type[WeightQuantizer]]:
    """Register the quantizer."""
    yield TernaryQuantizer


@hookimpl
def lowbit_formats() -> Iterator[type[QuantizedWeight]]:
    """Register the format, so that checkpoints can be read again."""
    yield TernaryWeight


@hookimpl
def lowbit_packers() -> Iterator[type[Packer]]:
    """Register the layout of five weights a byte."""
    yield Base3Packer


@hookimpl
def lowbit_distillation_losses() -> Iterator[type[DistillationLoss]]:
    """Register the loss."""
    yield JensenShannon


@hookimpl
def lowbit_methods() -> Iterator[Method]:
    """Register ternary quantization without and with training."""
    yield Method("ternary", quantizer="ternary", packer="base3", description="three levels a group of 64, no training")
    yield Method(
        "ternary-trained",
        quantizer="ternary",
        packer="base3",
        description="three levels a group of 64, trained block by block, then by the Jensen-Shannon divergence",
        presets=training_presets(loss="jsd"),
        preset="quick",
    )

"""The sign quantizer with a format of its own: packing, checkpoint and exact bits follow from the declaration.

Run it with: lowbit bench --plugin docs/examples/sign_format.py --method packed-sign
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import (
    Bits,
    Method,
    QuantizedWeight,
    Scales,
    WeightQuantizer,
    group_lengths,
    hookimpl,
    repeat_groups,
    storable_dtype,
    to_groups,
)


@dataclass(frozen=True)
class SignWeight(QuantizedWeight):
    """w = scale * (2 * sign - 1), one scale a group."""

    signs: Annotated[Tensor, Bits("out", "in")]
    scales: Annotated[Tensor, Scales("out", "groups")]
    group_size: int
    format: ClassVar[str] = "sign"

    def dequantize(self):
        """Return the matrix [out, in] as float32."""
        scales = repeat_groups(self.scales.float(), self.group_size, self.signs.shape[1])
        return scales * (2.0 * self.signs - 1.0)

    @property
    def nominal_bits(self):
        """One bit a weight; scales are left out, as papers do."""
        return 1.0


class PackedSignQuantizer(WeightQuantizer):
    """Keeps the sign of each weight and the mean magnitude of its group."""

    name = "packed-sign"

    class Config(BaseModel):
        """Options of the sign quantizer."""

        group_size: int = Field(128, ge=1, description="columns that share a scale")

    def quantize(self, weight, statistics, generator):
        """Quantize a matrix [out, in]."""
        size = self.config.group_size
        groups = to_groups(weight, size)  # [out, groups, size]; zeros fill a shorter last group
        scales = groups.abs().sum(-1) / group_lengths(weight.shape[1], size)  # [out, groups]
        return SignWeight(weight >= 0, scales.to(storable_dtype("float16", scales)), size)


@hookimpl
def lowbit_weight_quantizers():
    """Register the quantizer."""
    yield PackedSignQuantizer


@hookimpl
def lowbit_formats():
    """Register the format, so that checkpoints can be read again."""
    yield SignWeight


@hookimpl
def lowbit_methods():
    """Register a method that uses it."""
    yield Method("packed-sign", quantizer="packed-sign")

"""Plugins with one fault each: what the conformance kit must catch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from lowbit import (
    Codes,
    DenseWeight,
    DistillationLoss,
    Kernel,
    PackedWeight,
    Packer,
    QuantizedWeight,
    Scales,
    Support,
    TokenLoss,
    WeightQuantizer,
    hookimpl,
)
from lowbit.packing import GenericPacker


@dataclass(frozen=True)
class ThreeBitWeight(QuantizedWeight):
    """w = scale * (code - 4), one scale a row."""

    codes: Annotated[Tensor, Codes(3, "out", "in")]
    scales: Annotated[Tensor, Scales("out")]
    format: ClassVar[str] = "three-bit"

    def dequantize(self) -> Tensor:
        return self.scales[:, None] * (self.codes.float() - 4)

    @property
    def nominal_bits(self) -> float:
        return 3.0


@dataclass(frozen=True)
class LyingWeight(ThreeBitWeight):
    """w = scale * (code - 4), and a claim of one bit."""

    format: ClassVar[str] = "lying"

    @property
    def nominal_bits(self) -> float:
        return 1.0


@dataclass(frozen=True)
class ForgetfulWeight(ThreeBitWeight):
    """w = scale * (code - 4) * factor, and the factor is lost on the way to the file."""

    factor: float = 1.0
    format: ClassVar[str] = "forgetful"

    def dequantize(self) -> Tensor:
        return self.factor * super().dequantize()

    @classmethod
    def from_tensors(cls, spec: object, tensors: object) -> ForgetfulWeight:
        return cls(**tensors)  # type: ignore[arg-type]


def round_to_three_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.abs().amax(-1) / 4
    steps = torch.where(scales > 0, scales, 1.0)
    return ((weight / steps[:, None]).round().clamp(-4, 3) + 4).to(torch.uint8), scales


class ThreeBit(WeightQuantizer):
    """Rounds to eight levels a row, and does nothing wrong."""

    name = "three-bit"

    def quantize(self, weight: Tensor, statistics: object, generator: torch.Generator) -> QuantizedWeight:
        return ThreeBitWeight(*round_to_three_bits(weight))


class Random(ThreeBit):
    """Draws from the machine's own entropy."""

    name = "broken-random"

    def quantize(self, weight: Tensor, statistics: object, generator: torch.Generator) -> QuantizedWeight:
        codes, scales = round_to_three_bits(weight)
        return ThreeBitWeight(codes, scales * (1 + os.urandom(1)[0] / 4096 + os.urandom(1)[0] / 1e6))


class Lying(ThreeBit):
    """Claims one bit and stores three."""

    name = "broken-bits"

    def quantize(self, weight: Tensor, statistics: object, generator: torch.Generator) -> QuantizedWeight:
        return LyingWeight(*round_to_three_bits(weight))


class DividesByZero(ThreeBit):
    """Divides by the scale of a row of zeros."""

    name = "broken-zeros"

    def quantize(self, weight: Tensor, statistics: object, generator: torch.Generator) -> QuantizedWeight:
        scales = weight.abs().amax(-1, keepdim=True)
        return DenseWeight((weight / scales * 127).round() / 127 * scales, nominal_bits=8)


class Mutating(ThreeBit):
    """Writes into the weight it is given."""

    name = "broken-mutating"

    def quantize(self, weight: Tensor, statistics: object, generator: torch.Generator) -> QuantizedWeight:
        result = ThreeBitWeight(*round_to_three_bits(weight))
        weight.mul_(2)
        return result


class Undocumented(ThreeBit):
    """Has an option that nobody explains."""

    name = "broken-options"

    class Config(BaseModel):
        """Options."""

        told: int = Field(1, description="explained")
        secret: int = 2


class Forgetful(ThreeBit):
    """Makes weights that do not survive a file."""

    name = "broken-format"

    def quantize(self, weight: Tensor, statistics: object, generator: torch.Generator) -> QuantizedWeight:
        return ForgetfulWeight(*round_to_three_bits(weight), 0.75)


class LosesABit(Packer):
    """The generic layout with the last bit of the codes gone."""

    name = "broken-packer"
    formats = ("three-bit",)

    def layout(self, spec: object, format_class: object) -> object:  # type: ignore[override]
        return GenericPacker().layout(spec, format_class)  # type: ignore[arg-type]

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        packed = GenericPacker().pack(weight)
        codes = packed.tensors["codes"].clone()
        codes[0, 0] &= 0b11111011
        return PackedWeight(packed.spec, self.name, {**packed.tensors, "codes": codes})

    def unpack(self, packed: PackedWeight, format_class: type[QuantizedWeight]) -> QuantizedWeight:
        return GenericPacker().unpack(packed, format_class)


class OffByAThousandth(Kernel):
    """Multiplies by a weight that is a thousandth too large."""

    name = "broken-kernel"

    def supports(self, workload: object) -> Support:
        return Support(True)

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        dense = GenericPacker().unpack(packed, ThreeBitWeight).dequantize() * 1.001
        return torch.nn.functional.linear(x, dense.to(x.dtype), bias)


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return 1.01 * gradient


class WrongGradient(DistillationLoss):
    """Squared difference of logits whose gradient is a hundredth too large."""

    name = "broken-gradient"

    class Config(BaseModel):
        """None."""

    def __call__(self, batch: object) -> TokenLoss:
        difference = batch.student_logits - batch.teacher_logits  # type: ignore[attr-defined]
        return TokenLoss(_WrongGradient.apply(difference.square().mean(-1)))


@hookimpl
def lowbit_weight_quantizers() -> list[type]:
    return [ThreeBit, Random, Lying, DividesByZero, Mutating, Undocumented, Forgetful]


@hookimpl
def lowbit_formats() -> list[type]:
    return [ThreeBitWeight, LyingWeight, ForgetfulWeight]


@hookimpl
def lowbit_distillation_losses() -> list[type]:
    return [WrongGradient]

"""Small parts that break one promise each, and a registration that ends with the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from lowbit import (
    Bits,
    DenseWeight,
    DistillationLoss,
    Kernel,
    Method,
    PackedWeight,
    QuantizedWeight,
    Scales,
    Support,
    TokenLoss,
    WeightQuantizer,
    hookimpl,
)
from lowbit.packing import GenericPacker
from lowbit.pipeline.composition import Selection
from lowbit.registry import PluginSource, registry


class Plugin:
    """A plugin of whatever it is given."""

    def __init__(self, *items: object) -> None:
        self._items = items

    def _of(self, base: type) -> list[object]:
        return [item for item in self._items if isinstance(item, type) and issubclass(item, base)]

    @hookimpl
    def lowbit_weight_quantizers(self) -> list[object]:
        return self._of(WeightQuantizer)

    @hookimpl
    def lowbit_distillation_losses(self) -> list[object]:
        return self._of(DistillationLoss)

    @hookimpl
    def lowbit_formats(self) -> list[object]:
        return self._of(QuantizedWeight)

    @hookimpl
    def lowbit_packers(self) -> list[object]:
        return self._of(GenericPacker)

    @hookimpl
    def lowbit_kernels(self) -> list[object]:
        return self._of(Kernel)

    @hookimpl
    def lowbit_methods(self) -> list[object]:
        return [item for item in self._items if isinstance(item, Method)]


@contextmanager
def registered(*items: object) -> Iterator[None]:
    plugin = Plugin(*items)
    registry().register(plugin, PluginSource("parts", f"tests-{id(plugin)}"))
    try:
        yield
    finally:
        registry().unregister(plugin)


def shipped(kind: str) -> tuple[str, ...]:
    """Names of what comes with lowbit itself; other tests may have loaded plugins into the same process."""
    table = registry().table(kind)
    return tuple(sorted(name for name, entry in table.items() if entry.source.distribution == "lowbit"))


def shipped_selection(**changes: object) -> Selection:
    parts: dict[str, object] = {
        "quantizers": shipped("weight quantizer"),
        "losses": ("none", *shipped("distillation loss")),
        "packers": ("plain", *shipped("packer")),
        "kernels": tuple(kernel.name for kernel in registry().kernels() if kernel.name in shipped("kernel")),
    }
    return Selection(**{**parts, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class SignWeight(QuantizedWeight):
    signs: Annotated[Tensor, Bits("out", "in")]
    scales: Annotated[Tensor, Scales("out")]
    format: ClassVar[str] = "test-signs"

    def dequantize(self) -> Tensor:
        return torch.where(self.signs, 1.0, -1.0) * self.scales.float()[:, None]

    @property
    def nominal_bits(self) -> float:
        return 1.0


class Signs(WeightQuantizer):
    name = "test-signs"

    def quantize(self, weight: Tensor, statistics: object, generator: object) -> SignWeight:
        return SignWeight(weight > 0, weight.abs().mean(1).half())


class DenseQuantizer(WeightQuantizer):
    name = "test-dense"

    def quantize(self, weight: Tensor, statistics: object, generator: object) -> DenseWeight:
        return DenseWeight(weight.sign() * weight.abs().mean(1, keepdim=True), nominal_bits=1)


class Failing(WeightQuantizer):
    name = "test-failing"

    def quantize(self, weight: Tensor, statistics: object, generator: object) -> DenseWeight:
        raise ArithmeticError("no such luck")


class Choosing(Signs):
    name = "test-choosing"
    formats = ("test-signs", "dense")


class LossyPacker(GenericPacker):
    """Loses the sign of the first weight."""

    name: ClassVar[str] = "test-lossy"
    formats: ClassVar[tuple[str, ...]] = ("test-signs",)

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        packed = super().pack(weight)
        signs = packed.tensors["signs"].clone()
        signs[0, 0] ^= 1
        return PackedWeight(packed.spec, self.name, {**packed.tensors, "signs": signs})


class WrongKernel(Kernel):
    """Forgets the scales."""

    name: ClassVar[str] = "test-wrong"
    priority: ClassVar[int] = -2000

    def supports(self, workload: object) -> Support:
        return Support(True)

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        return x.new_zeros(*x.shape[:-1], packed.spec.sizes["out"])


class ThrowingKernel(WrongKernel):
    name: ClassVar[str] = "test-throwing"

    def supports(self, workload: object) -> Support:
        raise KeyError("bits")


class StuckLoss(DistillationLoss):
    """Has a gradient of zero, so that nothing is trained."""

    name = "test-stuck"

    def __call__(self, batch: object) -> TokenLoss:
        return TokenLoss(batch.student_logits.sum(-1) * 0)  # type: ignore[attr-defined]

"""PB-LLM's training mode: salient weights stay as they are, the others train behind their signs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowbit import Parametrization, ScaleDtype, group_lengths, repeat_groups, storable_dtype, to_groups
from lowbit_pbllm.format import PartialBinary, binary_levels

ScaleScope = Literal["row", "group", "matrix"]
Estimator = Literal["clipped", "identity"]


@dataclass(frozen=True)
class BinaryTraining:
    """How binarized weights are trained.

    Args:
        scale_scope: Which weights share a scale and a mean; those of a row and of a matrix are stored with each group.
        ste: The derivative of sign(x): 1 where |x| <= 1 and else 0 (PB-LLM, equation 2), or 1 everywhere. The bound is
            one of raw weights, as printed: hardly any weight of a language model reaches it.
        centered: Subtract the mean of the binarized weights before the sign, and add it after.
    """

    scale_scope: ScaleScope
    ste: Estimator
    centered: bool


class TrainablePartialBinary(Parametrization):
    """A partially binarized matrix whose binarized weights are trained (PB-LLM, section 3.4).

    Salient weights keep the values that they were quantized to. The others are scale * sign(w), the scale being the
    mean of |w|, which is the one of least squared error; it is computed from the latent weights in each forward pass
    and no gradient flows through it. So the latent weight is all there is to train.

    The first output need not be what the matrix was quantized to: scales are shared by other weights, and means may be
    left out.

    Args:
        weight: What the latent weight starts as, float32 [out, in].
        quantized: Where salient weights, and the signs that their codes occupy, come from.
        training: How the others are trained.
        scale_dtype: Stored dtype of scales and means, unless it would lose any or `quantized` needed more.
    """

    starts_as_quantized: ClassVar[bool] = False

    def __init__(
        self, weight: Tensor, quantized: PartialBinary, training: BinaryTraining, scale_dtype: ScaleDtype
    ) -> None:
        super().__init__(trains_latent_weight=True)
        quantized = _on(quantized, weight.device)
        salient = quantized.salient()
        self.quantized = quantized
        self.training_options = training
        self.salient: Tensor
        self.salient_values: Tensor
        self.counts: Tensor
        # All three follow from `quantized`, so that a saved state need not hold them.
        self.register_buffer("salient", salient, persistent=False)  # bool [out, in]
        self.register_buffer("salient_values", quantized.dequantize()[salient], persistent=False)  # [salient]
        self.register_buffer("counts", self._counts(), persistent=False)  # [out, groups]
        means, scales = self._statistics(weight)
        beside = torch.maximum(means.abs(), scales)
        stored = storable_dtype(scale_dtype, means, scales, beside=beside)
        self.scale_dtype = torch.promote_types(stored, quantized.scales.dtype)

    def forward(self, latent_weight: Tensor) -> Tensor:
        """Return the matrix with scales and means as they are stored, float32 [out, in]."""
        means, scales = self.levels(latent_weight)
        dense: Tensor = _Binarize.apply(latent_weight, means.float(), scales.float(), self)  # type: ignore[no-untyped-call]
        return dense

    @torch.no_grad()
    def levels(self, latent_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and scales of a latent weight [out, in] in their stored dtype, [out, groups] each."""
        largest = torch.finfo(self.scale_dtype).max
        means, scales = self._statistics(latent_weight.detach())
        return means.clamp(-largest, largest).to(self.scale_dtype), scales.clamp_max(largest).to(self.scale_dtype)

    @torch.no_grad()
    def frozen(self, latent_weight: Tensor) -> PartialBinary:
        """Return the quantized weight that a latent weight [out, in] stands for."""
        means, scales = self.levels(latent_weight)
        signs = latent_weight >= self.repeated(means.float())
        start = _on(self.quantized, latent_weight.device)
        signs = torch.where(self.salient, start.signs, signs)
        return replace(start, signs=signs, means=means, scales=scales)

    def repeated(self, levels: Tensor) -> Tensor:
        """Repeat levels [out, groups] for their columns, [out, in]."""
        return repeat_groups(levels, self.quantized.group_size, self.salient.shape[1])

    def _counts(self) -> Tensor:
        """Return how many binarized weights share the levels of each group, at least 1, float32 [out, groups]."""
        group_size = self.quantized.group_size
        lengths = group_lengths(self.salient.shape[1], group_size).to(self.salient.device)
        binary = lengths - to_groups(self.salient, group_size).sum(-1)
        return self._shared(binary).clamp_min(1).float()

    def _statistics(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and scales of the binarized weights, float32 [out, groups] each."""
        # The order of a sum, and so its last digit, depends on strides.
        kept = weight.masked_fill(self.salient, 0).contiguous()
        means = torch.zeros_like(self.counts)
        if self.training_options.centered:
            means = self._mean(kept)
            kept = kept.sub_(self.repeated(means)).masked_fill_(self.salient, 0)
        return means, self._mean(kept.abs_())

    def _mean(self, kept: Tensor) -> Tensor:
        """Return the means over what shares a scale of values [out, in] that are 0 for salient weights."""
        return self._shared(to_groups(kept, self.quantized.group_size).sum(-1)) / self.counts

    def _shared(self, sums: Tensor) -> Tensor:
        """Add up the sums [out, groups] of what shares a scale; return each group's share, [out, groups]."""
        if self.training_options.scale_scope == "group":
            return sums
        whole = sums.sum(1, keepdim=True) if self.training_options.scale_scope == "row" else sums.sum()
        return whole.expand(sums.shape).contiguous()


def _on(quantized: PartialBinary, device: torch.device) -> PartialBinary:
    moved = quantized.to(device)
    assert isinstance(moved, PartialBinary)
    return moved


class _Binarize(torch.autograd.Function):
    """Salient values, and mean + scale * sign(w - mean) elsewhere; only the sign passes a gradient on."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, means: Tensor, scales: Tensor, parametrization: TrainablePartialBinary
    ) -> Tensor:
        """Return the dequantized matrix, float32 [out, in]."""
        signs = weight >= parametrization.repeated(means)
        dense = binary_levels(signs, means, scales, parametrization.quantized.group_size)
        ctx.parametrization = parametrization
        clipped = parametrization.training_options.ste == "clipped"
        ctx.save_for_backward(scales, *((weight, means) if clipped else ()))
        return dense.masked_scatter_(parametrization.salient, parametrization.salient_values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the latent weight: 0 for salient weights."""
        scales, *centred = ctx.saved_tensors
        parametrization = ctx.parametrization
        to_weight = (gradient * parametrization.repeated(scales)).masked_fill_(parametrization.salient, 0)
        if centred:
            weight, means = centred
            to_weight.masked_fill_((weight - parametrization.repeated(means)).abs_() > 1, 0)
        return to_weight, None, None, None

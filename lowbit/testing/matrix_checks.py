"""Checks of a quantizer, one matrix at a time: what comes out, and that the weight stays as it is."""

from __future__ import annotations

import torch

from lowbit.testing.failure import ConformanceError, require
from lowbit.testing.matrices import energy, gaussian, statistics_for
from lowbit.testing.packers import require_same_weight
from lowbit.testing.quantizer_subject import QuantizerSubject
from lowbit.testing.quantizing import make_quantizer, quantize_all
from lowbit.testing.sameness import tensor_difference

STRIDE_TOLERANCE = 1e-3


class MatrixChecks(QuantizerSubject):
    """What one call of `quantize` must hold to, for odd shapes and degenerate numbers."""

    def test_any_shape_and_any_finite_numbers_are_quantized(self) -> None:
        """A layer may have any shape, and whole rows of zeros or of one number."""
        for each in quantize_all(self.subject(), self.options):
            if each.fault and each.is_finite:
                shape = tuple(each.weight.shape)
                raise ConformanceError(
                    f"a QuantizedWeight that dequantizes to float32 {shape} and holds to its declared fields",
                    f"for {each.code}: {each.fault}",
                    self.code(each.code, "quantized.spec(), quantized.dequantize()"),
                )

    def test_what_comes_out_is_finite(self) -> None:
        """One NaN in one layer makes every logit of the model NaN."""
        for each in quantize_all(self.subject(), self.options):
            if not each.is_finite:
                raise ConformanceError(
                    "finite numbers for finite weights, rows of zeros included",
                    f"{each.fault}, for {each.code}",
                    self.code(each.code, "quantized.dequantize()"),
                )

    def test_what_comes_out_is_nearer_to_the_weight_than_zeros(self) -> None:
        """Of a quantizer with a Hessian that holds for the error of the outputs; that of the weights may grow."""
        for each, quantized in self.whole():
            statistics = statistics_for(make_quantizer(self.subject(), **self.options).needs, each.weight.shape[1])
            hessian = None if statistics is None else statistics.hessian
            error, zeros = energy(quantized.dequantize() - each.weight, hessian), energy(each.weight, hessian)
            if error > zeros * (1 + 1e-6):
                raise ConformanceError(
                    f"an error of at most {zeros:.6g}, the weight's own energy (that of zeros in its place)",
                    f"{error:.6g}, for {each.code}",
                    self.code(each.code, "(quantized.dequantize() - weight).square().sum(), weight.square().sum()"),
                )

    def test_rows_of_zeros_stay_zeros_and_others_do_not_vanish(self) -> None:
        """A row of zeros is a pruned output."""
        weight = gaussian(5, 100)
        weight[2] = 0
        dense = self.quantize(weight).dequantize()
        if not bool(dense[2].isfinite().all()):
            return  # another check says so
        code = self.code("gaussian(5, 100)", "# with weight[2] = 0", "quantized.dequantize()")
        if bool(dense[2].any()):
            raise ConformanceError("zeros for a row of zeros", f"{dense[2][dense[2] != 0][0].item()}", code)
        gone = [row for row in (0, 1, 3, 4) if not bool(dense[row].any())]
        if gone:
            raise ConformanceError("no zeros for rows of normal numbers", f"nothing but zeros in row {gone[0]}", code)

    def test_strides_change_nothing(self) -> None:
        """A weight may be the transpose of what the model stores; sums may then round in another order."""
        self.require_repeatable()
        weight = gaussian(6, 100)
        first = self.quantize(weight.clone()).dequantize()
        second = self.quantize(weight.t().contiguous().t()).dequantize()
        error = float((first - second).norm() / first.norm())
        require(
            error < STRIDE_TOLERANCE,
            "the same for a weight that is not contiguous",
            f"a matrix that is {error:.3g} of its norm off",
            self.code("gaussian(6, 100).t().contiguous().t()", "quantized.dequantize()"),
        )

    def test_the_weight_is_not_changed(self) -> None:
        """Another layer may share the tensor, and error is measured against it."""
        weight = gaussian(6, 100)
        self.quantize(weight)
        if difference := tensor_difference("weight", gaussian(6, 100), weight):
            raise ConformanceError("the weight as it was before `quantize`", difference, self.code("gaussian(6, 100)"))

    def test_the_weight_is_not_kept(self) -> None:
        """The model's memory is freed or written again while the quantized weight lives on."""
        weight = gaussian(6, 100)
        quantized = self.quantize(weight)
        before = quantized.dequantize().clone()
        weight.zero_()
        if difference := tensor_difference("dequantize()", before, quantized.dequantize()):
            raise ConformanceError(
                "a quantized weight with tensors of its own",
                f"after weight.zero_(): {difference}",
                self.code("gaussian(6, 100)", "weight.zero_()", "quantized.dequantize()  # must be what it was"),
            )

    def test_one_layer_does_not_change_the_next(self) -> None:
        """One quantizer works on every layer of a model, tied weights twice; a resumed run starts in the middle."""
        self.require_repeatable()
        quantizer = make_quantizer(self.subject(), **self.options)
        first, other = gaussian(6, 100), gaussian(9, 130, seed=1)
        results = []
        for weight in (first, other, first):
            statistics = statistics_for(quantizer.needs, weight.shape[1])
            results.append(quantizer.quantize(weight.clone(), statistics, torch.Generator().manual_seed(3)))
        require_same_weight(
            results[0],
            results[2],
            "the same for the same weight and seed, whatever the quantizer worked on in between",
            self.code("gaussian(6, 100)", "# with one quantizer for this, another matrix, and this again", seed=3),
        )

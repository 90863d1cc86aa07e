"""`KernelConformance`: everything that a kernel must hold to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from unittest import SkipTest

import torch

from lowbit.contracts import Kernel, Packer, QuantizedWeight, WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.testing.bare_machine import bare_machine
from lowbit.testing.code import import_line, quantizing_code
from lowbit.testing.conformance import Conformance
from lowbit.testing.failure import ANY_ERROR, ConformanceError, note, require
from lowbit.testing.packers import packers_for
from lowbit.testing.products import activations, require_product, workload_on_cpu
from lowbit.testing.quantizing import quantize_all
from lowbit.testing.registering import registered
from lowbit.testing.sameness import tensor_difference

LARGEST_TOLERANCE = 0.05
"""Of a kernel that rounds activations on purpose, as a share of |row| |x|."""


class KernelConformance(Conformance):
    """The checks of a kernel, on the CPU, with weights that it serves.

    Example:
        class TestMyKernel(KernelConformance):
            kernel = MyKernel
            quantizer = MyQuantizer  # it makes weights that the kernel serves

    Args:
        kernel: The class that is checked.
        quantizer: Makes the weights.
        options: Of the quantizer, where they differ from the defaults.
        tolerance: Largest error of a product in float32, as a share of |row| |x|; more than 1e-5 only for a kernel that
            is approximate on purpose; `None` takes what the kernel declares.
    """

    kernel: ClassVar[type[Kernel]]
    quantizer: ClassVar[type[WeightQuantizer]]
    options: ClassVar[Mapping[str, Any]] = {}
    tolerance: ClassVar[float | None] = None

    def _tolerance(self) -> float:
        tolerance = self.kernel.tolerance if self.tolerance is None else self.tolerance
        require(
            tolerance <= LARGEST_TOLERANCE,
            f"a tolerance of at most {LARGEST_TOLERANCE} of |row| |x|",
            f"kernel {self.kernel.name!r} declares {tolerance:g}: that is no product of this weight",
            f"{self.kernel.__name__}.tolerance",
        )
        if tolerance > Kernel.tolerance:
            note(f"kernel {self.kernel.name!r} is approximate: off by up to {tolerance:g} of |row| |x|")
        return tolerance

    def weights(self) -> list[tuple[str, QuantizedWeight]]:
        """Return weights of several shapes, each after the code that makes it.

        Raises:
            LowbitError: The class lacks a kernel or a quantizer.
        """
        kernel, quantizer = getattr(type(self), "kernel", None), getattr(type(self), "quantizer", None)
        if kernel is None or quantizer is None:
            raise LowbitError(f"{type(self).__name__}: set `kernel`, and `quantizer` to what makes weights it serves")
        return [
            (f"{import_line(kernel)}\n{quantizing_code(quantizer, self.options, each.code)}", each.result)
            for each in quantize_all(quantizer, self.options)
            if each.result is not None and not each.fault and each.code.startswith("gaussian")
        ]

    def _served(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, QuantizedWeight, Packer]]:
        """Yield the weights and layouts that the kernel serves.

        Raises:
            SkipTest: There are none on this machine; the kernel's own reason is told.
        """
        kernel, reason, found = self.kernel(), "", False
        for code, weight in self.weights():
            with registered(type(weight)):
                for packer in packers_for(weight):
                    support = kernel.supports(workload_on_cpu(weight, packer, dtype))
                    reason = reason or support.reason
                    if support.served:
                        found = True
                        yield code, weight, packer
        if not found:
            raise SkipTest(f"kernel {self.kernel.name!r} serves none of these weights here: {reason}")

    def test_it_says_what_it_is(self) -> None:
        """The docstring says what it is for, and what it costs."""
        told = (self.kernel.__dict__.get("__doc__") or "").strip()
        require(bool(told), f"a docstring of {self.kernel.__name__}", "none", import_line(self.kernel))

    def test_a_refusal_has_a_reason(self) -> None:
        """`lowbit doctor` shows the reason; it is asked about any device, dtype and layout."""
        kernel = self.kernel()
        for code, weight in self.weights():
            for packer in packers_for(weight):
                for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                    self._require_reason(kernel, weight, packer, dtype, code)

    def _require_reason(
        self, kernel: Kernel, weight: QuantizedWeight, packer: Packer, dtype: torch.dtype, code: str
    ) -> None:
        shown = f"{code}\n{self.kernel.__name__}().supports(...)  # layout {packer.name!r}, {dtype}"
        try:
            support = kernel.supports(workload_on_cpu(weight, packer, dtype))
        except ANY_ERROR as error:  # whatever the code under test raises
            raise ConformanceError("an answer of `supports`", f"{type(error).__name__}: {error}", shown) from error
        answered = support.served or bool(support.reason.strip())
        require(answered, "a reason why the kernel does not serve a weight", "none", shown)

    def test_products_are_those_of_the_dense_weight_in_float32(self) -> None:
        """Over shapes, with and without bias, for strided activations and for none."""
        self._require_products(torch.float32)

    def test_products_are_those_of_the_dense_weight_in_half_types(self) -> None:
        """In bfloat16 and float16, up to rounding, where the kernel takes them."""
        reasons = []
        for dtype in (torch.bfloat16, torch.float16):
            try:
                self._require_products(dtype)
            except SkipTest as skip:
                reasons.append(str(skip))
        if len(reasons) == 2:
            raise SkipTest(reasons[0])

    def _require_products(self, dtype: torch.dtype) -> None:
        for code, weight, packer in self._served(dtype):
            for given in activations(weight.shape[1], dtype):
                require_product(self.kernel(), weight, packer, given, code, self._tolerance())

    def test_products_change_neither_activations_nor_weight(self) -> None:
        """The next layer reads the same activations, and the next product the same weight."""
        for code, weight, packer in self._served():
            packed = packer.pack(weight)
            before = {name: tensor.clone() for name, tensor in packed.tensors.items()}
            product = self.kernel().bind(packed, workload_on_cpu(weight, packer))
            for given in activations(weight.shape[1], torch.float32):
                x = given.x.clone()
                first = product(given.x, None)
                shown = f"{code}\n{given.code}\n# the bound product of layout {packer.name!r}"
                pairs = {"x": (x, given.x), **{n: (t, packed.tensors[n]) for n, t in before.items()}}
                for name, (expected, found) in pairs.items():
                    difference = tensor_difference(name, expected, found)
                    require(not difference, "activations and packed tensors as they were", difference, shown)
                difference = tensor_difference("the product", first, product(given.x, None))
                require(not difference, "the same product a second time", difference, shown)

    def test_it_refuses_rather_than_fails_without_what_it_is_compiled_by(self) -> None:
        """With neither CUDA nor Triton nor llvmlite, `supports` still answers."""
        answer = bare_machine().ask("support", {"kernel": self.kernel, "quantizer": self.quantizer}, self.options)
        fault = answer.get("error") or ("" if answer["served"] or answer["reason"].strip() else "a refusal, no reason")
        require(
            not fault,
            "an answer of `supports` where triton and llvmlite cannot be imported",
            fault,
            f"import sys\nsys.modules.update(triton=None, llvmlite=None)\n{import_line(self.kernel)}",
        )

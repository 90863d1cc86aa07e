"""The quantizer that a class of checks is about."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar
from unittest import SkipTest

from torch import Tensor

from lowbit.contracts import QuantizedWeight, WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.testing.code import quantizing_code
from lowbit.testing.conformance import Conformance
from lowbit.testing.matrices import gaussian
from lowbit.testing.quantizing import Quantized, quantize_all, quantize_matrix
from lowbit.testing.sameness import weight_difference


class QuantizerSubject(Conformance):
    """A quantizer and its options, for the checks to use.

    Args:
        quantizer: The class that is checked.
        options: Its options, where they differ from the defaults.
    """

    quantizer: ClassVar[type[WeightQuantizer]]
    options: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def subject(cls) -> type[WeightQuantizer]:
        """Return the quantizer.

        Raises:
            LowbitError: None was given.
        """
        found = getattr(cls, "quantizer", None)
        if not (isinstance(found, type) and issubclass(found, WeightQuantizer)):
            raise LowbitError(f"{cls.__name__}: set `quantizer` to your subclass of WeightQuantizer, not to {found!r}")
        return found

    def quantize(self, weight: Tensor, seed: int = 0) -> QuantizedWeight:
        """Quantize a matrix [out, in]."""
        return quantize_matrix(self.subject(), weight, seed, **self.options)

    def code(self, weight: str, *lines: str, seed: int = 0) -> str:
        """Return code that quantizes a matrix, and further lines."""
        return "\n".join([quantizing_code(self.subject(), self.options, weight, seed), *lines])

    def whole(self) -> list[tuple[Quantized, QuantizedWeight]]:
        """Return the matrices of the kit that became quantized weights; the others fail checks of their own.

        Raises:
            SkipTest: There is none.
        """
        found = [
            (each, each.result)
            for each in quantize_all(self.subject(), self.options)
            if each.result is not None and not each.fault
        ]
        if not found:
            raise SkipTest("no matrix came out as a whole quantized weight; another check says why")
        return found

    def example(self) -> QuantizedWeight:
        """Return an ordinary matrix, quantized.

        Raises:
            SkipTest: It cannot be quantized.
        """
        wanted = "gaussian(4, 172)"
        return next((weight for each, weight in self.whole() if each.code.startswith(wanted)), self.whole()[-1][1])

    def require_repeatable(self) -> None:
        """Leave out what compares two runs where two runs differ anyway.

        Raises:
            SkipTest: They do.
        """
        if not _is_repeatable(self.subject(), tuple(sorted(self.options.items(), key=str))):
            raise SkipTest("two runs with one seed differ: see test_one_seed_decides_everything")


@cache
def _is_repeatable(quantizer: type[WeightQuantizer], options: tuple[tuple[str, Any], ...]) -> bool:
    weight = gaussian(6, 100)
    first, second = (quantize_matrix(quantizer, weight.clone(), 3, **dict(options)) for _ in range(2))
    return not weight_difference(first, second)

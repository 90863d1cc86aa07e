"""`PackerConformance`: everything that a packer must hold to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from lowbit.contracts import Packer, QuantizedWeight, WeightQuantizer
from lowbit.errors import LowbitError
from lowbit.registry import registry
from lowbit.testing.code import import_line, quantizing_code
from lowbit.testing.conformance import Conformance
from lowbit.testing.failure import ANY_ERROR, ConformanceError, require
from lowbit.testing.packers import require_layout, require_unpacks, serves
from lowbit.testing.products import row_tiles_fault
from lowbit.testing.quantizing import quantize_all
from lowbit.testing.registering import registered
from lowbit.testing.round_trip import require_dense_logits, require_file_in_model, require_measured_bits
from lowbit.testing.tiny_checkpoint import tiny_checkpoint


class PackerConformance(Conformance):
    """The checks of a packer with weights of a format that it serves.

    Example:
        class TestMyPacker(PackerConformance):
            packer = MyPacker
            quantizer = MyQuantizer  # it makes weights of a format that the packer serves

    Args:
        packer: The class that is checked.
        quantizer: Makes the weights.
        options: Of the quantizer, where they differ from the defaults.
    """

    packer: ClassVar[type[Packer]]
    quantizer: ClassVar[type[WeightQuantizer]]
    options: ClassVar[Mapping[str, Any]] = {}

    def weights(self) -> list[tuple[str, QuantizedWeight]]:
        """Return weights that the packer serves, each after the code that makes it.

        Raises:
            LowbitError: The class lacks a packer or a quantizer, or the two do not go together.
        """
        packer, quantizer = getattr(type(self), "packer", None), getattr(type(self), "quantizer", None)
        if packer is None or quantizer is None:
            raise LowbitError(f"{type(self).__name__}: set `packer`, and `quantizer` to what makes a format it serves")
        whole = [each for each in quantize_all(quantizer, self.options) if each.result is not None and not each.fault]
        made = [
            (f"{import_line(packer)}\n{quantizing_code(quantizer, self.options, each.code)}", each.result)
            for each in whole
            if each.result is not None and serves(packer, each.result.format)
        ]
        if not made:
            raise LowbitError(
                f"packer {packer.name!r} serves {', '.join(packer.formats) or 'no format'}, and quantizer "
                f"{quantizer.name!r} makes none of these: give another quantizer or other options"
            )
        return [(f"{code}\npacker = {packer.__name__}()", weight) for code, weight in made]

    def test_it_says_what_it_is(self) -> None:
        """The docstring describes the layout well enough to write a reader."""
        told = (self.packer.__dict__.get("__doc__") or "").strip()
        require(bool(told), f"a docstring of {self.packer.__name__}", "none", import_line(self.packer))

    def test_the_formats_it_serves_are_registered(self) -> None:
        """A packer for a format that nobody knows is never used."""
        made = self.weights() if getattr(type(self), "quantizer", None) else []
        known = {*registry().table("format"), "*", *(weight.format for _, weight in made)}
        unknown = sorted(set(self.packer.formats) - known)
        require(
            bool(self.packer.formats) and not unknown,
            "formats that are registered",
            f"{', '.join(unknown) or 'none'}",
            f"{import_line(self.packer)}\n{self.packer.__name__}.formats",
        )

    def test_packing_loses_no_bit(self) -> None:
        """`unpack` gives back exactly what `pack` was given."""
        for code, weight in self.weights():
            require_unpacks(weight, self.packer(), code)

    def test_layouts_say_what_is_packed(self) -> None:
        """Modules are built from `layout` before a file is read, and bits are counted by it."""
        for code, weight in self.weights():
            require_layout(weight, self.packer(), code)

    def test_packing_keeps_nothing_of_the_packer(self) -> None:
        """Another process unpacks with a packer of its own."""
        for code, weight in self.weights()[:3]:
            packed = self.packer().pack(weight)
            try:
                again = self.packer().unpack(packed, type(weight)).dequantize()
            except ANY_ERROR as error:  # whatever the code under test raises
                raise ConformanceError(
                    "a packer that needs nothing but the packed tensors to unpack",
                    f"{type(error).__name__}: {error}",
                    f"{code}\ntype(packer)().unpack(packer.pack(quantized), type(quantized))",
                ) from error
            same = again.shape == weight.shape
            require(same, f"a matrix of shape {weight.shape}", f"{tuple(again.shape)}", code)

    def test_its_row_tiles_are_the_weight(self) -> None:
        """Kernels that read row tiles take them from the layout, without unpacking."""
        if self.packer.row_tiles is Packer.row_tiles:
            raise SkipTest(f"packer {self.packer.name!r} offers no row tiles")
        for code, weight in self.weights():
            if told := row_tiles_fault(self.packer(), weight):
                raise ConformanceError(
                    "row tiles that hold the planes and scales of the weight's plane form",
                    told,
                    f"{code}\npacker.row_tiles(packer.pack(quantized))",
                )

    @contextmanager
    def _checkpoint(self) -> Iterator[tuple[Path, str]]:
        code, weight = self.weights()[-1]
        with registered(self.quantizer, type(weight), self.packer):
            made = tiny_checkpoint(self.quantizer, self.options, self.packer.name)
            if made.error:
                raise ConformanceError("a checkpoint of a model of two blocks in this layout", made.error, code)
            shown = f"checkpoint_of({self.quantizer.__name__}, packer={self.packer.name!r}, **{dict(self.options)!r})"
            yield made.folder, f"{code}\n# a whole model: {shown}"

    def test_a_loaded_model_holds_the_bits_of_the_file(self) -> None:
        """`from_pretrained` gives every tensor as stored, and `save_pretrained` stores it again."""
        with self._checkpoint() as (folder, code):
            require_file_in_model(folder, code)

    def test_the_packed_model_computes_what_the_dense_one_does(self) -> None:
        """Logits in float32 through the kernels, beside those of the dequantized weights."""
        with self._checkpoint() as (folder, code):
            require_dense_logits(folder, code)

    def test_reported_bits_are_the_bytes_of_the_file(self) -> None:
        """The bits report of the checkpoint, counted once more from its safetensors files."""
        with self._checkpoint() as (folder, code):
            require_measured_bits(folder, code)

"""`FormatConformance`: everything that a format of quantized weights must hold to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch

from lowbit.contracts import DenseWeight, FormatSpec, QuantizedWeight, WeightQuantizer, declared_fields
from lowbit.errors import LowbitError
from lowbit.registry import registry
from lowbit.testing.code import import_line, quantizing_code
from lowbit.testing.conformance import Conformance
from lowbit.testing.declared_bits import require_honest_bits
from lowbit.testing.failure import ANY_ERROR, ConformanceError, require
from lowbit.testing.packers import packers_for, require_layout, require_same_weight, require_unpacks
from lowbit.testing.quantizing import quantize_all
from lowbit.testing.sameness import tensor_difference


class FormatConformance(Conformance):
    """The checks of a format: declaration, meaning, packing, and the way through a file.

    Example:
        class TestMyFormat(FormatConformance):
            quantizer = MyQuantizer  # it makes weights of the format

    Args:
        quantizer: The quantizer whose weights are checked, or override `examples`.
        options: Its options, where they differ from the defaults.
    """

    quantizer: ClassVar[type[WeightQuantizer]]
    options: ClassVar[Mapping[str, Any]] = {}

    def examples(self) -> Mapping[str, QuantizedWeight]:
        """Return weights of the format, each by the code that makes it; a subclass may make them by itself.

        Raises:
            LowbitError: There is no quantizer, or it makes none.
        """
        quantizer = getattr(type(self), "quantizer", None)
        if quantizer is None:
            raise LowbitError(f"{type(self).__name__}: set `quantizer` to what makes the format, or override examples")
        made = {
            quantizing_code(quantizer, self.options, each.code): each.result
            for each in quantize_all(quantizer, self.options)
            if each.result is not None and not each.fault
        }
        if not made:
            raise LowbitError(f"quantizer {quantizer.name!r} made no whole weight: check it by QuantizerConformance")
        return made

    def test_it_says_what_it_is(self) -> None:
        """The docstring says what a weight of the format means."""
        for code, weight in self.examples().items():
            kind = type(weight)
            told = (kind.__dict__.get("__doc__") or "").strip()
            # A dataclass without a docstring gets its signature as one.
            has_text = bool(told) and not told.startswith(f"{kind.__name__}(")
            require(has_text, f"a docstring of {kind.__name__} that says what its numbers mean", "none", code)

    def test_fields_hold_to_their_declaration(self) -> None:
        """Shapes, dtypes and ranges are as declared, and at least one tensor is."""
        for code, weight in self.examples().items():
            try:
                weight.spec()
                count = len(declared_fields(type(weight)))
            except (TypeError, ValueError) as error:
                raise ConformanceError(
                    "tensors as declared", f"{type(error).__name__}: {error}", f"{code}\nquantized.spec()"
                ) from error
            require(count > 0, "a declared tensor", "none", f"{code}\nquantized.spec()")

    def test_it_stands_for_one_matrix(self) -> None:
        """`dequantize` gives the same finite float32 matrix each time, and changes no tensor."""
        for code, weight in self.examples().items():
            before = {name: tensor.clone() for name, tensor in weight.tensors().items()}
            first, shown = weight.dequantize(), f"{code}\nquantized.dequantize()"
            require(first.dtype == torch.float32, "float32", str(first.dtype), shown)
            require(tuple(first.shape) == weight.shape, f"shape {weight.shape}", f"{tuple(first.shape)}", shown)
            require(bool(first.isfinite().all()), "finite numbers", "others", shown)
            first = first.clone()
            difference = tensor_difference("dequantize()", first, weight.dequantize())
            require(not difference, "the same matrix a second time", difference, shown)
            for name, tensor in before.items():
                if difference := tensor_difference(name, tensor, getattr(weight, name)):
                    raise ConformanceError("tensors that `dequantize` leaves alone", difference, shown)

    def test_tensors_and_parameters_restore_it(self) -> None:
        """A loader has the tensors of the file and the parameters of its JSON, and nothing else."""
        for code, weight in self.examples().items():
            spec = FormatSpec(**json.loads(json.dumps(asdict(weight.spec()))))
            shown = f"{code}\ntype(quantized).from_tensors(quantized.spec(), quantized.tensors())"
            self._require_restored(weight, lambda w=weight, s=spec: type(w).from_tensors(s, w.tensors()), shown)
            self._require_restored(weight, lambda w=weight: w.to("cpu"), f"{code}\nquantized.to('cpu')")

    def _require_restored(self, weight: QuantizedWeight, restore: Any, code: str) -> None:
        what = "a weight that its tensors and parameters restore, with every plain field"
        try:
            again = restore()
        except ANY_ERROR as error:  # whatever the code under test raises
            raise ConformanceError(what, f"{type(error).__name__}: {error}", code) from error
        for name, value in weight.spec().parameters.items():
            found = getattr(again, name, None)
            if found != value or type(found) is not type(value):
                raise ConformanceError(what, f"{name} is {found!r}, not {value!r}", code)
        require_same_weight(weight, again, what, code)
        if difference := tensor_difference("dequantize()", weight.dequantize(), again.dequantize()):
            raise ConformanceError(what, difference, code)

    def test_packing_loses_no_bit(self) -> None:
        """Through the generic packer and every other one that serves the format."""
        for code, weight in self.examples().items():
            for packer in packers_for(weight):
                require_unpacks(weight, packer, f"{code}\npacker = {type(packer).__name__}()")

    def test_layouts_say_what_is_packed(self) -> None:
        """Modules are built from layouts before a file is read, and bits are counted by them."""
        for code, weight in self.examples().items():
            for packer in packers_for(weight):
                require_layout(weight, packer, f"{code}\npacker = {type(packer).__name__}()")

    def test_claimed_bits_cover_what_is_declared(self) -> None:
        """Bits in papers leave out scales and masks, but no plane and no code."""
        for code, weight in self.examples().items():
            require_honest_bits(weight, code)

    def test_its_plane_form_is_the_same_matrix(self) -> None:
        """A kernel multiplies by the planes; `has_plane_form` is asked before there is a weight."""
        for code, weight in self.examples().items():
            form, promised = weight.plane_form(), type(weight).has_plane_form(weight.spec())
            shown = f"{code}\nquantized.plane_form(), type(quantized).has_plane_form(quantized.spec())"
            require(promised == (form is not None), f"has_plane_form() to say {form is not None}", str(promised), shown)
            if form is None:
                continue
            dense = weight.dequantize()
            error = (form.dense() - dense).abs()
            allowed = 1e-5 * dense.abs().amax(-1, keepdim=True)
            require(
                bool((error <= allowed).all()),
                "a plane form that adds up to `dequantize()`, up to rounding",
                f"{float(error.max()):.3g} off at most",
                shown,
            )

    def test_its_name_and_version_are_its_own(self) -> None:
        """Checkpoints carry both; another class of the same name would read them as noise."""
        for code, weight in self.examples().items():
            kind, entry = type(weight), registry().table("format").get(weight.format)
            shown = f"{import_line(kind)}\n{kind.__name__}.format, {kind.__name__}.version"
            require(
                entry is None or entry.item is kind,
                f"{kind.__name__} under the name {weight.format!r}",
                "" if entry is None else f"{entry.item.__name__} of {entry.source}; choose another name",
                shown,
            )
            valid = isinstance(kind.version, int) and kind.version >= 1
            require(valid, "a version of 1 or more", repr(kind.version), shown)
            if isinstance(weight, DenseWeight):
                require(kind is DenseWeight, "a format name of its own", f"a subclass of DenseWeight: {code}", shown)

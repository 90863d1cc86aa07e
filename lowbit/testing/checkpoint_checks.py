"""Checks of a quantizer over a whole model: checkpoint, loading, resuming, bits of the file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import SkipTest

from lowbit.errors import LowbitError
from lowbit.registry import registry
from lowbit.testing.checkpoints import InterruptedByKitError, hashes, recipe_of, write_tiny_checkpoint
from lowbit.testing.code import import_line, keywords
from lowbit.testing.failure import ConformanceError
from lowbit.testing.quantizer_subject import QuantizerSubject
from lowbit.testing.registering import is_registered, registered
from lowbit.testing.round_trip import (
    require_dense_logits,
    require_file_in_model,
    require_measured_bits,
    require_rest_unchanged,
)
from lowbit.testing.tiny_checkpoint import Made, new_folder, tiny_checkpoint


class CheckpointChecks(QuantizerSubject):
    """What a quantizer must hold to as part of a run."""

    @contextmanager
    def _known(self) -> Iterator[None]:
        """Register the quantizer and its formats, where no plugin did."""
        formats = list(dict.fromkeys(type(quantized) for _, quantized in self.whole()))
        names = {known.format for known in formats}
        taken = registry().table("format")
        # A name that another class took is what a check of its own tells.
        free = [known for known in formats if known.format not in taken]
        if len(names) < len(formats) or any(known.format in taken and not is_registered(known) for known in formats):
            raise SkipTest("the format's name belongs to another class: see test_the_format_is_registered")
        with registered(self.subject(), *free):
            yield

    @contextmanager
    def _checkpoint(self) -> Iterator[Path]:
        with self._known():
            yield self._made().require()

    def _made(self) -> Made:
        return tiny_checkpoint(self.subject(), self.options)

    def _loading(self, *lines: str) -> str:
        quantizer = self.subject()
        return "\n".join(
            [
                import_line(quantizer),
                "from lowbit.testing import *",
                f"with checkpoint_of({quantizer.__name__}{keywords(self.options)}) as checkpoint:",
                *(f"    {line}" for line in lines),
            ]
        )

    def test_a_whole_model_is_quantized(self) -> None:
        """Two blocks, with calibration, into a checkpoint."""
        with self._known():
            made = self._made()
        if made.error:
            raise ConformanceError("a checkpoint of a model of two blocks", made.error, self._loading("checkpoint"))

    def test_the_format_is_registered(self) -> None:
        """A checkpoint is read by the name of its format, in a process that never saw the quantizer."""
        for each, quantized in self.whole():
            kind = type(quantized)
            entry = registry().table("format").get(quantized.format)
            if entry is not None and entry.item is not kind:
                raise ConformanceError(
                    f"{kind.__name__} under the format name {quantized.format!r}",
                    f"{entry.item.__name__} of {entry.source}; choose another name",
                    self.code(each.code, "quantized.format"),
                )
            if entry is None and is_registered(self.subject()):
                raise ConformanceError(
                    f"that the plugin that registers quantizer {self.subject().name!r} registers its format, too",
                    f"no format named {quantized.format!r}; yield {kind.__name__} from lowbit_formats()",
                    self.code(each.code, "quantized.format"),
                )

    def test_a_loaded_model_holds_the_bits_of_the_file(self) -> None:
        """`from_pretrained` gives every tensor as stored, and `save_pretrained` stores it again."""
        with self._checkpoint() as folder:
            require_file_in_model(folder, self._loading("AutoModelForCausalLM.from_pretrained(checkpoint)"))

    def test_the_packed_model_computes_what_the_dense_one_does(self) -> None:
        """Logits in float32 through the kernels, beside those of the dequantized weights."""
        with self._checkpoint() as folder:
            require_dense_logits(folder, self._loading("AutoModelForCausalLM.from_pretrained(checkpoint)"))

    def test_biases_and_tied_embeddings_survive(self) -> None:
        """Whatever is not quantized stays what it was."""
        with self._checkpoint() as folder:
            require_rest_unchanged(folder, self._loading("AutoModelForCausalLM.from_pretrained(checkpoint)"))

    def test_reported_bits_are_the_bytes_of_the_file(self) -> None:
        """The bits report of the checkpoint, counted once more from its safetensors files."""
        with self._checkpoint() as folder:
            require_measured_bits(folder, self._loading("(checkpoint / 'config.json').read_text()"))

    def test_an_interrupted_run_ends_in_the_same_bytes(self) -> None:
        """Stopped after the first block and started again, as after a kill."""
        self.require_repeatable()
        with self._checkpoint() as undisturbed:
            recipe, folder = recipe_of(self.subject(), self.options), new_folder()
            try:
                write_tiny_checkpoint(recipe, folder, stop_after=0)
            except (InterruptedByKitError, LowbitError) as error:
                if not isinstance(error, InterruptedByKitError) and not isinstance(
                    error.__cause__, InterruptedByKitError
                ):
                    raise
            write_tiny_checkpoint(recipe, folder)
            expected, found = hashes(undisturbed), hashes(folder)
        shutil.rmtree(folder)
        differing = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        if differing:
            raise ConformanceError(
                "every file of the checkpoint as without the interruption, byte by byte",
                f"other bytes in {', '.join(differing)} (what the quantizer keeps from layer to layer is lost)",
                self._loading("# quantize, interrupt after a block, and run the same command again"),
            )

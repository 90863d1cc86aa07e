"""Every hook of lowbit: the one page that a plugin author must read.

A plugin is a module (or one file given with `--plugin`) with functions marked `@hookimpl`. Registration hooks yield
classes that carry a `name`; event hooks observe a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lowbit.contracts import (
        CalibrationSource,
        DistillationLoss,
        EvaluationStep,
        Kernel,
        Method,
        Packer,
        PublishedFile,
        QuantizedBlock,
        QuantizedLayer,
        QuantizedWeight,
        TrainingStep,
        WeightQuantizer,
        Workload,
    )

hookspec = pluggy.HookspecMarker("lowbit")
hookimpl = pluggy.HookimplMarker("lowbit")


class RegistrationHooks:
    """What a plugin adds."""

    @hookspec
    def lowbit_weight_quantizers(self) -> Iterable[type[WeightQuantizer]]:
        """Yield weight quantizers.

        Example:
            @hookimpl
            def lowbit_weight_quantizers():
                yield SignQuantizer

        Returns:
            Subclasses of `WeightQuantizer`.
        """
        yield from ()

    @hookspec
    def lowbit_distillation_losses(self) -> Iterable[type[DistillationLoss]]:
        """Yield losses that a student is trained with.

        Example:
            @hookimpl
            def lowbit_distillation_losses():
                yield Agreement

        Returns:
            Subclasses of `DistillationLoss`.
        """
        yield from ()

    @hookspec
    def lowbit_formats(self) -> Iterable[type[QuantizedWeight]]:
        """Yield formats: what a checkpoint needs to be read again.

        Example:
            @hookimpl
            def lowbit_formats():
                yield SignWeight

        Returns:
            Subclasses of `QuantizedWeight` with declared fields.
        """
        yield from ()

    @hookspec
    def lowbit_packers(self) -> Iterable[type[Packer]]:
        """Yield packers for layouts that a kernel wants; the generic packer needs no plugin.

        Example:
            @hookimpl
            def lowbit_packers():
                yield InterleavedSignPacker

        Returns:
            Subclasses of `Packer`.
        """
        yield from ()

    @hookspec
    def lowbit_kernels(self) -> Iterable[type[Kernel]]:
        """Yield kernels that multiply by packed weights.

        Example:
            @hookimpl
            def lowbit_kernels():
                yield SignKernel

        Returns:
            Subclasses of `Kernel`.
        """
        yield from ()

    @hookspec
    def lowbit_methods(self) -> Iterable[Method]:
        """Yield methods: named, partial recipes for `--method NAME`.

        Example:
            @hookimpl
            def lowbit_methods():
                yield Method("mine", quantizer="sign", options={"group_size": 64})

        Returns:
            `Method` records.
        """
        yield from ()

    @hookspec
    def lowbit_calibration_sources(self) -> Iterable[type[CalibrationSource]]:
        """Yield named calibration texts for `--calibration NAME`.

        Example:
            @hookimpl
            def lowbit_calibration_sources():
                yield MyCorpus

        Returns:
            Subclasses of `CalibrationSource`.
        """
        yield from ()

    @hookspec
    def lowbit_published_results(self) -> Iterable[PublishedFile]:
        """Yield files of published results, for `lowbit reproduce --paper NAME`.

        Example:
            @hookimpl
            def lowbit_published_results():
                yield PublishedFile(Path(__file__).parent / "published" / "mine.json", "tables of the paper")

        Returns:
            `PublishedFile` records; the file's name is the paper's.
        """
        yield from ()


class ChoiceHooks:
    """Where a plugin may overrule the core."""

    @hookspec(firstresult=True)
    def lowbit_choose_kernel(self, workload: Workload, kernels: Sequence[Kernel]) -> Kernel | None:
        """Choose among the kernels that serve a workload, or return `None` to leave it to their priorities.

        Example:
            @hookimpl
            def lowbit_choose_kernel(workload, kernels):
                return next((kernel for kernel in kernels if kernel.name == "reference"), None)

        Returns:
            One of `kernels`, or `None`.
        """


class EventHooks:
    """What a plugin may observe. Progress bars, logs and trackers are plugins on these.

    An observer that raises an exception does not end a run of hours: the exception becomes a warning that names the
    plugin, once a hook, and the run goes on. Interrupts (`KeyboardInterrupt`) pass.
    """

    @hookspec
    def lowbit_tokens_generated(self, recipe: Mapping[str, Any], finished: int, batches: int) -> None:
        """The parent wrote `finished` of `batches` batches of the tokens that weights are trained on.

        Example:
            @hookimpl
            def lowbit_tokens_generated(recipe, finished, batches):
                print(f"{recipe['method']}: {finished} of {batches} batches of training text")
        """

    @hookspec
    def lowbit_run_started(self, recipe: Mapping[str, Any], blocks: int, finished: int) -> None:
        """A quantization of `blocks` decoder blocks starts; `finished` of them were committed earlier.

        Example:
            @hookimpl
            def lowbit_run_started(recipe, blocks, finished):
                print(f"{recipe['method']}: {finished} of {blocks} blocks are done already")
        """

    @hookspec
    def lowbit_layer_quantized(self, layer: QuantizedLayer) -> None:
        """A weight was quantized; its block is not trained and not committed yet.

        Example:
            @hookimpl
            def lowbit_layer_quantized(layer):
                print(f"{layer.name}: {layer.seconds:.1f} s")
        """

    @hookspec
    def lowbit_block_quantized(self, block: QuantizedBlock, blocks: int) -> None:
        """A decoder block was quantized and committed.

        Example:
            @hookimpl
            def lowbit_block_quantized(block, blocks):
                print(f"block {block.index + 1}/{blocks}: {block.seconds:.1f} s")
        """

    @hookspec
    def lowbit_distillation_step(self, step: TrainingStep) -> None:
        """An optimizer step of block-wise reconstruction or of distillation was taken.

        Example:
            @hookimpl
            def lowbit_distillation_step(step):
                tracker.log({"loss": step.loss}, step=step.step)
        """

    @hookspec
    def lowbit_checkpoint_finished(
        self, recipe: Mapping[str, Any], checkpoint: Path, bits: Mapping[str, Any], cost: Mapping[str, float]
    ) -> None:
        """A checkpoint is whole: it was written, or the same command had written it before.

        Example:
            @hookimpl
            def lowbit_checkpoint_finished(recipe, checkpoint, bits, cost):
                print(f"{checkpoint}: {bits['quantized_bits']:.2f} bits a weight")
        """

    @hookspec
    def lowbit_evaluation_started(self, recipe: Mapping[str, Any], role: str, tasks: Sequence[str]) -> None:
        """A model is about to be evaluated; `role` is `parent`, `quantized` or, of `lowbit eval`, `evaluation`.

        Example:
            @hookimpl
            def lowbit_evaluation_started(recipe, role, tasks):
                print(f"{role} of {recipe['method']} on {', '.join(tasks)}")
        """

    @hookspec
    def lowbit_evaluation_step(self, step: EvaluationStep) -> None:
        """The evaluation answered another request, or ran another batch of windows.

        Example:
            @hookimpl
            def lowbit_evaluation_step(step):
                if step.done == step.total:
                    print(f"all {step.total} {step.unit} of {', '.join(step.tasks)} are answered")
        """

    @hookspec
    def lowbit_evaluation_finished(self, recipe: Mapping[str, Any], role: str, results: Mapping[str, Any]) -> None:
        """A model was evaluated; `results` is lm-eval's result of it.

        Example:
            @hookimpl
            def lowbit_evaluation_finished(recipe, role, results):
                for task, metrics in results["results"].items():
                    print(role, task, metrics)
        """

    @hookspec
    def lowbit_run_finished(self, result: Mapping[str, Any]) -> None:
        """A method of a bench ended well; `result` is what its result file holds under the key `lowbit`.

        Example:
            @hookimpl
            def lowbit_run_finished(result):
                tracker.log(result["bits"])
        """

    @hookspec
    def lowbit_run_failed(self, recipe: Mapping[str, Any], error: BaseException) -> None:
        """A run ended with an error or an interrupt.

        Example:
            @hookimpl
            def lowbit_run_failed(recipe, error):
                tracker.alert(str(error))
        """


class DiagnosticHooks:
    """Numbers that a plugin adds to the result."""

    @hookspec
    def lowbit_diagnostics(self, quantized: QuantizedWeight) -> Mapping[str, float]:
        """Return numbers worth keeping about one quantized weight; empty for formats that are not yours.

        Example:
            @hookimpl
            def lowbit_diagnostics(quantized):
                if not isinstance(quantized, SignWeight):
                    return {}
                return {"positive share": quantized.signs.float().mean().item()}

        Returns:
            Numbers by name.
        """
        return {}

    @hookspec
    def lowbit_output_diagnostics(
        self, quantized: QuantizedWeight, weight: Tensor, inputs: Tensor
    ) -> Mapping[str, float]:
        """Return numbers about a trained weight's outputs; empty for formats that are not yours.

        Example:
            @hookimpl
            def lowbit_output_diagnostics(quantized, weight, inputs):
                error = inputs @ (quantized.dequantize() - weight).T  # [tokens, out]
                return {"output error": error.square().mean().item()}

        Args:
            quantized: The weight after training.
            weight: The parent's matrix, float32 [out, in].
            inputs: What enters the layer in the trained model, float32 [tokens, in].

        Returns:
            Numbers by name.
        """
        return {}


HOOK_GROUPS: tuple[type, ...] = (RegistrationHooks, ChoiceHooks, EventHooks, DiagnosticHooks)

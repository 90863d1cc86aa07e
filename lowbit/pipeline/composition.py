"""Which quantizers, losses, packers and kernels go together, computed from what they declare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lowbit.contracts import FormatSpec, Kernel, Workload
from lowbit.errors import LowbitError
from lowbit.pipeline.composition_check import packer_classes, serves
from lowbit.pipeline.quantizer_trial import Trial, describe, try_quantizer
from lowbit.recipe import resolve_recipe
from lowbit.recipe.resolve import loss_config, quantizer_config
from lowbit.registry import Registry, unknown_name

NO_LOSS = "none"


@dataclass(frozen=True)
class Variant:
    """A quantizer with options as a method sets them, or with its defaults.

    Args:
        quantizer: Its name.
        options: Options that differ from the defaults.
        methods: The methods that use it so.
    """

    quantizer: str
    options: Mapping[str, Any]
    methods: tuple[str, ...]

    @property
    def label(self) -> str:
        """The quantizer's name and the options that differ."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.quantizer}({options})" if options else self.quantizer


@dataclass(frozen=True)
class Combination:
    """One quantizer, loss, packer and kernel.

    Args:
        variant: The quantizer with its options.
        loss: Name of the distillation loss; `NO_LOSS` for a quantizer alone.
        format: The format that the quantizer then makes; empty if it could not be found out.
        packer: Name of the packer.
        kernel: Name of the kernel.
        device: Where the kernel would run.
        dtype: Of the activations.
        refusals: Why it is refused, by the part that refuses: quantizer, loss, packer or kernel. Empty if allowed.
        tested: `no`, or the date on which it was last seen to work, with what has changed since.
    """

    variant: Variant
    loss: str
    format: str
    packer: str
    kernel: str
    device: str
    dtype: str
    refusals: Mapping[str, str] = field(default_factory=dict)
    tested: str = "no"

    @property
    def allowed(self) -> bool:
        """Whether nothing refuses it."""
        return not self.refusals

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "quantizer": self.variant.quantizer,
            "options": dict(self.variant.options),
            "methods": list(self.variant.methods),
            "loss": self.loss,
            "format": self.format,
            "packer": self.packer,
            "kernel": self.kernel,
            "device": self.device,
            "dtype": self.dtype,
            "allowed": self.allowed,
            "refusals": dict(self.refusals),
            "tested": self.tested,
        }


@dataclass(frozen=True)
class Selection:
    """What to combine; empty means everything of that kind.

    Args:
        quantizers: Names of quantizers.
        losses: Names of losses; `NO_LOSS` is a quantizer alone.
        packers: Names of packers.
        kernels: Names of kernels.
        methods: Names of methods whose quantizers to take.
        device: Where kernels would run; it need not be there.
        dtype: Of the activations.
    """

    quantizers: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    packers: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def combinations(registry: Registry, selection: Selection) -> list[Combination]:
    """Return the product of quantizers, losses, packers and kernels, each with what refuses it.

    Raises:
        LowbitError: A name in the selection is unknown, or the device is none that torch knows.
    """
    device = _device(selection.device)
    variants = _selected_variants(registry, selection)
    losses = _pick("distillation loss", selection.losses, [NO_LOSS, *sorted(registry.table("distillation loss"))])
    packers = _pick("packer", selection.packers, packer_classes(registry))
    kernels = _pick("kernel", selection.kernels, [kernel.name for kernel in registry.kernels()])
    ask = _asker(registry, device, selection.dtype)
    found = []
    for variant in variants:
        trial = try_quantizer(registry.quantizer(variant.quantizer), variant.options)
        for loss in losses:
            refused, specs = _training(registry, trial, loss)
            for format_name, spec in specs.items():
                for packer in packers:
                    for kernel in kernels:
                        refusals = {**refused, **ask(spec, packer, kernel)}
                        found.append(
                            Combination(
                                variant,
                                loss,
                                format_name,
                                packer,
                                kernel,
                                str(device),
                                str(selection.dtype).removeprefix("torch."),
                                refusals,
                            )
                        )
    return found


def variants(registry: Registry) -> list[Variant]:
    """Return every quantizer with its default options and as each method sets them, alike ones once."""
    used: dict[str, list[tuple[dict[str, Any], list[str]]]] = {
        name: [({}, [])] for name in sorted(registry.table("weight quantizer"))
    }
    broken = dict(unresolved_methods(registry))
    for method in registry.methods():
        settings = None if method.name in broken else resolve_recipe(registry, method.name).quantizer
        if settings is None:
            continue
        options = _unlike_defaults(registry, settings.name, settings.options)
        known = next((entry for entry in used[settings.name] if entry[0] == options), None)
        if known is None:
            used[settings.name].append((options, [method.name]))
        else:
            known[1].append(method.name)
    return [Variant(name, options, tuple(methods)) for name, entries in used.items() for options, methods in entries]


def unresolved_methods(registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield methods that make no recipe, such as one of a quantizer that is not installed, and why."""
    for method in registry.methods():
        try:
            resolve_recipe(registry, method.name)
        except LowbitError as error:
            yield method.name, str(error)


def unmet_formats(registry: Registry, shown: list[Variant]) -> Iterator[tuple[Variant, str]]:
    """Yield formats that quantizers declare but make of no small random matrix, so that no kernel was asked."""
    for variant in shown:
        trial = try_quantizer(registry.quantizer(variant.quantizer), variant.options)
        met = {*trial.specs(False), *trial.specs(True)}
        for name in sorted(set(trial.declared) - met):
            yield variant, name


def _unlike_defaults(registry: Registry, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        defaults = quantizer_config(registry.quantizer(name), {}).model_dump(mode="json")
    except LowbitError:  # An option has no default.
        defaults = {}
    return {key: value for key, value in options.items() if key not in defaults or value != defaults[key]}


def _selected_variants(registry: Registry, selection: Selection) -> list[Variant]:
    _pick("weight quantizer", selection.quantizers, registry.table("weight quantizer"))
    for method in selection.methods:
        registry.method(method)
    chosen = []
    for variant in variants(registry):
        by_name = not selection.quantizers or variant.quantizer in selection.quantizers
        methods = tuple(name for name in variant.methods if not selection.methods or name in selection.methods)
        if by_name and (methods or not selection.methods):
            chosen.append(Variant(variant.quantizer, variant.options, methods))
    return chosen


def _pick(kind: str, wanted: tuple[str, ...], known: Any) -> list[str]:
    for name in wanted:
        if name not in known:
            raise LowbitError(unknown_name(kind, name, known))
    return list(wanted or known)


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise LowbitError(f"there is no device {name!r}; write cpu, cuda or cuda:0, for example") from error


def _training(registry: Registry, trial: Trial, loss: str) -> tuple[dict[str, str], Mapping[str, FormatSpec | None]]:
    """Return what refuses a loss, and the formats of the weights that then come out."""
    if trial.problem:
        return {"quantizer": trial.problem}, dict.fromkeys(trial.declared or ("",))
    if loss == NO_LOSS:
        return {}, trial.specs(trained=False)
    try:
        loss_config(registry.distillation_loss(loss), {})
    except LowbitError as error:
        return {"loss": f"it has no default options: {error}"}, trial.specs(trained=trial.trainable)
    if not trial.trainable:
        return {"loss": f"the quantizer offers no training: {trial.training_problem}"}, trial.specs(trained=False)
    return {}, trial.specs(trained=True)


def _asker(
    registry: Registry, device: torch.device, dtype: torch.dtype
) -> Callable[[FormatSpec | None, str, str], dict[str, str]]:
    """Return what asks a packer and a kernel about a weight."""
    packers = {name: (packer, packer()) for name, packer in packer_classes(registry).items()}
    kernels = {kernel.name: kernel() for kernel in registry.kernels()}

    def ask(spec: FormatSpec | None, packer: str, kernel: str) -> dict[str, str]:
        if spec is None:
            return {}
        kind, made = packers[packer]
        if not serves(kind, spec.format):
            return {"packer": f"it lays out {', '.join(kind.formats)}, not {spec.format}"}
        if spec.format not in registry.table("format"):
            return {"quantizer": f"its format {spec.format} is not registered (hook lowbit_formats)"}
        return _ask_kernel(kernels[kernel], Workload(spec, made, registry.format(spec.format), device, dtype))

    return ask


def _ask_kernel(kernel: Kernel, workload: Workload) -> dict[str, str]:
    try:
        support = kernel.supports(workload)
    except (Exception, SystemExit) as error:  # whatever a plugin raises
        return {"kernel": f"it could not say whether it serves this: {describe(error)}"}
    return {} if support.served else {"kernel": support.reason or "it gives no reason"}

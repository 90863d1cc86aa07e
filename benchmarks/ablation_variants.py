"""The variants of the ablation as data: what each one changes of a base recipe, as overrides of `--set`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from lowbit.contracts.training import DistillationSettings, LossSettings, OptimizationSettings
from lowbit.errors import LowbitError
from lowbit.pipeline.training import training_source
from lowbit.recipe import Recipe

UNTRAINED = ("reconstruction=null", "distillation=null")
DBLLM_PTQ = (*UNTRAINED, "quantizer.scale_init=mse", "quantizer.orientation=per-group")
FROZEN = "quantizer.train_latent_weight=false"
MIXINGS = (0.0, 0.5, 1.0, 2.0)
GAMMAS = (0.25, 0.5, 1.0)
GENERATED_SHARES = (0.25, 0.5, 1.0, 2.0)
LEAST_GENERATED = 8

STAGES = "stages of training"
LOSS = "loss"
SMALLER = "fewer tokens"
MORE = "more tokens"


@dataclass(frozen=True)
class Variant:
    """One row of the ablation.

    Args:
        group: What is changed.
        name: To what.
        overrides: The change of the base recipe, each as after `--set`.
        budget: How its training tokens differ from the base's by plan; empty where they do not.
    """

    group: str
    name: str
    overrides: tuple[str, ...]
    budget: str = ""


ALONE_RATE = "distillation.weight_rate=0.005"
"""The presets' rate is for latent weights that settled on their levels; without reconstruction it is far too high."""

BASE = Variant("references", "base", ())
PTQ = Variant("references", "dbllm-ptq", DBLLM_PTQ, "no training")

QUANTIZER_VARIANTS = (
    *(
        Variant(
            "without training",
            f"{scale_init}, {orientation}{remark}",
            (*UNTRAINED, f"quantizer.scale_init={scale_init}", f"quantizer.orientation={orientation}"),
            "no training",
        )
        for scale_init, orientation, remark in (
            ("mse", "per-group", " (dbllm-ptq)"),
            ("minmax", "per-group", ""),
            ("mse", "positive", ""),
            ("mse", "negative", ""),
            ("minmax", "positive", " (the paper's start)"),
        )
    ),
    *(Variant("initialisation", value, (f"quantizer.scale_init={value}",)) for value in ("minmax", "mse")),
    *(
        Variant("orientation", value, (f"quantizer.orientation={value}",))
        for value in ("positive", "negative", "per-group")
    ),
    *(
        Variant("gradient rule", value, (f"quantizer.gradient={value}",))
        for value in ("levels", "codes", "identity", "identity-unscaled")
    ),
    Variant("latent weights", "trained", ("quantizer.train_latent_weight=true",)),
    *(
        Variant("latent weights", f"scales only, {rule}", (FROZEN, f"quantizer.gradient={rule}"))
        for rule in ("levels", "codes", "identity-unscaled")
    ),
)


def variants_of(base: Recipe) -> list[Variant]:
    """Return every variant of a base recipe; some may be the base itself.

    Raises:
        LowbitError: The recipe is not of dual binarization, or trains nothing.
    """
    if base.quantizer is None or base.quantizer.name != "fdb":
        raise LowbitError("the ablation is of dual binarization: the base recipe's quantizer must be `fdb`")
    if not base.trains:
        raise LowbitError(
            f"the base recipe trains nothing (method {base.method}, preset {base.preset}): name another --preset, or a "
            "--config with `distillation` or `reconstruction`"
        )
    losses = _losses(base.distillation) if base.distillation is not None else []
    return [BASE, PTQ, *QUANTIZER_VARIANTS, *_stages(base), *losses, *_data(base), *_peers(base)]


def _stages(base: Recipe) -> list[Variant]:
    """Return one stage, both, or neither; where one is left out, also with all tokens in the other one."""
    both = (base.reconstruction, base.distillation)
    batch = next(stage.batch_size for stage in reversed(both) if stage is not None)
    budget = sum(sequences(stage) for stage in both)
    blocks = _moved("reconstruction", base.reconstruction, batch, budget)
    whole = _moved("distillation", base.distillation, batch, budget)
    rows = [("neither (dbllm-ptq)", DBLLM_PTQ, "no training")]
    if base.reconstruction is not None and base.distillation is not None:
        rows += [
            ("reconstruction only", ("distillation=null",), SMALLER),
            ("reconstruction only, all steps moved to it", ("distillation=null", *blocks), ""),
            ("distillation only", ("reconstruction=null", ALONE_RATE), SMALLER),
            ("distillation only, all steps moved to it", ("reconstruction=null", ALONE_RATE, *whole), ""),
            ("both", (), ""),
        ]
    else:
        halves = (
            *_moved("reconstruction", base.reconstruction, batch, budget / 2),
            *_moved("distillation", base.distillation, batch, budget / 2),
        )
        added = blocks if base.reconstruction is None else whole
        rows += [
            ("reconstruction only", ("distillation=null", *blocks), ""),
            ("distillation only", ("reconstruction=null", *whole), ""),
            ("both, half of the steps each", halves, ""),
            ("both, all steps each", added, MORE),
        ]
    return [Variant(STAGES, *row) for row in rows]


def sequences(stage: OptimizationSettings | None) -> int:
    """Return how many sequences a stage of training processes by plan; a block-wise one counts those of one block."""
    return 0 if stage is None else stage.steps * stage.batch_size


def _moved(name: str, stage: OptimizationSettings | None, batch: int, budget: float) -> tuple[str, ...]:
    """Return the overrides that let a stage process so many sequences; one that the base lacks gets its batch size."""
    steps = max(1, round(budget / (stage.batch_size if stage is not None else batch)))
    given = () if stage is not None else (f"{name}.batch_size={batch}",)
    return (f"{name}.steps={steps}", *given)


def _losses(settings: DistillationSettings) -> list[Variant]:
    """Return other losses; those of `dad` differ from the base's `dad`, or from its defaults, in one option."""
    dad = next((_plain(loss) for loss in settings.loss if loss.name == "dad"), {"name": "dad"})
    rows: list[tuple[str, list[dict[str, Any]]]] = [
        ("ce", [{"name": "ce"}]),
        ("kl", [{"name": "kl"}]),
        ("kl, reverse", [{"name": "kl", "direction": "reverse"}]),
        *((f"dad, mixing {mixing:g}", [dad | {"form": "added", "mixing": mixing}]) for mixing in MIXINGS),
        *((f"dad, gamma {gamma:g}", [dad | {"teacher_gamma": gamma, "student_gamma": gamma}]) for gamma in GAMMAS),
        ("dad, replaced", [dad | {"form": "replaced"}]),
        ("base's and mse of hidden states", [*map(_plain, settings.loss), {"name": "mse", "normalize": "l2"}]),
    ]
    return [Variant(LOSS, name, (f"distillation.loss={json.dumps(losses)}",)) for name, losses in rows]


def _plain(loss: LossSettings) -> dict[str, Any]:
    return {"name": loss.name, "coefficient": loss.coefficient, **loss.options}


def _data(base: Recipe) -> list[Variant]:
    """Return other training tokens, and other numbers of generated sequences; steps and batches stay."""
    rows = [
        Variant("training data", name, (f"training_data.source={value}",))
        for name, value in (("calibration text", "calibration"), ("generated", "generated"), ("both", "both"))
    ]
    source = training_source(base)
    generated = source if source != "calibration" else "generated"
    beside = " beside the calibration text" if generated == "both" else ""
    counts = [max(LEAST_GENERATED, round(base.training_data.generated.n_samples * s)) for s in GENERATED_SHARES]
    return rows + [
        Variant(
            "generated sequences",
            f"{count}{beside}",
            (f"training_data.source={generated}", f"training_data.generated.n_samples={count}"),
        )
        for count in dict.fromkeys(counts)
    ]


def _peers(base: Recipe) -> list[Variant]:
    """Return other quantizers: learned-step trained as the base is, GPTQ and round to nearest."""
    assert base.quantizer is not None
    group = base.quantizer.options["group_size"]
    learned = ("quantizer.name=lsq", f"quantizer.group_size={group}", "quantizer.zero_point=float", "packer.name=plain")
    return [
        Variant("peers", f"lsq, group {group}, trained as the base", learned),
        Variant("peers", f"lsq, group {group}, untrained", (*UNTRAINED, *learned), "no training"),
        *(_untrained_peer("gptq", size) for size in (32, 64)),
        _untrained_peer("rtn", 64),
    ]


def _untrained_peer(name: str, group: int) -> Variant:
    chosen = (f"quantizer.name={name}", f"quantizer.group_size={group}", "quantizer.bits=2", "packer.name=plain")
    return Variant("peers", f"{name}, group {group}", (*UNTRAINED, *chosen), "no training")


def matching(variants: Sequence[Variant], patterns: Sequence[str]) -> list[Variant]:
    """Return the variants whose group, name, or `group/name` fits one of the patterns; all without a pattern.

    Raises:
        LowbitError: A pattern fits none.
    """

    def fits(variant: Variant, pattern: str) -> bool:
        names = (variant.group, variant.name, f"{variant.group}/{variant.name}")
        return any(fnmatchcase(name, pattern) for name in names)

    if lost := [pattern for pattern in patterns if not any(fits(variant, pattern) for variant in variants)]:
        groups = ", ".join(dict.fromkeys(variant.group for variant in variants))
        raise LowbitError(f"no variant fits {', '.join(map(repr, lost))}; the groups are {groups}; --list shows all")
    return [variant for variant in variants if not patterns or any(fits(variant, pattern) for pattern in patterns)]

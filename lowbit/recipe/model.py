"""`Recipe`: the whole of a run in one pydantic model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from lowbit.contracts.training import DistillationSettings, ReconstructionSettings, TrainingDataSettings
from lowbit.recipe.evaluation import EvaluationSettings
from lowbit.recipe.resources import ResourceSettings
from lowbit.recipe.rules import Rule

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Backend = Literal["dense", "packed"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ModelSettings(_Section):
    """Which model is quantized and how it is loaded."""

    path: str | None = Field(None, description="folder or hub id of the parent; none means the embedded model")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Dtype = Field("auto", description="of evaluation; auto: as stored, but no float16 on CPU")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class CalibrationSettings(_Section):
    """Which tokens a quantizer's statistics come from."""

    source: str | None = Field(None, description="registered name, or a .txt, .jsonl or .npz file")
    n_samples: int | None = Field(None, ge=1, description="how many sequences; none means 128, of a token file all")
    seq_len: int | None = Field(
        None, ge=2, description="tokens a sequence; none means 2048, of a token file all, at most the model's positions"
    )


class QuantizerSettings(BaseModel):
    """Which weight quantizer runs, and its options beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options without the name."""
        return dict(self.model_extra or {})


class PackerSettings(_Section):
    """Which packer lays out the quantized weights."""

    name: str = Field("plain", description="registered packer; `plain` serves every format")

    @model_validator(mode="before")
    @classmethod
    def _accept_a_name(cls, value: object) -> object:
        """Take a name alone for the packer of that name."""
        return {"name": value} if isinstance(value, str) else value


class Recipe(_Section):
    """A whole run: model, data, method, seed and evaluation.

    `quantizer` is `None` for the unquantized parent. `reconstruction` and `distillation` train what the quantizer made:
    one of them, both in turn, or, when both are `None`, neither. `eval` has exactly lm-eval's names.
    """

    version: Literal[1] = 1
    method: str
    model: ModelSettings = ModelSettings()
    seed: int = Field(0, ge=0, description="decides every random draw of the quantization")
    calibration: CalibrationSettings = CalibrationSettings()
    quantizer: QuantizerSettings | None = None
    packer: PackerSettings = PackerSettings()
    preset: str | None = Field(None, description="the method's preset that this recipe was made from")
    training_data: TrainingDataSettings = TrainingDataSettings()
    reconstruction: ReconstructionSettings | None = Field(None, description="block-wise training; none: no such")
    distillation: DistillationSettings | None = Field(None, description="end-to-end training; none: no such")
    rules: tuple[Rule, ...] = ()
    modules_to_not_convert: tuple[str, ...] = Field(
        (),
        description="names or patterns of layers to leave as they are",
        validation_alias=AliasChoices("modules_to_not_convert", "ignore"),
    )
    eval: EvaluationSettings = EvaluationSettings()
    backend: Backend = Field("dense", description="evaluate dequantized weights, or packed ones through the kernel")
    max_shard_size: int = Field(2_000_000_000, ge=1, description="bytes of a safetensors file before it is split")
    output_path: Path | None = Field(None, description="where results go")
    resources: ResourceSettings = ResourceSettings()

    @field_validator("modules_to_not_convert")
    @classmethod
    def _check_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            Rule(match=pattern, skip=True)
        return patterns

    def all_rules(self) -> tuple[Rule, ...]:
        """Return `modules_to_not_convert` as rules, followed by the recipe's own."""
        return (*(Rule(match=pattern, skip=True) for pattern in self.modules_to_not_convert), *self.rules)

    @property
    def trains(self) -> bool:
        """Whether weights are trained."""
        return self.reconstruction is not None or self.distillation is not None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, defaults included."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Return the hash of the recipe's canonical JSON: what is computed, not where, nor how often it is saved."""
        return canonical_sha256({key: value for key, value in _lasting(self.to_dict()).items() if key != "resources"})

    def checkpoint_part(self) -> dict[str, Any]:
        """Return the keys that decide the bytes of the checkpoint."""
        keys = ("version", "method", "seed", "quantizer", "packer", "rules", "modules_to_not_convert", "max_shard_size")
        trained = ("training_data", "reconstruction", "distillation") if self.trains else ()
        whole = _lasting(self.to_dict())
        model = {key: whole["model"][key] for key in ("path", "revision")}
        return {"model": model, "calibration": whole["calibration"], **{key: whole[key] for key in (*keys, *trained)}}


def _lasting(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without the settings that only say when an unfinished training is saved by the clock."""
    trainings = {part: recipe[part] for part in ("reconstruction", "distillation") if recipe.get(part)}
    kept = {
        part: {key: value for key, value in settings.items() if key != "checkpoint_minutes"}
        for part, settings in trainings.items()
    }
    return {**recipe, **kept}


def canonical_sha256(value: Any) -> str:
    """Return the sha256 of a JSON value with sorted keys and no blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()

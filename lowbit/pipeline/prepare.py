"""Everything that is known before the first weight is read: structure, plan, calibration tokens, identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowbit.calibration import (
    TOKEN_FILE_SUFFIX,
    CalibrationTokens,
    TokenRequest,
    load_calibration,
    token_file_shape,
)
from lowbit.contracts import DataAccess
from lowbit.embedded import calibration_path, model_path
from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import DEFAULT_CONTEXT_LENGTH, model_positions
from lowbit.models.checkpoint import find_model_folder
from lowbit.models.streamed import StreamedModel, build_skeleton, read_config
from lowbit.models.structure import find_decoder
from lowbit.pipeline.composition_check import require_composition
from lowbit.pipeline.identity import calibration_record, run_signature
from lowbit.pipeline.load import load_tokenizer
from lowbit.pipeline.resources import require_device
from lowbit.pipeline.targets import plan_for
from lowbit.pipeline.training import require_trainable_plan, training_source
from lowbit.quantization.plan import QuantizationPlan
from lowbit.recipe import Recipe
from lowbit.registry import registry

DEFAULT_CALIBRATION = "c4"
DEFAULT_SAMPLES = 128


@dataclass(frozen=True)
class Preparation:
    """Everything that is known before the first weight is read."""

    folder: Path
    source: StreamedModel
    plan: QuantizationPlan
    calibration: CalibrationTokens | None
    signature: dict[str, Any]


def model_folder(recipe: Recipe) -> Path:
    """Return the folder of a recipe's model; without one, the embedded model's."""
    if recipe.model.path is None:
        return model_path()
    return find_model_folder(recipe.model.path, recipe.model.revision)


def prepare(recipe: Recipe, device: str = "cpu") -> Preparation:
    """Build the model's structure, the plan and the calibration tokens.

    Raises:
        LowbitError: The parts of the recipe do not go together, or the model, a rule or the calibration does not hold
            up.
    """
    if recipe.quantizer is None:
        raise LowbitError(f"method {recipe.method!r} quantizes nothing; it can be benched, but not saved")
    require_composition(recipe, registry())
    require_device(device)
    folder = model_folder(recipe)
    if recipe.trains and recipe.rules:
        _require_trainable_layers(recipe, folder)
    source = StreamedModel(folder, recipe.model.trust_remote_code, device)
    plan = plan_for(recipe, source.decoder, registry())
    require_trainable_plan(recipe, plan)
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    tokens = calibration_tokens(recipe, source, tokenizer) if _needs_calibration(recipe, plan) else None
    record = calibration_record(tokens, recipe.seed)
    signature = run_signature(recipe, source.checkpoint.sha256(), record, registry())
    return Preparation(folder, source, plan, tokens, signature)


def _require_trainable_layers(recipe: Recipe, folder: Path) -> None:
    """Check from the model's structure alone that rules give every layer a quantizer that offers training."""
    trusted = recipe.model.trust_remote_code
    decoder = find_decoder(build_skeleton(read_config(folder, trusted), trusted))
    require_trainable_plan(recipe, plan_for(recipe, decoder, registry()))


def _needs_calibration(recipe: Recipe, plan: QuantizationPlan) -> bool:
    """Say whether calibration tokens are read; of a run that trains, statistics come from its training tokens."""
    return training_source(recipe) != "generated" if recipe.trains else plan.needs_statistics


def calibration_tokens(recipe: Recipe, source: StreamedModel, tokenizer: Any) -> CalibrationTokens:
    """Load the calibration tokens of a recipe."""
    return load_calibration(
        _calibration_name(recipe),
        registry().calibration_source,
        lambda text: list(tokenizer(text, verbose=False)["input_ids"]),
        calibration_request(recipe, source),
        DataAccess(None if recipe.eval.data_dir is None else Path(recipe.eval.data_dir)),
    )


def _calibration_name(recipe: Recipe) -> str:
    default = str(calibration_path()) if recipe.model.path is None else DEFAULT_CALIBRATION
    return recipe.calibration.source or default


def training_length(recipe: Recipe, source: StreamedModel) -> int:
    """Return the tokens of a training sequence: as asked for, but no more than a calibration sequence has."""
    longest = calibration_request(recipe, source).seq_len
    return min(recipe.training_data.seq_len or longest, longest)


def calibration_request(recipe: Recipe, source: StreamedModel) -> TokenRequest:
    """Return how many calibration tokens are wanted: as asked for, else all of a token file, else 128 x 2048.

    Sequences are never longer than the model's positions.

    Raises:
        LowbitError: More tokens a sequence are asked for than the model has positions, or a token file is damaged.
    """
    positions = model_positions(source.config) or DEFAULT_CONTEXT_LENGTH
    name = _calibration_name(recipe)
    samples, length = DEFAULT_SAMPLES, DEFAULT_CONTEXT_LENGTH
    if name.endswith(TOKEN_FILE_SUFFIX):
        samples, length = token_file_shape(Path(name))
    wanted = recipe.calibration
    if wanted.seq_len is not None and wanted.seq_len > positions:
        raise LowbitError(f"--seq_len {wanted.seq_len} exceeds the model's {positions} positions")
    return TokenRequest(
        n_samples=wanted.n_samples or samples,
        seq_len=wanted.seq_len or min(length, positions),
        vocabulary=source.config.vocab_size,
        seed=recipe.seed,
    )

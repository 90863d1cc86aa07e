"""Lets a model write token sequences for calibration and training without data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowbit.calibration import TOKEN_FILE_SUFFIX, CalibrationTokens
from lowbit.contracts.training import GenerationSettings
from lowbit.distillation.generated_tokens import GenerationRequest, generated_tokens, write_generated
from lowbit.durable import make_directory, one_at_a_time, remove_leftovers
from lowbit.embedded import model_path
from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import DEFAULT_CONTEXT_LENGTH, model_positions
from lowbit.models.checkpoint import find_model_folder, model_hash
from lowbit.models.streamed import read_config
from lowbit.pipeline.load import load, load_tokenizer, resolve_dtype
from lowbit.pipeline.resources import require_device
from lowbit.recipe.model import Dtype

Announce = Callable[[int, int], None]
"""Hears how many batches are finished, and of how many."""


def generate_tokens(
    folder_of_model: Path,
    settings: GenerationSettings,
    length: int,
    seed: int,
    device: str,
    store: Path,
    announce: Announce,
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
) -> CalibrationTokens:
    """Return tokens that a model writes, from a folder that keeps them, or from the model where it has none yet.

    Args:
        folder_of_model: The model's folder.
        settings: How sequences are written; its `seq_len` is not read.
        length: Tokens a sequence.
        seed: Decides every draw.
        device: Where the model runs; it does not decide which kept tokens are used.
        store: The folder of kept tokens; an interrupted run continues there.
        announce: Hears of progress; not called when the tokens were kept.
        dtype: In which the model computes.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        LowbitError: The model, the device, the length or a kept file does not hold up.
    """
    require_device(device)
    check_length(folder_of_model, length, trust_remote_code)
    return generated_tokens(
        store,
        _key(folder_of_model, dtype, device),
        settings,
        length,
        lambda: load(folder_of_model, "dense", dtype, device, trust_remote_code),
        load_tokenizer(folder_of_model, trust_remote_code),
        seed,
        announce,
    )


def generate_file(
    output: Path,
    model: str | None,
    settings: GenerationSettings,
    seed: int,
    announce: Announce,
    device: str = "cpu",
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> CalibrationTokens:
    """Write a token file of a model's own text, and beside it a JSON file that says how it was made.

    An interrupted run continues; a file that the same call made is left as it is.

    Args:
        output: The `.npz` file, usable as calibration.
        model: Folder or hub id; `None` for the embedded model.
        settings: How sequences are written; without `seq_len` they have 2048 tokens, at most the model's positions.
        seed: Decides every draw.
        announce: Hears of progress; not called when the file was whole.
        device: Where the model runs.
        dtype: In which the model computes.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        LowbitError: The model, the device, the length or the file does not hold up, or another process writes it.
    """
    if output.suffix != TOKEN_FILE_SUFFIX:
        raise LowbitError(f"a token file's name ends in {TOKEN_FILE_SUFFIX}; got {output}")
    require_device(device)
    folder = model_path() if model is None else find_model_folder(model, revision)
    positions = check_length(folder, settings.seq_len or 0, trust_remote_code)
    length = settings.seq_len or min(DEFAULT_CONTEXT_LENGTH, positions)
    request = GenerationRequest(_key(folder, dtype, device), settings, length, seed)
    make_directory(output.parent)
    lock = output.with_name(output.name + ".lock")
    with one_at_a_time(lock, f"writing {output}", wait=False):
        for written in (output, output.with_suffix(".json")):
            remove_leftovers(written)
        try:
            return write_generated(
                output,
                request,
                lambda: load(folder, "dense", dtype, device, trust_remote_code),
                load_tokenizer(folder, trust_remote_code),
                announce,
            )
        finally:
            lock.unlink(missing_ok=True)


def check_length(folder: Path, length: int, trust_remote_code: bool = False) -> int:
    """Return a model's positions, 2048 when it sets no bound.

    Raises:
        LowbitError: It has fewer than `length`.
    """
    positions = model_positions(read_config(folder, trust_remote_code))
    if positions is not None and length > positions:
        raise LowbitError(f"generated sequences of {length} tokens exceed the model's {positions} positions")
    return positions or DEFAULT_CONTEXT_LENGTH


def _key(folder: Path, dtype: Dtype, device: str) -> dict[str, str]:
    """Return what stands for the model; the device is left out, so that tokens from a GPU serve everywhere."""
    return {"model_sha256": model_hash(folder), "dtype": resolve_dtype(folder, dtype, device)}

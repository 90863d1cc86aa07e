"""How the Triton kernels can be run: block sizes, warps and splits, and which of them to try."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from lowbit import RowTiles

GEMV_ROWS = 16
"""Most activation rows that the kernel for few rows takes."""
BUCKETS = (1, 8, 16, 64, 512)
"""Numbers of activation rows that configurations are chosen for; the last one stands for all beyond 64."""
WARPS_WANTED = 2048
"""Warps that keep the memory of a large card busy: about sixteen on each of 132 multiprocessors."""
TALL_ROW_TILES = 1024
"""Row tiles from which programs of two of them are still enough to keep a large card busy."""


@dataclass(frozen=True)
class GemvConfiguration:
    """How the kernel for few rows runs.

    Args:
        tiles: Row tiles of sixteen rows a program.
        segments: Steps of the input dimension that a program's warps take at once; a multiple of `warps`.
        warps: Warps a program.
        stages: Steps that loads are ahead.
        parts: Parts that the input dimension is split into over programs.
    """

    tiles: int
    segments: int
    warps: int
    stages: int
    parts: int = 1


@dataclass(frozen=True)
class GemmConfiguration:
    """How the kernel for many rows runs.

    Args:
        tiles: Row tiles of sixteen rows a program.
        x_rows: Rows of activations a program.
        warps: Warps a program.
        stages: Steps that loads are ahead.
    """

    tiles: int
    x_rows: int
    warps: int
    stages: int


Configuration = GemvConfiguration | GemmConfiguration


def bucket_of(x_rows: int) -> int:
    """Return the bucket of a number of activation rows."""
    return next((bucket for bucket in BUCKETS if x_rows <= bucket), BUCKETS[-1])


def step_words(tiles: RowTiles, bucket: int, wide: bool) -> int:
    """Return the 32-bit words of a row that a step takes: a power of two that divides those of a group.

    Args:
        tiles: The weight.
        bucket: From `bucket_of`.
        wide: Whether activations are float32, which take more registers.
    """
    largest = 4 if bucket <= GEMV_ROWS and not wide else 2
    return next(words for words in (4, 2, 1) if words <= largest and tiles.group_words % words == 0)


def default_configuration(tiles: RowTiles, bucket: int, wide: bool) -> Configuration:
    """Return what is sensible without a measurement.

    Args:
        tiles: The weight.
        bucket: From `bucket_of`.
        wide: Whether activations are float32, which take more registers.
    """
    return candidate_configurations(tiles, bucket, wide)[0]


def candidate_configurations(tiles: RowTiles, bucket: int, wide: bool) -> tuple[Configuration, ...]:
    """Return what is worth a measurement, the default first; the arguments are those of the default."""
    if bucket > GEMV_ROWS:
        return _gemm_candidates(bucket, wide, tiles.columns % (32 * tiles.group_words) != 0)
    row_tiles = tiles.words.shape[0]
    steps = tiles.groups * tiles.group_words // step_words(tiles, bucket, wide)
    if wide:
        shapes = [(1, 4, 4, 3), (1, 8, 8, 3), (2, 4, 4, 3)]
    elif bucket == GEMV_ROWS:
        shapes = [(1, 8, 8, 3), (1, 4, 4, 3), (2, 4, 4, 3), (2, 8, 8, 3)]
    else:
        shapes = [(1, 8, 8, 3), (2, 8, 4, 3), (1, 8, 4, 3), (2, 4, 4, 3), (4, 4, 4, 3), (2, 8, 8, 3)]
    if not wide and row_tiles >= TALL_ROW_TILES:
        shapes.sort(
            key=lambda shape: shape[0] != 2
        )  # two row tiles a program share the activations' way into registers
    found = []
    for count, segments, warps, stages in shapes:
        parts = _parts(-(-row_tiles // count) * warps, steps // segments)
        found.append(GemvConfiguration(count, segments, warps, stages, parts))
    first = found[0]
    other = first.parts // 2 if first.parts > 1 else 2
    if steps // first.segments >= 4 * other:
        found.append(GemvConfiguration(first.tiles, first.segments, first.warps, first.stages, other))
    return tuple(found)


def _parts(warps: int, iterations: int) -> int:
    """Split until enough warps run, but leave four iterations a program, so that loads have something to run ahead."""
    parts = 1
    while parts < 16 and warps * parts < WARPS_WANTED and iterations >= 8 * parts:
        parts *= 2
    return parts


def _gemm_candidates(bucket: int, wide: bool, masked: bool) -> tuple[GemmConfiguration, ...]:
    """Return candidates; where columns are `masked`, only those that leave registers for it."""
    if masked and not wide:
        shapes = [(4, 32, 4, 3), (8, 64, 8, 3)]
    elif wide:
        shapes = [(2, 32, 4, 2), (4, 32, 8, 2), (4, 64, 8, 2)]
    elif bucket == BUCKETS[-1]:
        shapes = [(8, 128, 8, 3), (8, 64, 4, 3), (8, 128, 8, 2), (8, 64, 8, 3)]
    else:
        shapes = [(4, 64, 4, 3), (4, 32, 4, 3), (8, 64, 8, 3), (4, 64, 4, 4)]
    return tuple(GemmConfiguration(*shape) for shape in shapes)


Plan = Mapping[int, Configuration]
"""A configuration by bucket; buckets without one run the default."""


def write_plan(plan: Plan) -> str:
    """Return the plan as text, which a custom operator can take as an argument."""
    return json.dumps({str(bucket): asdict(configuration) for bucket, configuration in plan.items()}, sort_keys=True)


@lru_cache(maxsize=1024)
def read_plan(text: str) -> Plan:
    """Undo `write_plan`; no text is an empty plan."""
    if not text:
        return {}
    return {int(bucket): read_configuration(int(bucket), values) for bucket, values in json.loads(text).items()}


def read_configuration(bucket: int, values: Mapping[str, int]) -> Configuration:
    """Build a configuration from its fields.

    Raises:
        TypeError: The fields are others.
        ValueError: A field is no positive integer.
    """
    wrong = {name: value for name, value in values.items() if type(value) is not int or value < 1}
    if wrong:
        raise ValueError(f"a configuration holds positive integers, not {wrong}")
    return GemvConfiguration(**values) if bucket <= GEMV_ROWS else GemmConfiguration(**values)

"""lowbit: ultra-low-bit weight quantization of large language models, written, run and compared.

Importing this package loads neither torch nor transformers: public names are looked up when they are first used, and
the transformers quantizer is registered as soon as transformers is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lowbit.transformers_hook import register_when_imported

if TYPE_CHECKING:
    from lowbit.contracts import (
        BitPlanes,
        Bits,
        CalibrationSource,
        Codes,
        DataAccess,
        DenseWeight,
        DistillationBatch,
        DistillationLoss,
        DistillationSettings,
        EvaluationStep,
        FidelityConfig,
        FormatSpec,
        Indices,
        Kernel,
        LayerReport,
        LayerStatistics,
        Method,
        PackedProduct,
        PackedWeight,
        Packer,
        Parametrization,
        PlaneForm,
        PublishedCell,
        PublishedFile,
        PublishedProtocol,
        PublishedResults,
        QuantizedBlock,
        QuantizedLayer,
        QuantizedWeight,
        RowTiles,
        Scales,
        SparseCodes,
        StatisticsNeed,
        Support,
        TensorLayout,
        TokenLoss,
        TrainingStep,
        WeightQuantizer,
        Workload,
        training_presets,
    )
    from lowbit.errors import LowbitError, QuantizationWarning
    from lowbit.hookspecs import hookimpl
    from lowbit.packing import from_row_tiles, pack_bits, row_tiles_shape, split_row_tiles, to_row_tiles, unpack_bits
    from lowbit.pipeline.api import bench, load, quantize
    from lowbit.quantization.compensation import (
        BlockError,
        ColumnBlock,
        RoundColumn,
        column_blocks,
        compensate_blocks,
        compensate_columns,
        working_copy,
    )
    from lowbit.quantization.groups import (
        GroupSize,
        from_groups,
        group_lengths,
        group_pieces,
        group_views,
        repeat_groups,
        row_chunks,
        to_groups,
    )
    from lowbit.quantization.inverse_factor import Factorization, InverseFactor, Precision, inverse_factor
    from lowbit.quantization.magnitude import unit_scale
    from lowbit.quantization.parallel import map_chunks
    from lowbit.quantization.scale_dtype import ScaleDtype, storable_dtype
    from lowbit.recipe import Recipe
    from lowbit.tracking import RunTracker

_HOMES = {
    "lowbit.contracts": (
        "BitPlanes Bits CalibrationSource Codes DataAccess DenseWeight DistillationBatch DistillationLoss "
        "DistillationSettings EvaluationStep FidelityConfig FormatSpec Indices Kernel LayerReport LayerStatistics "
        "Method PackedProduct PackedWeight Packer Parametrization PlaneForm PublishedCell PublishedFile "
        "PublishedProtocol PublishedResults QuantizedBlock QuantizedLayer QuantizedWeight RowTiles Scales "
        "SparseCodes StatisticsNeed Support TensorLayout TokenLoss TrainingStep WeightQuantizer Workload "
        "training_presets"
    ),
    "lowbit.errors": "LowbitError QuantizationWarning",
    "lowbit.hookspecs": "hookimpl",
    "lowbit.packing": "from_row_tiles pack_bits row_tiles_shape split_row_tiles to_row_tiles unpack_bits",
    "lowbit.pipeline.api": "bench load quantize",
    "lowbit.quantization.compensation": (
        "BlockError ColumnBlock RoundColumn column_blocks compensate_blocks compensate_columns working_copy"
    ),
    "lowbit.quantization.groups": (
        "GroupSize from_groups group_lengths group_pieces group_views repeat_groups row_chunks to_groups"
    ),
    "lowbit.quantization.inverse_factor": "Factorization InverseFactor Precision inverse_factor",
    "lowbit.quantization.magnitude": "unit_scale",
    "lowbit.quantization.parallel": "map_chunks",
    "lowbit.quantization.scale_dtype": "ScaleDtype storable_dtype",
    "lowbit.recipe": "Recipe",
    "lowbit.tracking": "RunTracker",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "BitPlanes",
    "Bits",
    "BlockError",
    "CalibrationSource",
    "Codes",
    "ColumnBlock",
    "DataAccess",
    "DenseWeight",
    "DistillationBatch",
    "DistillationLoss",
    "DistillationSettings",
    "EvaluationStep",
    "Factorization",
    "FidelityConfig",
    "FormatSpec",
    "GroupSize",
    "Indices",
    "InverseFactor",
    "Kernel",
    "LayerReport",
    "LayerStatistics",
    "LowbitError",
    "Method",
    "PackedProduct",
    "PackedWeight",
    "Packer",
    "Parametrization",
    "PlaneForm",
    "Precision",
    "PublishedCell",
    "PublishedFile",
    "PublishedProtocol",
    "PublishedResults",
    "QuantizationWarning",
    "QuantizedBlock",
    "QuantizedLayer",
    "QuantizedWeight",
    "Recipe",
    "RoundColumn",
    "RowTiles",
    "RunTracker",
    "ScaleDtype",
    "Scales",
    "SparseCodes",
    "StatisticsNeed",
    "Support",
    "TensorLayout",
    "TokenLoss",
    "TrainingStep",
    "WeightQuantizer",
    "Workload",
    "bench",
    "column_blocks",
    "compensate_blocks",
    "compensate_columns",
    "from_groups",
    "from_row_tiles",
    "group_lengths",
    "group_pieces",
    "group_views",
    "hookimpl",
    "inverse_factor",
    "load",
    "map_chunks",
    "pack_bits",
    "quantize",
    "repeat_groups",
    "row_chunks",
    "row_tiles_shape",
    "split_row_tiles",
    "storable_dtype",
    "to_groups",
    "to_row_tiles",
    "training_presets",
    "unit_scale",
    "unpack_bits",
    "working_copy",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lowbit")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


register_when_imported()

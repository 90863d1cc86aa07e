"""What a plugin implements and what passes between the rooms of lowbit."""

from lowbit.contracts.calibration import CalibrationSource, DataAccess
from lowbit.contracts.distillation import DistillationBatch, DistillationLoss, TokenLoss
from lowbit.contracts.engine import ActivationWriter, BlockStore, LayerReport, QuantizedBlock, RunEvents, Stream
from lowbit.contracts.events import EvaluationStep, QuantizedLayer
from lowbit.contracts.fidelity import FidelityConfig
from lowbit.contracts.fields import Bits, Codes, Field, FormatSpec, Indices, Scales, declared_fields
from lowbit.contracts.formats import DenseWeight, QuantizedWeight
from lowbit.contracts.kernel import Kernel, PackedProduct, Support, Workload
from lowbit.contracts.method import Method
from lowbit.contracts.packing import PackedWeight, Packer, TensorLayout
from lowbit.contracts.parametrization import Parametrization
from lowbit.contracts.plane_form import BitPlanes, PlaneForm, SparseCodes
from lowbit.contracts.published import PublishedCell, PublishedFile, PublishedProtocol, PublishedResults
from lowbit.contracts.quantizer import WeightQuantizer
from lowbit.contracts.ranks import Ranks
from lowbit.contracts.row_tiles import RowTiles
from lowbit.contracts.statistics import LayerStatistics, StatisticsNeed
from lowbit.contracts.training import (
    DistillationSettings,
    GenerationSettings,
    LossSettings,
    OptimizationSettings,
    ReconstructionSettings,
    TrainingDataSettings,
    TrainingStep,
)
from lowbit.contracts.training_presets import training_presets

__all__ = [
    "ActivationWriter",
    "BitPlanes",
    "Bits",
    "BlockStore",
    "CalibrationSource",
    "Codes",
    "DataAccess",
    "DenseWeight",
    "DistillationBatch",
    "DistillationLoss",
    "DistillationSettings",
    "EvaluationStep",
    "FidelityConfig",
    "Field",
    "FormatSpec",
    "GenerationSettings",
    "Indices",
    "Kernel",
    "LayerReport",
    "LayerStatistics",
    "LossSettings",
    "Method",
    "OptimizationSettings",
    "PackedProduct",
    "PackedWeight",
    "Packer",
    "Parametrization",
    "PlaneForm",
    "PublishedCell",
    "PublishedFile",
    "PublishedProtocol",
    "PublishedResults",
    "QuantizedBlock",
    "QuantizedLayer",
    "QuantizedWeight",
    "Ranks",
    "ReconstructionSettings",
    "RowTiles",
    "RunEvents",
    "Scales",
    "SparseCodes",
    "StatisticsNeed",
    "Stream",
    "Support",
    "TensorLayout",
    "TokenLoss",
    "TrainingDataSettings",
    "TrainingStep",
    "WeightQuantizer",
    "Workload",
    "declared_fields",
    "training_presets",
]

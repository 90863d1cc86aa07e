"""The conformance kit: what a plugin must hold to, as classes of tests that its author subclasses with two lines."""

from lowbit.testing.batches import agreeing, random_batch, terms_of
from lowbit.testing.conformance import Conformance
from lowbit.testing.declared_bits import payload_bits
from lowbit.testing.failure import ConformanceError, ConformanceNote
from lowbit.testing.format import FormatConformance
from lowbit.testing.kernel import KernelConformance
from lowbit.testing.loss import LossConformance
from lowbit.testing.matrices import SHAPES, gaussian, special_weights, statistics_for
from lowbit.testing.packer import PackerConformance
from lowbit.testing.packers import packers_for, require_packs
from lowbit.testing.quantizer import QuantizerConformance
from lowbit.testing.quantizing import quantize_matrix
from lowbit.testing.registering import registered
from lowbit.testing.running import Outcome, run_checks
from lowbit.testing.sameness import tensor_difference, weight_difference
from lowbit.testing.suites import suites_for
from lowbit.testing.tiny_checkpoint import checkpoint_of
from lowbit.testing.training import Training, start_training

__all__ = [
    "SHAPES",
    "Conformance",
    "ConformanceError",
    "ConformanceNote",
    "FormatConformance",
    "KernelConformance",
    "LossConformance",
    "Outcome",
    "PackerConformance",
    "QuantizerConformance",
    "Training",
    "agreeing",
    "checkpoint_of",
    "gaussian",
    "packers_for",
    "payload_bits",
    "quantize_matrix",
    "random_batch",
    "registered",
    "require_packs",
    "run_checks",
    "special_weights",
    "start_training",
    "statistics_for",
    "suites_for",
    "tensor_difference",
    "terms_of",
    "weight_difference",
]

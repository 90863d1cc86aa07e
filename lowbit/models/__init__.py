"""Causal language models: decoder blocks and weight targets found by structure, read a block at a time."""

from lowbit.models.structure import Decoder, find_decoder
from lowbit.models.targets import WeightTarget, find_targets, other_matrices, read_weight, write_weight

__all__ = [
    "Decoder",
    "WeightTarget",
    "find_decoder",
    "find_targets",
    "other_matrices",
    "read_weight",
    "write_weight",
]

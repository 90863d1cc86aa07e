"""The bits of an unquantized parent, counted the same way as those of a quantized checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

from lowbit.modeling.bits_report import BitsReport
from lowbit.models.checkpoint import ParentCheckpoint


def parent_bits(folder: Path) -> BitsReport:
    """Count the bits of a parent's safetensors files.

    The nominal and the measured bits of its matrices are both the mean width of its stored matrices.

    Args:
        folder: The parent's folder.
    """
    checkpoint = ParentCheckpoint(folder)
    matrices = total_elements = matrix_bytes = payload = 0
    for key in checkpoint.keys():  # noqa: SIM118 - a checkpoint is no mapping
        elements = math.prod(checkpoint.shapes[key])
        size = checkpoint.tensor_bytes(key)
        total_elements += elements
        payload += size
        if len(checkpoint.shapes[key]) >= 2:
            matrices += elements
            matrix_bytes += size
    width = 8 * matrix_bytes / matrices
    return BitsReport(
        nominal_bits=width,
        quantized_bits=width,
        whole_file_bits=8 * checkpoint.bytes() / total_elements,
        quantized_weights=0,
        parameters=total_elements,
        quantized_bytes=0,
        file_bytes=checkpoint.bytes(),
        items={"unquantized": payload, "headers": checkpoint.bytes() - payload},
    )

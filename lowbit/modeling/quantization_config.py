"""`quantization_config` of a lowbit checkpoint, as transformers reads and writes it."""

from __future__ import annotations

from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit.errors import CheckpointError

QUANT_METHOD = "lowbit"
CHECKPOINT_VERSION = 1


class LowbitConfig(QuantizationConfigMixin):
    """Holds whatever the checkpoint's configuration says; unknown keys are kept for newer versions.

    Args:
        modules: For each quantized weight its format, version and resolved sizes.
        **others: Everything else: method, bits, calibration, bits report and so on.
    """

    def __init__(self, modules: dict[str, Any] | None = None, **others: Any) -> None:
        self.quant_method: Any = QUANT_METHOD
        self.modules = modules or {}
        others.pop("quant_method", None)
        self.others = others

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"quant_method": QUANT_METHOD, "modules": self.modules, **self.others}

    def __repr__(self) -> str:
        return f"LowbitConfig(method={self.others.get('method')!r}, {len(self.modules)} quantized weights)"


def require_readable_version(version: object) -> None:
    """Check the version of a checkpoint.

    Raises:
        CheckpointError: It is newer than this installation, or no number.
    """
    if type(version) is not int or not 1 <= version <= CHECKPOINT_VERSION:
        raise CheckpointError(
            f"this checkpoint has version {str(version)[:50]!r}; this lowbit reads up to {CHECKPOINT_VERSION}: "
            "upgrade lowbit"
        )

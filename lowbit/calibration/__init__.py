"""Calibration: texts to token sequences, and streaming statistics of layer inputs."""

from lowbit.calibration.statistics import BlockObserver
from lowbit.calibration.tokens import (
    TOKEN_FILE_SUFFIX,
    CalibrationTokens,
    TokenRequest,
    load_calibration,
    token_file_shape,
)

__all__ = [
    "TOKEN_FILE_SUFFIX",
    "BlockObserver",
    "CalibrationTokens",
    "TokenRequest",
    "load_calibration",
    "token_file_shape",
]

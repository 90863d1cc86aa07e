"""Calibration: texts to token sequences, and streaming statistics of layer inputs."""

from lowbit.calibration.statistics import BlockObserver
from lowbit.calibration.tokens import CalibrationTokens, TokenRequest, load_calibration

__all__ = ["BlockObserver", "CalibrationTokens", "TokenRequest", "load_calibration"]

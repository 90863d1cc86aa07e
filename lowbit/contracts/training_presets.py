"""Budgets of training for models of different sizes, for any method that trains: block by block, then as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECONSTRUCTION_RATES: Mapping[str, Any] = {"weight_rate": 0.01, "scale_rate": 0.002, "precision": "bfloat16"}
DISTILLATION_RATES: Mapping[str, Any] = {
    "weight_rate": 0.02,
    "scale_rate": 0.003,
    "norm_rate": 0.005,
    "settle": 0.9,
    "precision": "bfloat16",
}

QUICK: Mapping[str, Any] = {
    "training_data": {"seq_len": 256, "generated": {"n_samples": 128}},
    "reconstruction": {"steps": 120, "batch_size": 4, "n_samples": 128},
    "distillation": {"steps": 160, "batch_size": 4, "evaluate_every": 40, "checkpoint_every": 80},
}

STANDARD: Mapping[str, Any] = {
    "training_data": {"seq_len": 256, "generated": {"n_samples": 384}},
    "reconstruction": {"steps": 400, "batch_size": 4, "n_samples": 384},
    "distillation": {"steps": 320, "batch_size": 4, "evaluate_every": 40, "checkpoint_every": 80},
}

ONE_BILLION: Mapping[str, Any] = {
    "training_data": {"seq_len": 1024, "generated": {"n_samples": 8192, "batch_size": 256}},
    "reconstruction": {"steps": 800, "batch_size": 8, "n_samples": 1024, "weight_rate": 0.005},
    "distillation": {
        "steps": 2000,
        "batch_size": 16,
        "micro_batch_size": 4,
        "weight_rate": 0.01,
        "scale_rate": 0.001,
        "gradient_checkpointing": True,
        "evaluate_every": 100,
        "checkpoint_every": 100,
    },
}

SEVEN_BILLION: Mapping[str, Any] = {
    "training_data": {"seq_len": 2048, "generated": {"n_samples": 20_000, "batch_size": 128}},
    "reconstruction": {"steps": 800, "batch_size": 4, "n_samples": 512, "weight_rate": 0.005},
    "distillation": {
        "steps": 1250,
        "batch_size": 16,
        "micro_batch_size": 1,
        "weight_rate": 0.005,
        "scale_rate": 0.001,
        "gradient_checkpointing": True,
        "evaluate_every": 50,
        "checkpoint_every": 50,
    },
}

SEVENTY_BILLION: Mapping[str, Any] = {
    "training_data": {"seq_len": 2048, "generated": {"n_samples": 512, "batch_size": 64}},
    "reconstruction": {"steps": 800, "batch_size": 4, "n_samples": 512, "weight_rate": 0.005},
    "distillation": None,
}
"""Block by block only: teacher and student of this size do not fit one process, and a teacher is not shared out."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": QUICK,
    "standard": STANDARD,
    "1b": ONE_BILLION,
    "7b": SEVEN_BILLION,
    "70b": SEVENTY_BILLION,
}


def training_presets(**distillation: Any) -> dict[str, dict[str, Any]]:
    """Return recipe keys by the name of a preset, for `Method(presets=...)`.

    Args:
        **distillation: Settings that the method's distillation has in every preset, such as its `loss`.
    """
    presets: dict[str, dict[str, Any]] = {}
    for name, preset in PRESETS.items():
        whole = preset["distillation"]
        presets[name] = {
            "training_data": preset["training_data"],
            "reconstruction": {**RECONSTRUCTION_RATES, **preset["reconstruction"]},
            "distillation": None if whole is None else {**DISTILLATION_RATES, **whole, **distillation},
        }
    return presets

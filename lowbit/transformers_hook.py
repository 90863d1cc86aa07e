"""Registers lowbit's quantizer with transformers, at once or when transformers is first used."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import wrapt

# Every model class is loaded after this module, and at its end transformers' quantizers can be imported in full.
WATCHED = "transformers.modeling_utils"


def register_when_imported() -> None:
    """Register the quantizer now if transformers' models are loaded already, else as soon as they are."""
    if WATCHED in sys.modules:
        _register(sys.modules[WATCHED])
    else:
        wrapt.when_imported(WATCHED)(_register)


def _register(_: ModuleType) -> Any:
    # The module registers at its end. Where its own imports led here, it is not finished yet and will do so later.
    importlib.import_module("lowbit.modeling.hf_quantizer")

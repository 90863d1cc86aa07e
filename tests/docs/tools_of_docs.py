"""Loads the programs that write parts of the documentation."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[2] / "docs" / "tools"


def load_tool(name: str) -> ModuleType:
    """Import a file of docs/tools the way that Python does when it is run."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    return importlib.import_module(name)

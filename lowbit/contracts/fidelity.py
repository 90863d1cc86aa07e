"""Options that differ between a paper and its authors' code, set together by one preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field


class FidelityConfig(BaseModel):
    """Options of a quantizer with a reading as published and a reading as the authors' code computes it.

    A subclass declares each switch with the default `None`, "as `fidelity` says", and in `presets` what that is. A
    switch that is given keeps its value under either preset.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "code": {}}

    fidelity: Literal["paper", "code"] = Field(
        "paper", description="sets the switches that are not given: as published, or as the authors' code computes"
    )

    def resolved(self) -> Self:
        """Return the same options with every switch that was left open set by the preset."""
        preset = self.presets[self.fidelity]
        return self.model_copy(update={name: value for name, value in preset.items() if getattr(self, name) is None})

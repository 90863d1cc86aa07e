"""What a run may use of a machine; it decides where the run takes place, and nothing of its result but rounding."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ResourceSettings(BaseModel):
    """The resources of one cell of a grid: what is reserved for it on a cluster.

    In one process only `num_cpus` counts: it is the number of threads. The number of threads changes the order of sums,
    so that cells that shall be compared to the last digit need the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_cpus: int | None = Field(None, ge=1, le=4096, description="threads, and cores to reserve; none: torch's own")
    num_gpus: float = Field(0, ge=0, le=1024, description="GPUs to reserve, or a share of one")
    memory: int | None = Field(None, ge=1, description="bytes of main memory to reserve; none: no matter")

    @field_validator("num_gpus")
    @classmethod
    def _check_share(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            raise ValueError("a share of one GPU, or a whole number of them")
        return gpus

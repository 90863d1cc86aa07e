"""Which vector instructions the generated code uses, and for which processor it is compiled."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from enum import StrEnum
from functools import cache


class InstructionSet(StrEnum):
    """How sixteen nibbles are looked up in a table of sixteen numbers; `AVX512_ROUNDED` in tables of eight-bit ones."""

    AVX512 = "avx512"
    AVX512_ROUNDED = "avx512-rounded"
    AVX2 = "avx2"
    PORTABLE = "portable"


@dataclass(frozen=True)
class Target:
    """The processor that code is generated for.

    Args:
        processor: LLVM's name of it.
        features: LLVM's feature string.
    """

    processor: str
    features: str


@cache
def available_instruction_sets() -> tuple[InstructionSet, ...]:
    """Return the exact instruction sets that this machine runs, fastest first."""
    features = _host_features()
    found = []
    if features.get("avx512f") and features.get("avx512bw") and features.get("avx512vl"):
        found.append(InstructionSet.AVX512)
    if features.get("avx2") and features.get("fma") and features.get("f16c"):
        found.append(InstructionSet.AVX2)
    return (*found, InstructionSet.PORTABLE)


@cache
def missing_for_rounded() -> str:
    """Say what this machine lacks for eight-bit tables; empty if nothing."""
    features = _host_features()
    missing = [name for name in ("avx512bw", "avx512vl", "avx512vbmi", "avx512vnni") if not features.get(name)]
    return f"the processor lacks {', '.join(missing)}" if missing else ""


def target_of(instruction_set: InstructionSet) -> Target:
    """Return what to compile for, so that no instruction set borrows instructions of a better one."""
    import llvmlite.binding as llvm

    if instruction_set is InstructionSet.AVX2:
        return Target("x86-64-v3", "")
    if instruction_set is InstructionSet.PORTABLE and _is_x86():
        return Target("x86-64", "")
    features = llvm.get_host_cpu_features().flatten()
    if instruction_set in (InstructionSet.AVX512, InstructionSet.AVX512_ROUNDED):
        # LLVM otherwise halves the vectors on processors where wide ones once lowered the clock.
        features += ",-prefer-256-bit"
    return Target(llvm.get_host_cpu_name(), features)


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _host_features() -> dict[str, bool]:
    import llvmlite.binding as llvm

    return dict(llvm.get_host_cpu_features()) if _is_x86() else {}

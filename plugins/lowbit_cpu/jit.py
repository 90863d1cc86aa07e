"""Compiling LLVM modules for this machine, each once a process."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any

from lowbit_cpu.instruction_sets import InstructionSet, target_of

RUN = "run"
PARALLEL = "parallel"
RunFunction = Callable[[Any, int, int], None]


@dataclass(frozen=True)
class CompiledCode:
    """Machine code of one module.

    Args:
        run: `run(arguments, share, shares)`: does one share of the work; it releases the interpreter's lock.
        parallel: Address of `parallel(arguments)`, to be called by every thread of an OpenMP team.
        engine: Owns the code.
    """

    run: RunFunction
    parallel: int
    engine: object


@cache
def missing_compiler() -> str:
    """Say why nothing can be compiled here; empty if everything needed is installed. Imports nothing."""
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite is not installed (pip install llvmlite)"
    return ""


class CodeCache:
    """Compiled modules by key; each is built once, whichever thread asks first."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._codes: dict[Hashable, CompiledCode] = {}

    def get(self, key: Hashable, instruction_set: InstructionSet, build: Callable[[], Any]) -> CompiledCode:
        """Return the code of a module.

        Args:
            key: What the module depends on, instruction set included.
            instruction_set: What to compile for.
            build: Makes the module; called only if the key is new.
        """
        code = self._codes.get(key)
        if code is not None:
            return code
        with self._lock:  # LLVM's global context is not for several threads
            if key not in self._codes:
                self._codes[key] = _compile(build(), instruction_set)
            return self._codes[key]


CODES = CodeCache()


def _compile(module: Any, instruction_set: InstructionSet) -> CompiledCode:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = target_of(instruction_set)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=target.processor, features=target.features, opt=3
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    return CompiledCode(
        run=prototype(engine.get_function_address(RUN)),
        parallel=engine.get_function_address(PARALLEL),
        engine=engine,
    )

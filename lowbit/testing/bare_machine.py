"""A process in which there is no CUDA, no Triton and no llvmlite, and that answers what a plugin does there.

The kit starts one such process and asks it one thing after the other, a line of JSON each way, so that torch is
imported once.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache, reduce
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest

import torch

from lowbit.contracts import DistillationBatch, QuantizedWeight, WeightQuantizer, Workload
from lowbit.packing import GenericPacker
from lowbit.testing.batches import random_batch, terms_of
from lowbit.testing.failure import ANY_ERROR
from lowbit.testing.matrices import gaussian
from lowbit.testing.quantizing import quantize_matrix
from lowbit.testing.sameness import tensor_bytes

ABSENT = ("triton", "llvmlite")
PROGRAM = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); import lowbit.testing.bare_machine as m; m.serve()"


def digest_of(weight: QuantizedWeight) -> str:
    """Return the sha256 of every tensor of a weight and of its declaration."""
    digest = hashlib.sha256(repr(weight.spec()).encode())
    for tensor in weight.tensors().values():
        digest.update(tensor_bytes(tensor).numpy().tobytes())
    return digest.hexdigest()


def home_of(item: type) -> dict[str, str]:
    """Return where another process finds a class.

    Raises:
        SkipTest: It cannot be found from there.
    """
    module = sys.modules[item.__module__]
    if "<locals>" in item.__qualname__ or item.__module__ == "__main__" or not getattr(module, "__file__", None):
        raise SkipTest(f"{item.__qualname__} is not at the top of a module, so another process cannot import it")
    return {"module": item.__module__, "file": str(module.__file__), "name": item.__qualname__}


class BareMachine:
    """The process, started by the first question."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONHASHSEED": "12345",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, question: str, about: Mapping[str, type], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer, under `error` what went wrong there.

        Args:
            question: One of `ANSWERS`.
            about: Classes by what they are.
            options: Of the quantizer or loss.
        """
        homes = {role: home_of(item) for role, item in about.items()}
        sent = {"question": question, "homes": homes, "options": dict(options), "threads": torch.get_num_threads()}
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(sent) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            bare_machine.cache_clear()
            return {"error": f"the process ended with status {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


@cache
def bare_machine() -> BareMachine:
    """Return the process that the checks of this one share; it ends with it."""
    machine = BareMachine()
    atexit.register(machine.close)
    return machine


def serve() -> None:
    """Answer until there are no more questions; what plugins print goes nowhere."""
    answers = sys.stdout
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                answer = _answer(json.loads(line))
            except ANY_ERROR as error:  # whatever the code under test raises
                answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(asked["threads"])
    classes = {role: _find(home) for role, home in asked["homes"].items()}
    return ANSWERS[asked["question"]](classes, asked["options"])


def _find(home: Mapping[str, str]) -> Any:
    return reduce(getattr, home["name"].split("."), _import(home["module"], home["file"]))


def _import(name: str, file: str) -> ModuleType:
    """Import a module by its name, or from its file if it is not to be found by name."""
    if name in sys.modules:
        return sys.modules[name]
    with contextlib.suppress(ModuleNotFoundError, ValueError):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and Path(spec.origin) == Path(file):
            return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def quantized_there(quantizer: type[WeightQuantizer], options: Mapping[str, Any]) -> QuantizedWeight:
    """Quantize the matrix that both processes compare."""
    return quantize_matrix(quantizer, gaussian(6, 100), seed=3, **options)


def _quantize(classes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    quantized = quantized_there(classes["quantizer"], options)
    return {"finite": bool(quantized.dequantize().isfinite().all()), "digest": digest_of(quantized)}


def _support(classes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    quantized = quantized_there(classes["quantizer"], options)
    device, dtype = torch.device("cpu"), torch.float32
    support = classes["kernel"]().supports(Workload(quantized.spec(), GenericPacker(), type(quantized), device, dtype))
    return {"served": support.served, "reason": support.reason}


def _loss(classes: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    loss = classes["loss"](classes["loss"].Config(**options))
    batch: DistillationBatch = random_batch()
    return {"finite": all(bool(term.value.isfinite().all()) for term in terms_of(loss, batch))}


ANSWERS = {"quantize": _quantize, "support": _support, "loss": _loss}

"""llama.cpp's tensor library through ctypes: products with its 2-bit types, on the CPU."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowbit.errors import LowbitError

TYPES = {"q2_K": 10, "q2_0": 42, "tq2_0": 35, "iq2_xxs": 16, "iq2_xs": 17, "iq2_s": 22}
"""Types of two and a few tenths of a bit a weight, by the names and numbers that the library gives them."""
FLOAT32 = 0
BAND_ROWS = 128
"""Rows that are quantized; the others repeat them, since the costly search for codes says nothing about speed."""
CONTEXT_BYTES = 2**22
_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


@_LOG
def _silent(level: int, text: bytes, data: int) -> None:
    """Drop what the library would print for each weight."""


class _InitParams(Structure):
    _fields_: ClassVar = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class _Plan(Structure):
    _fields_: ClassVar = [
        ("work_size", c_size_t),
        ("work_data", c_void_p),
        ("n_threads", c_int),
        ("threadpool", c_void_p),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("use_ref", c_bool),
    ]


class _TypeTraits(Structure):
    _fields_: ClassVar = [
        ("type_name", c_char_p),
        ("block", c_int64),
        ("interleave", c_int64),
        ("block_bytes", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", c_void_p),
        ("from_float", c_void_p),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_type_name": (c_char_p, [c_int]),
    "ggml_blck_size": (c_int64, [c_int]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_get_type_traits": (POINTER(_TypeTraits), [c_int]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
    "ggml_version": (c_char_p, []),
    "ggml_log_set": (None, [_LOG, c_void_p]),
}
_CPU_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_cpu_init": (None, []),
    "ggml_graph_plan": (_Plan, [c_void_p, c_int, c_void_p]),
    "ggml_graph_compute": (c_int, [c_void_p, POINTER(_Plan)]),
    "ggml_backend_cpu_reg": (c_void_p, []),
}


def library_folder(folder: Path | None) -> Path:
    """Return the folder with the shared libraries.

    Args:
        folder: Where they are, or `None` for those of an installed llama-cpp-python.

    Raises:
        LowbitError: There are none.
    """
    if folder is None:
        found = importlib.util.find_spec("llama_cpp")
        if found is None or found.origin is None:
            raise LowbitError("llama-cpp-python is not installed, and --ggml names no folder with libggml-cpu.so")
        folder = Path(found.origin).parent / "lib"
    if not (folder / "libggml-cpu.so").is_file():
        raise LowbitError(f"{folder} holds no libggml-cpu.so")
    return folder


class Ggml:
    """The library, ready to multiply on the CPU.

    Args:
        folder: Holds libggml-base.so and libggml-cpu.so.
        threads: Of every product.

    Raises:
        LowbitError: The library lacks a function that this needs.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.threads = threads
        try:
            self._base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
            self._cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
            for library, signatures in ((self._base, _SIGNATURES), (self._cpu, _CPU_SIGNATURES)):
                for name, (result, arguments) in signatures.items():
                    function = getattr(library, name)
                    function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise LowbitError(f"libggml in {folder} is another than this benchmark knows: {error}") from error
        self._base.ggml_log_set(_silent, None)
        self._cpu.ggml_cpu_init()
        registered = self._cpu.ggml_backend_cpu_reg()
        self.device = self._base.ggml_backend_reg_dev_get(registered, 0)
        self._extra = self._base.ggml_backend_reg_get_proc_address(registered, b"ggml_backend_dev_get_extra_bufts")

    @property
    def version(self) -> str:
        """Version of the library."""
        return str(self._base.ggml_version().decode())

    def layouts(self) -> dict[str, int]:
        """Return the buffer types of the CPU by name: the plain one, and those that rearrange a weight for speed."""
        found = [self._base.ggml_backend_cpu_buffer_type()]
        if self._extra:
            listed = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(self._extra)(self.device)
            for index in range(16):
                if not listed or not listed[index]:
                    break
                found.append(listed[index])
        return {self._base.ggml_backend_buft_name(layout).decode(): layout for layout in found}

    def types(self) -> Iterator[str]:
        """Yield the names of the 2-bit types that this version has under the known numbers."""
        for name, number in TYPES.items():
            if self._base.ggml_type_name(number) == name.encode():
                yield name

    def quantized(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize the first rows of a weight, and repeat them.

        Args:
            name: Of the type.
            weight: float32 [out, in].

        Returns:
            The bytes, uint8 [out, bytes a row], and what they stand for, float32 [out, in].

        Raises:
            LowbitError: Rows are no whole blocks of the type.
        """
        number, (out, length) = TYPES[name], weight.shape
        if length % self._base.ggml_blck_size(number):
            raise LowbitError(f"{name} needs columns in blocks of {self._base.ggml_blck_size(number)}, not {length}")
        band = weight[:BAND_ROWS].float().contiguous()
        rows = band.shape[0]
        codes = torch.zeros(rows, self._base.ggml_row_size(number, length), dtype=torch.uint8)
        importance = torch.ones(length)
        arguments = (band.data_ptr(), codes.data_ptr(), 0, rows, length, importance.data_ptr())
        self._base.ggml_quantize_chunk(number, *arguments)
        values = torch.empty(rows, length)
        to_float = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)(
            self._base.ggml_get_type_traits(number).contents.to_float
        )
        for row in range(rows):
            to_float(codes[row].data_ptr(), values[row].data_ptr(), length)
        times = -(-out // rows)
        return codes.repeat(times, 1)[:out].contiguous(), values.repeat(times, 1)[:out]

    def weight(self, name: str, codes: Tensor, columns: int, layout: int) -> GgmlWeight:
        """Put quantized bytes into a buffer of a layout.

        Args:
            name: Of the type.
            codes: uint8 [out, bytes a row].
            columns: Weights a row.
            layout: A buffer type.

        Raises:
            LowbitError: The layout does not serve the type on this machine.
        """
        return GgmlWeight(self, TYPES[name], codes, columns, layout)


class GgmlWeight:
    """One quantized weight in the library's memory."""

    def __init__(self, library: Ggml, number: int, codes: Tensor, columns: int, layout: int) -> None:
        self._library, self._rows, self._columns = library, codes.shape[0], columns
        base = library._base
        self._context = base.ggml_init(_InitParams(CONTEXT_BYTES, None, True))
        self._tensor = base.ggml_new_tensor_2d(self._context, number, columns, self._rows)
        self._buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(self._context, layout)
        trial = base.ggml_new_tensor_2d(self._context, FLOAT32, columns, 1)
        product = base.ggml_mul_mat(self._context, self._tensor, trial)
        if not self._buffer or not base.ggml_backend_dev_supports_op(library.device, product):
            self.close()
            raise LowbitError("the layout does not serve the type on this machine")
        base.ggml_backend_tensor_set(self._tensor, codes.data_ptr(), 0, codes.nbytes)
        self._kept: list[Any] = []

    def call(self, x: Tensor) -> Callable[[], Tensor]:
        """Return a call that multiplies activations float32 [rows, in] and returns [rows, out].

        The activations are copied now; a call computes, into the same memory each time.
        """
        base, rows = self._library._base, x.shape[0]
        context = base.ggml_init(_InitParams(CONTEXT_BYTES, None, True))
        inputs = base.ggml_new_tensor_2d(context, FLOAT32, self._columns, rows)
        outputs = base.ggml_mul_mat(context, self._tensor, inputs)
        graph = base.ggml_new_graph(context)
        base.ggml_build_forward_expand(graph, outputs)
        buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(context, base.ggml_backend_cpu_buffer_type())
        base.ggml_backend_tensor_set(inputs, x.contiguous().data_ptr(), 0, x.nbytes)
        plan = self._library._cpu.ggml_graph_plan(graph, self._library.threads, None)
        work = torch.empty(max(1, plan.work_size), dtype=torch.uint8)
        plan.work_data = work.data_ptr()
        memory = (c_float * (rows * self._rows)).from_address(base.ggml_get_data(outputs))
        result = torch.frombuffer(memory, dtype=torch.float32).view(rows, self._rows)
        self._kept.append((context, buffer, work))
        compute, planned = self._library._cpu.ggml_graph_compute, byref(plan)

        def call() -> Tensor:
            if compute(graph, planned) != 0:
                raise LowbitError("libggml could not compute the product")
            return result

        return call

    def forget_calls(self) -> None:
        """Free what earlier calls need; they must not be called any more."""
        for context, buffer, _ in self._kept:
            self._library._base.ggml_backend_buffer_free(buffer)
            self._library._base.ggml_free(context)
        self._kept = []

    def close(self) -> None:
        """Free the weight."""
        if self._buffer:
            self._library._base.ggml_backend_buffer_free(self._buffer)
        self._library._base.ggml_free(self._context)

"""The transformers quantizer: `AutoModelForCausalLM.from_pretrained` and `save_pretrained` for lowbit checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer

from lowbit.errors import CheckpointError
from lowbit.modeling.file_digests import FILES_SHA256, require_unchanged
from lowbit.modeling.module_entry import LoadedEntry, packed_module, read_entry, require_stored, sentinel_name
from lowbit.modeling.packed_linear import bind_kernels
from lowbit.modeling.quantization_config import CHECKPOINT_VERSION, QUANT_METHOD, LowbitConfig, require_readable_version
from lowbit.modeling.surgery import install_packed_modules, to_dense_modules
from lowbit.models.experts import use_expert_loop
from lowbit.models.key_mapping import CONVERTS


class LowbitHfQuantizer(HfQuantizer):
    """Builds packed modules before weights are read, and makes sure that every one of them was filled from the file."""

    requires_calibration = True
    quantization_config: Any

    def __init__(self, quantization_config: LowbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # Files that save_pretrained writes later are others.
        self._digests = quantization_config.others.pop(FILES_SHA256, None)
        self._entries: list[LoadedEntry] = []
        self._ours: dict[str, torch.Tensor] = {}
        self._wanted_dtype: torch.dtype | None = None

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a checkpoint whose version or plugins this installation lacks, before anything is built."""
        version = self.quantization_config.others.get("checkpoint_version", CHECKPOINT_VERSION)
        require_readable_version(version)
        modules = self.quantization_config.modules
        if not isinstance(modules, dict) or not modules:
            raise CheckpointError("quantization_config.modules is empty; this is no lowbit checkpoint")
        self._entries = [read_entry(name, value) for name, value in modules.items()]

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Let the user choose the dtype of everything that is not quantized."""
        return dtype

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        use_expert_loop(model)
        install_packed_modules(model, self._entries)
        self._ours = self._packed_buffers(model)
        files = kwargs.get("checkpoint_files")
        if files:
            paths = [Path(file) for file in files]
            require_stored(self._entries, paths)
            require_unchanged(paths, self._digests)
        return model

    def _packed_buffers(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the buffers that must come from the file, by name."""
        ours: dict[str, torch.Tensor] = {}
        for entry in self._entries:
            home = packed_module(entry.name, entry.fused)
            buffers = model.get_submodule(home).named_buffers(recurse=False)
            ours.update({f"{home}.{name}": buffer for name, buffer in buffers})
            sentinel = sentinel_name(entry.name, entry.fused)
            ours[sentinel] = model.get_buffer(sentinel)
        return ours

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if CONVERTS:
            self._require_loaded(model)
            # The parent's conversions (fusing experts, say) must not be undone on packed tensors by save_pretrained.
            model._weight_conversions = []
        elif self._wanted_dtype is not None:
            _cast_others(model, self._wanted_dtype, set(self._ours))
        self._require_declared(model)
        bind_kernels(model, model.dtype)
        return model

    def _require_loaded(self, model: nn.Module) -> None:
        state = model.state_dict(keep_vars=True)
        missing = [name for name, tensor in state.items() if not getattr(tensor, "_is_hf_initialized", False)]
        _refuse_missing([name for name in missing if not _may_be_absent(model, name)])

    def _require_declared(self, model: nn.Module) -> None:
        """Compare what was loaded with what the configuration declares."""
        for name, declared in self._ours.items():
            found = model.get_buffer(name)
            if found.dtype != declared.dtype or found.shape != declared.shape or found.is_meta:
                raise CheckpointError(
                    f"tensor {name} was loaded as {found.dtype} {tuple(found.shape)}, but the configuration says "
                    f"{declared.dtype} {tuple(declared.shape)}"
                )

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Keep packed tensors in the dtype of the file (transformers 5)."""
        if converter.target_patterns[0] in self._ours:
            return None
        return super().get_new_dtype(converter, param, dtype)

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse a checkpoint that lacks tensors (transformers 4.57)."""
        _refuse_missing([name for name in missing_keys if not _may_be_absent(model, name)])
        return missing_keys

    def update_expected_keys(self, model: Any, expected_keys: list[str], loaded_keys: list[str]) -> list[str]:
        """Keep transformers 4.57 from casting scales: everything else is cast after loading."""
        if not CONVERTS and self._wanted_dtype is None:
            self._wanted_dtype = getattr(model.config, "_pre_quantization_dtype", None)
            model.config._pre_quantization_dtype = None
        return expected_keys

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Packed models can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights cannot be trained."""
        return False

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        to_dense_modules(model, wanted or model.dtype)
        # A dense model is saved by the architecture's own conversions again.
        model.__dict__.pop("_weight_conversions", None)
        return model


def _refuse_missing(names: Sequence[str]) -> None:
    if names:
        raise CheckpointError(
            f"the checkpoint lacks {len(names)} tensors ({', '.join(sorted(names)[:3])}); "
            "it is incomplete, copy it again"
        )


def _may_be_absent(model: nn.Module, name: str) -> bool:
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or []
    return any(re.search(pattern, name) for pattern in patterns)


def _cast_others(model: Any, dtype: torch.dtype, ours: set[str]) -> None:
    """Cast every stored tensor but the packed ones, and those that the architecture keeps in float32."""
    model.config._pre_quantization_dtype = dtype
    kept = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    stored = model.state_dict().keys() - ours
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in stored and tensor.is_floating_point() and kept.isdisjoint(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def register() -> None:
    """Register configuration and quantizer with transformers; a second call does nothing."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(LowbitConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(LowbitHfQuantizer)


register()

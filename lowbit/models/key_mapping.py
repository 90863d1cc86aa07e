"""From the tensor names of a file to those of a model, by transformers' own rules, and loading by them.

transformers 5 renames and converts tensors while it loads (single experts become one fused parameter); 4.57 only
renames. Both ways end in the same functions here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowbit.errors import CheckpointError
from lowbit.models.checkpoint import ParentCheckpoint
from lowbit.models.soundness import absent_tensors, require_stored_as

CONVERTS = int(transformers.__version__.split(".")[0]) >= 5


class KeyMapping:
    """Knows which tensors of a checkpoint make up which parameter of a model.

    Args:
        model: The model; its parameters may be on the meta device.
        checkpoint: The files.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: ParentCheckpoint) -> None:
        self._model = model
        self._checkpoint = checkpoint
        self.model_names = frozenset(model.state_dict())
        self._transforms: list[Any] = []
        self.converted: set[str] = set()
        self.name_of = self._convert_names() if CONVERTS else self._rename()

    def keys_for(self, wanted: Callable[[str], bool]) -> list[str]:
        """Return the file's keys whose name in the model is wanted."""
        return [key for key, name in self.name_of.items() if name in self.model_names and wanted(name)]

    def stored_dtypes(self) -> dict[str, str]:
        """Return the dtype, as safetensors names it, in which each tensor of the model is stored."""
        return {name: self._checkpoint.dtypes[key] for key, name in self.name_of.items()}

    def require_fit(self) -> None:
        """Compare the files' headers with the model; no weight is read.

        Raises:
            CheckpointError: A tensor is absent, has another shape, or is not stored as floating point.
        """
        absent = absent_tensors(self._model, self.name_of.values())
        if absent:
            raise CheckpointError(
                f"{self._checkpoint.folder} lacks {len(absent)} tensors ({', '.join(absent[:3])}); it is incomplete"
            )
        surplus = self._surplus_matrices()
        if surplus:
            raise CheckpointError(
                f"{self._checkpoint.folder} holds {len(surplus)} matrices that its config.json has no place for, "
                f"such as {surplus[0]}; the two do not belong together"
            )
        state = self._model.state_dict()
        for key, name in self.name_of.items():
            if name in state:
                header = (self._checkpoint.dtypes[key], self._checkpoint.shapes[key])
                require_stored_as(name, header, state[name], name in self.converted)

    def _surplus_matrices(self) -> list[str]:
        """Return matrices of the files that the model does not know and does not declare as superfluous."""
        ignored = list(getattr(self._model, "_keys_to_ignore_on_load_unexpected", None) or [])
        unknown = [key for key, name in self.name_of.items() if name not in self.model_names]
        matrices = [key for key in unknown if len(self._checkpoint.shapes[key]) == 2]
        return [key for key in matrices if not any(re.search(pattern, key) for pattern in ignored)]

    def load(self, wanted: Callable[[str], bool]) -> set[str]:
        """Load the wanted tensors into the model, cast to its dtype.

        Returns:
            Wanted names that no file holds.

        Raises:
            CheckpointError: A tensor has another shape than the model, or cannot be converted.
        """
        keys = self.keys_for(wanted)
        with self._checkpoint.slices(keys) as slices:
            problems = self._load_converted(slices) if CONVERTS else self._load_renamed(slices)
        if problems:
            raise CheckpointError(f"{self._checkpoint.folder} does not fit its config.json: {'; '.join(problems[:5])}")
        loaded = self._loaded_names(keys)
        return {name for name in self.model_names if wanted(name)} - loaded

    def _loaded_names(self, keys: list[str]) -> set[str]:
        if not CONVERTS:
            return {self.name_of[key] for key in keys}
        return self._last_loaded

    def _convert_names(self) -> dict[str, str]:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        self._last_loaded: set[str] = set()
        self._transforms = get_model_conversion_mapping(self._model)
        renamings = [item for item in self._transforms if isinstance(item, WeightRenaming)]
        converters = [item for item in self._transforms if isinstance(item, WeightConverter)]
        prefix, known = self._model.base_model_prefix, self._model.state_dict()
        names = {}
        for key in sorted(self._checkpoint.keys(), key=dot_natural_key):
            name, pattern = rename_source_key(key, renamings, converters, prefix, known)
            if name not in known and key in known:
                name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=known)
            if pattern is not None:
                self.converted.add(name)
            names[key] = name
        return names

    def _rename(self) -> dict[str, str]:
        prefix = self._model.base_model_prefix
        patterns = getattr(self._model, "_checkpoint_conversion_mapping", None) or {}
        names = {}
        for key in self._checkpoint.keys():  # noqa: SIM118 - a checkpoint is no mapping
            name = next((re.sub(p, r, key) for p, r in patterns.items() if re.search(p, key)), key)
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
            if name not in self.model_names and f"{prefix}.{name}" in self.model_names:
                name = f"{prefix}.{name}"
            elif name not in self.model_names and name.removeprefix(f"{prefix}.") in self.model_names:
                name = name.removeprefix(f"{prefix}.")
            names[key] = name
        return names

    def _load_converted(self, slices: dict[str, Any]) -> list[str]:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        config = LoadStateDictConfig(weight_mapping=self._transforms, dtype=self._model.dtype)
        info, _ = convert_and_load_state_dict_in_model(self._model, slices, config)
        # A partial load leaves its conversions behind, and they would steer a later save_pretrained.
        self._model.__dict__.pop("_weight_conversions", None)
        self._last_loaded = set(self.model_names) - set(info.missing_keys)
        problems = [f"{name}: shape {found}, expected {wanted}" for name, found, wanted in info.mismatched_keys]
        return problems + [
            f"{name}: {' '.join(str(why).split())[:200]}" for name, why in info.conversion_errors.items()
        ]

    def _load_renamed(self, slices: dict[str, Any]) -> list[str]:
        problems = []
        for key, part in slices.items():
            name = self.name_of[key]
            module_name, _, leaf = name.rpartition(".")
            module = self._model.get_submodule(module_name)
            expected = getattr(module, leaf)
            tensor = part[...].to(expected.dtype)
            if tensor.shape != expected.shape:
                problems.append(f"{name}: shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}")
            else:
                _assign(module, leaf, tensor)
        return problems


def drop(module: nn.Module) -> None:
    """Return a module's parameters and stored buffers to the meta device; buffers that no file holds stay."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            part.register_parameter(name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if name not in part._non_persistent_buffers_set:
                part.register_buffer(name, torch.empty_like(buffer, device="meta"))


def _assign(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in module._buffers:
        module.register_buffer(leaf, tensor)
    else:
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))

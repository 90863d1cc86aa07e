"""A model whose decoder blocks are read from safetensors one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lowbit.errors import CheckpointError, LowbitError
from lowbit.models.capture import BlockCall, capture_calls
from lowbit.models.checkpoint import ParentCheckpoint
from lowbit.models.configuration import require_buildable, require_small_buffers
from lowbit.models.experts import use_expert_loop
from lowbit.models.freed_memory import release_freed_memory
from lowbit.models.key_mapping import KeyMapping, drop
from lowbit.models.soundness import FLOATING_DTYPES, require_finite
from lowbit.models.structure import find_decoder, require_own_weights
from lowbit.untrusted import printable


class StreamedModel:
    """Holds a model's structure; a block's weights are in memory only inside `block(index)`.

    Everything is computed in float32, whatever dtype the checkpoint has.

    Args:
        folder: The model's folder.
        trust_remote_code: Whether to run code that comes with the model.
        device: Where blocks are worked on.

    Raises:
        LowbitError: The folder holds no causal language model, or one that is quantized already, incomplete, or has
            numbers outside its blocks that are not finite.
    """

    def __init__(self, folder: Path, trust_remote_code: bool = False, device: str = "cpu") -> None:
        self.config = read_config(folder, trust_remote_code)
        if getattr(self.config, "quantization_config", None):
            raise LowbitError(f"{folder} is quantized already; give the unquantized parent")
        self.checkpoint = ParentCheckpoint(folder)
        self.device = torch.device(device)
        self.model = build_skeleton(self.config, trust_remote_code)
        self.decoder = find_decoder(self.model)
        require_own_weights(self.decoder)
        self._mapping = KeyMapping(self.model, self.checkpoint)
        self._mapping.require_fit()
        self._dtypes = self._mapping.stored_dtypes()
        self._base_name = self._find_base()
        use_expert_loop(self.model)
        for name, tensor in self.outside().items():
            require_finite(tensor, name)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Load a block as float32 for the time of the context.

        Raises:
            CheckpointError: The files lack one of the block's tensors.
        """
        prefix = self.decoder.block_name(index) + "."
        with quiet():
            missing = self._mapping.load(lambda name: name.startswith(prefix))
        if missing:
            raise CheckpointError(
                f"{self.checkpoint.folder} lacks {len(missing)} tensors, such as {sorted(missing)[0]}"
            )
        block = self.decoder.blocks[index]
        block.to(self.device)
        try:
            yield block
        finally:
            drop(block)
            release_freed_memory()

    def untouched(self, index: int, targets: Sequence[str]) -> dict[str, Tensor]:
        """Return a loaded block's tensors that belong to none of the parameters named, in their stored dtype."""
        prefix = self.decoder.block_name(index)
        state = self.decoder.blocks[index].state_dict(prefix=prefix + ".")
        kept = {name: tensor for name, tensor in state.items() if name not in set(targets)}
        return {name: tensor.to(self._stored_dtype(name, tensor)) for name, tensor in kept.items()}

    def outside(self) -> dict[str, Tensor]:
        """Return every stored tensor that is in no block (embeddings, last norm, head), mapped from the files."""
        inside = self.decoder.name + "."
        keys = self._mapping.keys_for(lambda name: not name.startswith(inside))
        names = self._mapping.name_of
        converted = [names[key] for key in keys if names[key] in self._mapping.converted]
        if converted:
            raise LowbitError(f"{converted[0]} lies outside the decoder blocks and is converted at load; not supported")
        return {names[key]: self.checkpoint.tensor(key) for key in keys}

    def stored_bytes(self, without: set[str]) -> int:
        """Return the bytes of every stored tensor but those that make up the parameters named."""
        names = self._mapping.name_of
        kept = (key for key in self.checkpoint.keys() if names[key] not in without)  # noqa: SIM118
        return sum(self.checkpoint.tensor_bytes(key) for key in kept)

    def calls(self, tokens: Tensor, on_entry: Callable[[Tensor], None] | None) -> list[BlockCall]:
        """Record how the model calls its blocks, and hand out what enters the first one.

        Args:
            tokens: int64 [samples, length]; only the first sample is used unless `on_entry` is given.
            on_entry: Called with the hidden states [1, length, hidden size] of each sample in turn.
        """
        with self._outside_loaded() as run:
            calls, entered = self._first_call(run, tokens[:1])
            if on_entry is not None:
                on_entry(entered)
                for position in range(1, len(tokens)):
                    on_entry(self._first_call(run, tokens[position : position + 1])[1])
        return calls

    def _first_call(self, run: Callable[[Tensor], object], sample: Tensor) -> tuple[list[BlockCall], Tensor]:
        """Try blocks that return a tensor, then blocks that return a tuple; a model accepts only its own kind."""
        try:
            return capture_calls(lambda: run(sample), self.decoder, returns_tuple=False)
        except (RuntimeError, TypeError, AttributeError, IndexError):
            return capture_calls(lambda: run(sample), self.decoder, returns_tuple=True)

    @contextmanager
    def _outside_loaded(self) -> Iterator[Callable[[Tensor], object]]:
        """Load what the base model needs beside its blocks; the head stays on meta."""
        base: Any = self.model.get_submodule(self._base_name)
        prefix = self._base_name + "." if self._base_name else ""
        inside = self.decoder.name + "."
        self._load_outside(lambda name: name.startswith(prefix) and not name.startswith(inside))
        outer = [module for name, module in base.named_modules() if not _within(prefix + name, self.decoder.name)]
        for module in outer:
            _move_own_tensors(module, self.device)
        try:
            yield lambda sample: base(input_ids=sample.to(self.device), use_cache=False)
        finally:
            for module in outer:
                _drop_own_tensors(module)

    def _load_outside(self, wanted: Callable[[str], bool]) -> None:
        """Load tensors outside the blocks."""
        with quiet():
            missing = self._mapping.load(wanted)
        if missing:
            raise CheckpointError(f"{self.checkpoint.folder} lacks {sorted(missing)[0]}")

    def _find_base(self) -> str:
        """Return the name of the model without its head."""
        base: nn.Module = self.model.base_model
        if base is not self.model:
            return str(next(name for name, module in self.model.named_modules() if module is base))
        # A prefix that names no attribute makes transformers take the whole model for its base.
        first: str = self.decoder.name.partition(".")[0]
        return first if isinstance(self.model.get_submodule(first), PreTrainedModel) else ""

    def _stored_dtype(self, name: str, tensor: Tensor) -> torch.dtype:
        return FLOATING_DTYPES.get(self._dtypes.get(name, ""), tensor.dtype)


def read_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Read a model's configuration.

    Raises:
        LowbitError: It is absent, damaged, or of an architecture that transformers does not know.
    """
    require_buildable(folder)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # a configuration may break transformers in any way
        raise LowbitError(
            f"{folder} has no readable model configuration: {printable(' '.join(str(error).split())[:300])}"
        ) from error
    return config


def build_skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a model with float32 parameters on the meta device and computed buffers."""
    try:
        with torch.device("meta"):
            trial = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
        require_small_buffers(trial)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)
    except LowbitError:
        raise
    except Exception as error:  # a configuration may break a model's constructor in any way
        text = printable(" ".join(str(error).split())[:300])
        if "Unrecognized configuration class" in text:
            raise LowbitError(f"{config.model_type} is no causal language model: {text}") from error
        raise LowbitError(f"no model can be built from its configuration: {type(error).__name__}: {text}") from error
    skeleton: PreTrainedModel = model.eval()
    return skeleton


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own progress bars inside the context."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _within(name: str, parent: str) -> bool:
    return name.startswith(parent + ".")


def _move_own_tensors(module: nn.Module, device: torch.device) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        if not parameter.is_meta:
            module.register_parameter(name, nn.Parameter(parameter.to(device), requires_grad=False))
    for name, buffer in list(module.named_buffers(recurse=False)):
        module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)


def _drop_own_tensors(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        module.register_parameter(name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))

"""docs/formats.md is enough to read every checkpoint: a reader written from it gets the very bits of `dequantize()`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs.format_reader import read_weights
from docs.tools_of_docs import load_tool
from small_models import ModelFolder, load_model, make_recipe

from lowbit.modeling.packed_experts import PackedExperts
from lowbit.modeling.quant_linear import QuantLinear
from lowbit.models.experts import PACKED_SUFFIX
from lowbit.pipeline.quantize import HookEvents, quantize_to
from lowbit.registry import registry

REPOSITORY = Path(__file__).resolve().parents[2]
SIGN_PLUGIN = REPOSITORY / "docs" / "examples" / "sign_quantizer.py"

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "uniform": ("llama", "rtn", {"quantizer": {"bits": 3, "group_size": 20}}),
    "uniform-whole-rows": ("llama", "rtn", {"quantizer": {"bits": 8, "group_size": -1, "scale_dtype": "float32"}}),
    "uniform-ordered": ("llama", "gptq", {"quantizer": {"group_size": 10, "act_order": True}}),
    "uniform-affine": ("llama", "lsq-ptq", {"quantizer": {"bits": 2, "group_size": 16, "scale_dtype": "bfloat16"}}),
    "dual-binary": ("llama", "dbllm-ptq", {"quantizer": {"group_size": 12}}),
    "dual-binary-experts": ("mixtral", "dbllm-ptq", {}),
    "dual-binary-transposed": ("gpt2", "dbllm-ptq", {}),
    "dual-binary-plain": ("llama", "dbllm-ptq", {"packer": {"name": "plain"}}),
    "dual-binary-bit-planes": ("llama", "dbllm-ptq", {"packer": {"name": "bit-planes"}}),
    "dual-binary-bfloat16": ("llama", "dbllm-ptq", {"quantizer": {"scale_dtype": "bfloat16", "group_size": -1}}),
    "dual-binary-float32": ("llama", "dbllm-ptq", {"quantizer": {"scale_dtype": "float32"}}),
    "partial-binary": ("llama", "pbllm", {"quantizer": {"low_frac": 0.5, "group_size": 16}}),
    "partial-binary-indexed": ("llama", "pbllm", {"quantizer": {"low_frac": 0.97, "high_bit": 5}}),
    "residual-binary-without-means": ("llama", "billm", {"quantizer": {"block_size": 20}}),
    "residual-binary-with-means": ("llama", "billm-code", {"quantizer": {"block_size": 16}}),
    "residual-binary-row-column": ("llama", "arbllm", {"quantizer": {"block_size": 16, "iterations": 2}}),
    "residual-binary-one-group": (
        "llama", "arbllm", {"quantizer": {"block_size": 20, "iterations": 2, "column_group_bitmap": False}},
    ),
    "residual-binary-calibrated": ("llama", "arbllm-x", {"quantizer": {"block_size": 16, "iterations": 2}}),
    "residual-binary-alternating": ("llama", "arbllm-arb", {"quantizer": {"block_size": 32, "iterations": 2}}),
    "dense": ("llama", "sign", {"quantizer": {"group_size": 16}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens.npz"
    np.savez(path, tokens=np.random.default_rng(0).integers(3, 96, (8, 48)))
    return path


@pytest.fixture(scope="module", autouse=True)
def sign_plugin() -> Iterator[None]:
    before = registry().plugins
    registry().load(str(SIGN_PLUGIN))
    yield
    if len(registry().plugins) > len(before):
        [implementation] = [
            found.plugin
            for found in registry().hook.lowbit_methods.get_hookimpls()
            if str(getattr(found.plugin, "__file__", "")) == str(SIGN_PLUGIN)
        ]
        registry().unregister(implementation)


def dequantized(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return what lowbit itself says that each weight stands for."""
    found = {}
    for name, module in load_model(folder).named_modules():
        if isinstance(module, QuantLinear):
            found[name] = module.dequantize().numpy()
        elif isinstance(module, PackedExperts):
            home = name.removesuffix(PACKED_SUFFIX)
            found |= {f"{home}.{e}": module.expert(e).dequantize().numpy() for e in range(len(module))}
    return found


@pytest.mark.parametrize("case", list(CASES))
def test_a_reader_that_follows_the_page_gets_every_bit(
    case: str, tmp_path: Path, parent: ModelFolder, tokens: Path
) -> None:
    architecture, method, flags = CASES[case]
    recipe = make_recipe(parent(architecture), method, calibration={"source": str(tokens)}, **flags)
    quantize_to(recipe, tmp_path / "checkpoint", HookEvents(recipe))
    entries = json.loads((tmp_path / "checkpoint" / "config.json").read_text())["quantization_config"]["modules"]
    formats = {entry["format"] for entry in entries.values()}
    assert any(case.startswith(name) for name in formats), f"{case} was written as {formats}"
    expected, found = dequantized(tmp_path / "checkpoint"), read_weights(tmp_path / "checkpoint")
    assert found.keys() == expected.keys() == entries.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name].view(np.uint32), weight.view(np.uint32), err_msg=name)


def test_the_cases_cover_every_shipped_format_and_layout() -> None:
    shipped = {name for name, entry in registry().table("format").items() if entry.source.distribution == "lowbit"}
    covered = {next(name for name in sorted(shipped, key=len, reverse=True) if case.startswith(name)) for case in CASES}
    assert covered == shipped
    packers = {name for name, entry in registry().table("packer").items() if entry.source.distribution == "lowbit"}
    assert packers == {"interleaved", "bit-planes"}, "describe the new layout in docs/formats.md, and read it here"


def test_the_page_describes_every_shipped_format() -> None:
    page = (REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8")
    for name, entry in registry().table("format").items():
        if entry.source.distribution == "lowbit":
            assert f"### `{name}`, version {entry.item.version}" in page


def test_the_worked_example_of_the_page_is_what_the_packers_write() -> None:
    page = (REPOSITORY / "docs" / "formats.md").read_text(encoding="utf-8")
    tool = load_tool("worked_example")
    assert load_tool("generated_parts").part_of(page, tool.BEGIN) == tool.example().strip("\n")


def test_the_reader_imports_nothing_of_lowbit() -> None:
    source = (Path(__file__).parent / "format_reader.py").read_text(encoding="utf-8")
    imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert not [line for line in imports if "lowbit" in line or "torch" in line]

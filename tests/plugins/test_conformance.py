"""The plugins of the box hold to the contracts that anybody's plugin is checked by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from plugins.matrices import assert_packs, assert_same, gaussian, packers_for

from lowbit.packing.dense import DenseWeight
from lowbit.recipe import resolve_recipe
from lowbit.registry import registry
from lowbit.testing import Conformance, FormatConformance
from lowbit.testing.matrix_checks import MatrixChecks
from lowbit.testing.packing_checks import PackingChecks
from lowbit.testing.suites import suites_of

KINDS = ("weight quantizer", "packer", "kernel")
METHODS = [method.name for method in registry().methods()]
MAKERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dual-binary": ("fdb", {}),
    "partial-binary": ("pbllm", {"low_frac": 0.5}),
    "partial-binary-indexed": ("pbllm", {}),
    "residual-binary": ("billm", {}),
    "uniform": ("rtn", {}),
    "uniform-affine": ("lsq", {}),
    "uniform-ordered": ("gptq", {"act_order": True, "group_size": 16}),
}
"""Which quantizer makes each format, with which options."""


def suites() -> Iterator[tuple[str, type[Conformance]]]:
    for kind in KINDS:
        for name, entry in sorted(registry().table(kind).items()):
            yield from suites_of(kind, name, entry.item).items()
    for name in METHODS:
        method = registry().method(name)
        if method.quantizer is not None and method.options:
            options = {"quantizer": registry().quantizer(method.quantizer), "options": method.options}
            yield f"quantizer of method {name}", type("Method", (MatrixChecks, PackingChecks), options)


class DenseConformance(FormatConformance):
    """`DenseWeight` is what a quantizer returns that has no format yet."""

    __test__ = False

    def examples(self) -> Mapping[str, DenseWeight]:
        return {"DenseWeight(gaussian(3, 37).half(), 2)": DenseWeight(gaussian(3, 37).half(), 2)}


def each_check(found: Iterator[tuple[str, type[Conformance]]]) -> pytest.MarkDecorator:
    pairs = [pytest.param(suite, check, id=f"{title}-{check}") for title, suite in found for check in suite.checks()]
    return pytest.mark.parametrize(("suite", "check"), pairs)


@each_check(suites())
def test_plugins_hold_to_their_contracts(suite: type[Conformance], check: str) -> None:
    getattr(suite(), check)()


@pytest.mark.parametrize("name", sorted(registry().table("format")))
@pytest.mark.parametrize("check", FormatConformance.checks())
def test_formats_hold_to_their_contract(name: str, check: str) -> None:
    suite: type[FormatConformance] = DenseConformance
    if name != DenseWeight.format:
        quantizer, options = MAKERS[name]
        suite = type("Made", (FormatConformance,), {"quantizer": registry().quantizer(quantizer), "options": options})
    assert name in {weight.format for weight in suite().examples().values()}
    getattr(suite(), check)()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resolves_to_a_whole_recipe(name: str) -> None:
    recipe = resolve_recipe(registry(), name)
    method = registry().method(name)
    assert recipe.method == name
    assert method.description
    if method.quantizer is None:
        assert recipe.quantizer is None
        return
    assert recipe.quantizer is not None
    assert recipe.quantizer.name == method.quantizer
    assert set(recipe.quantizer.options) == set(registry().quantizer(method.quantizer).Config.model_fields)
    assert method.options.items() <= recipe.quantizer.options.items()


@pytest.mark.parametrize("name", [name for name in METHODS if registry().method(name).quantizer])
def test_every_method_packs_with_its_own_packer(quantize: Any, name: str) -> None:
    recipe = resolve_recipe(registry(), name)
    assert recipe.quantizer is not None
    quantized = quantize(recipe.quantizer.name, gaussian(8, 172), **recipe.quantizer.options)
    assert recipe.packer.name in {packer.name for packer in packers_for(quantized)}
    assert_packs(quantized)


@pytest.mark.parametrize("name", sorted(registry().table("weight quantizer")))
def test_a_strided_weight_gives_the_same_bits(quantize: Any, name: str) -> None:
    weight = gaussian(6, 100)
    assert_same(quantize(name, weight), quantize(name, weight.t().contiguous().t()))

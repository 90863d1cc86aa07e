"""The names of a new plugin, derived from one."""

from __future__ import annotations

import importlib.metadata
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.errors import LowbitError
from lowbit.scaffold import plugin_names


def test_every_name_follows_from_that_of_the_distribution() -> None:
    names = plugin_names("my-quantizer")
    assert names.distribution == "my-quantizer"
    assert names.module == "lowbit_my_quantizer"
    assert names.method == "my-quantizer"
    assert names.quantizer_class == "MyQuantizer"
    assert names.weight_class == "MyQuantizerWeight"


@pytest.mark.parametrize("name", ["lowbit-soft-sign", "soft_sign", "Soft.Sign"])
def test_a_prefix_and_other_separators_change_only_the_distribution(name: str) -> None:
    names = plugin_names(name)
    assert names.distribution == name
    assert names.module == "lowbit_soft_sign"
    assert names.method == "soft-sign"
    assert names.quantizer_class == "SoftSignQuantizer"


@pytest.mark.parametrize("name", ["", "-", "9lives", "a b", "a/b", "../a", "a-", "über", "a" * 41, "a\n"])
def test_what_is_no_name_of_a_distribution_is_refused_and_it_is_said_what_is_one(name: str) -> None:
    with pytest.raises(LowbitError, match="at most 40 ASCII letters, digits, '-', '_' and"):
        plugin_names(name)


@pytest.mark.parametrize("name", ["lowbit", "Lowbit", "lowbit-2bit"])
def test_a_word_that_starts_with_a_letter_must_follow_the_prefix(name: str) -> None:
    with pytest.raises(LowbitError, match="a word that starts with a letter must follow 'lowbit'"):
        plugin_names(name)


def test_the_module_of_a_plugin_that_comes_with_lowbit_is_taken() -> None:
    points = importlib.metadata.entry_points(group="lowbit")
    shipped = [point.value for point in points if point.value.startswith("lowbit_") and point.dist.name == "lowbit"]
    assert shipped
    for module in shipped:
        with pytest.raises(LowbitError, match=f"{module}, which comes with lowbit"):
            plugin_names(module.removeprefix("lowbit_"))


@pytest.mark.parametrize("name", ["weight", "lowbit-quantized"])
def test_a_name_whose_classes_would_hide_a_contract_is_refused(name: str) -> None:
    with pytest.raises(LowbitError, match="contracts"):
        plugin_names(name)


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9._-]{0,38}[A-Za-z0-9]", fullmatch=True))
def test_names_are_identifiers_where_python_needs_them(name: str) -> None:
    try:
        names = plugin_names(name)
    except LowbitError:
        return
    for identifier in (names.module, names.quantizer_class, names.weight_class):
        assert identifier.isidentifier()
        assert not keyword.iskeyword(identifier)
    assert names.module.startswith("lowbit_")
    assert len({names.quantizer_class, names.weight_class, "WeightQuantizer", "QuantizedWeight"}) == 4

"""Which classes are collected, and how checks are left out."""

from __future__ import annotations

from pathlib import Path
from unittest import SkipTest

import pytest
from testing.broken_plugins import ThreeBit

from lowbit.errors import LowbitError
from lowbit.registry import registry
from lowbit.testing import ConformanceError, FormatConformance, QuantizerConformance, registered, run_checks


class TestThreeBitWeight(FormatConformance):
    quantizer = ThreeBit


def test_a_subclass_is_collected_and_the_kits_own_classes_are_not(request: pytest.FixtureRequest) -> None:
    here = {item.cls.__name__ for item in request.session.items if item.path == request.path and item.cls}
    assert here <= {"TestThreeBitWeight"}
    assert TestThreeBitWeight.__test__
    assert not FormatConformance.__test__
    assert not QuantizerConformance.__test__


def test_a_skip_with_a_reason_skips_that_check() -> None:
    skips = {"test_it_says_what_it_is": "a reason"}
    made = type("Made", (QuantizerConformance,), {"quantizer": ThreeBit, "skips": skips})
    with pytest.raises(SkipTest, match="a reason"):
        made().test_it_says_what_it_is()


@pytest.mark.parametrize(
    ("skips", "words"), [({"test_nothing": "a reason"}, "'test_nothing'"), ({"test_it_says_what_it_is": " "}, "none")]
)
def test_an_unknown_check_or_an_empty_reason_is_a_failure(skips: dict[str, str], words: str) -> None:
    made = type("Made", (QuantizerConformance,), {"quantizer": ThreeBit, "skips": skips})
    with pytest.raises(ConformanceError, match=words):
        made().test_skips_name_checks_and_give_reasons()


def test_a_class_without_a_quantizer_says_what_to_set() -> None:
    made = type("Made", (QuantizerConformance,), {})
    with pytest.raises(LowbitError, match="set `quantizer` to your subclass"):
        made().test_the_weight_is_not_changed()


def test_what_is_under_test_is_registered_for_as_long_as_it_is() -> None:
    with registered(ThreeBit):
        assert registry().quantizer("three-bit") is ThreeBit
    assert "three-bit" not in registry().table("weight quantizer")


def test_an_exception_of_the_plugin_is_a_failed_check() -> None:
    def fails(self: object) -> None:
        raise ZeroDivisionError("here")

    made = type("Made", (QuantizerConformance,), {"quantizer": ThreeBit, "test_a": fails})
    first = next(iter(run_checks(made)))
    assert (first.check, first.verdict) == ("test_a", "failed")
    assert "ZeroDivisionError: here" in first.message


def test_the_kit_imports_no_test_runner() -> None:
    import lowbit.testing

    for file in Path(str(lowbit.testing.__file__)).parent.glob("*.py"):
        assert "import pytest" not in file.read_text(encoding="utf-8")

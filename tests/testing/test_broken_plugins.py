"""Every fault is caught by the check that is about it, with a message that names it."""

from __future__ import annotations

import pytest
from testing import broken_plugins as broken

from lowbit.testing import (
    Conformance,
    FormatConformance,
    KernelConformance,
    LossConformance,
    PackerConformance,
    QuantizerConformance,
    run_checks,
)


def suite(base: type[Conformance], **about: object) -> type[Conformance]:
    return type("Broken", (base,), about)


def failures(checked: type[Conformance]) -> dict[str, str]:
    return {outcome.check: outcome.message for outcome in run_checks(checked) if outcome.verdict == "failed"}


def test_a_sound_plugin_passes_with_every_class_of_checks() -> None:
    sound = broken.ThreeBit
    assert failures(suite(QuantizerConformance, quantizer=sound)) == {}
    assert failures(suite(FormatConformance, quantizer=sound)) == {}


@pytest.mark.parametrize(
    ("quantizer", "check", "words"),
    [
        (broken.Random, "test_one_seed_decides_everything", "the same seed (draw only from the `generator`"),
        (broken.Lying, "test_claimed_bits_cover_what_is_declared", "3 bits a weight (codes 3)"),
        (broken.DividesByZero, "test_what_comes_out_is_finite", "nan at [0, 0] in 'values'"),
        (broken.Mutating, "test_the_weight_is_not_changed", "weight differs in 600 of 600 elements"),
        (broken.Undocumented, "test_every_option_is_documented", "none of secret"),
    ],
)
def test_a_broken_quantizer_fails_one_check(quantizer: type, check: str, words: str) -> None:
    found = failures(suite(QuantizerConformance, quantizer=quantizer))
    if quantizer is broken.DividesByZero:
        found.pop("test_rows_of_zeros_stay_zeros_and_others_do_not_vanish", None)
    assert list(found) == [check]
    assert words in found[check]
    assert all(part in found[check] for part in ("expected: ", "got: ", "reproduce:\n"))


def test_a_format_that_loses_a_parameter_is_caught() -> None:
    found = failures(suite(FormatConformance, quantizer=broken.Forgetful))
    assert "factor is 1.0, not 0.75" in found["test_tensors_and_parameters_restore_it"]
    assert set(found) <= {"test_tensors_and_parameters_restore_it", "test_packing_loses_no_bit"}


def test_a_packer_that_loses_a_bit_is_caught() -> None:
    found = failures(suite(PackerConformance, packer=broken.LosesABit, quantizer=broken.ThreeBit))
    message = found.pop("test_packing_loses_no_bit")
    assert "packer 'broken-packer' unpacks exactly the weight that it packed" in message
    assert "codes differs in 1 of" in message
    assert set(found) <= {"test_the_packed_model_computes_what_the_dense_one_does"}


def test_a_kernel_that_is_off_by_a_thousandth_is_caught() -> None:
    found = failures(suite(KernelConformance, kernel=broken.OffByAThousandth, quantizer=broken.ThreeBit))
    assert list(found) == ["test_products_are_those_of_the_dense_weight_in_float32"]
    [message] = found.values()
    assert "kernel 'broken-kernel' multiplies by what `dequantize()` returns" in message
    assert "times the error that is allowed" in message


def test_a_loss_with_a_wrong_gradient_is_caught() -> None:
    found = failures(suite(LossConformance, loss=broken.WrongGradient))
    assert list(found) == ["test_gradients_are_those_of_the_values"]
    assert "in term 0, student_logits" in found["test_gradients_are_those_of_the_values"]

"""Operation counts and zero words of dual-binary planes, against planes small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_dbllm import BitPlanePacker, DualBinaryWeight, lowbit_diagnostics
from lowbit_dbllm.operations import (
    PlaneCounts,
    binary_network_counts,
    count_planes,
    operation_counts,
    zero_words,
)

from lowbit import DenseWeight


def random_weight(out: int, length: int, group_size: int, seed: int) -> DualBinaryWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = 1 if group_size == -1 else -(-length // group_size)
    plane1, plane2 = (torch.rand(out, length, generator=generator) < share for share in (0.3, 0.5))
    return DualBinaryWeight(plane1, plane2, torch.ones(out, groups), -0.4 * torch.ones(out, groups), group_size)


def small_weight() -> DualBinaryWeight:
    """Two rows of two groups of two: six bits are set, five weights are not zero."""
    return DualBinaryWeight(
        plane1=torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]).bool(),
        plane2=torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]]).bool(),
        alpha1=torch.tensor([[1.0, -1.0], [1.0, 1.0]]),
        alpha2=torch.tensor([[-0.5, 0.5], [-0.5, -0.5]]),
        group_size=2,
    )


def test_bits_weights_and_groups_are_counted() -> None:
    assert count_planes(small_weight()) == PlaneCounts(weights=8, set_bits=6, nonzero=5, groups=4)


def test_additions_and_multiplications_follow_the_stated_rule() -> None:
    numbers = operation_counts(count_planes(small_weight()))
    assert numbers["additions_per_weight"] == (6 + 2 * 4) / 8
    assert numbers["multiplications_per_weight"] == 2 * 4 / 8
    assert numbers["operations_per_weight"] == 22 / 8
    assert numbers["full_precision_operations_per_weight"] == 2
    assert numbers["dense_2bit_operations_per_weight"] == (16 + 8) / 8
    assert numbers["dense_2bit_skipping_zeros_operations_per_weight"] == (10 + 8) / 8
    assert numbers["dense_2bit_by_additions_operations_per_weight"] == (8 + 8) / 8
    assert numbers["dense_2bit_by_additions_skipping_zeros_operations_per_weight"] == (5 + 8) / 8
    assert numbers["operations_to_full_precision"] == 22 / 16
    assert numbers["operations_to_dense_2bit"] == pytest.approx(22 / 24)
    assert numbers["operations_to_dense_2bit_by_additions_skipping_zeros"] == pytest.approx(22 / 13)


def test_the_rule_of_binary_networks_divides_bit_operations_by_64() -> None:
    numbers = binary_network_counts(count_planes(small_weight()))
    assert numbers == pytest.approx(
        {
            "binary_network_operations_to_dense_2bit": (16 / 64 + 8) / (16 / 64 + 4),
            "binary_network_operations_to_full_precision": (16 / 64 + 8) / 8,
            "binary_network_set_bits_operations_to_dense_2bit": (6 / 64 + 8) / (16 / 64 + 4),
            "binary_network_set_bits_operations_to_full_precision": (6 / 64 + 8) / 8,
        }
    )


def test_groups_of_64_need_a_sixteenth_of_full_precision_by_the_rule_of_binary_networks() -> None:
    counts = count_planes(random_weight(8, 256, 64, seed=0))
    assert binary_network_counts(counts)["binary_network_operations_to_full_precision"] == 1 / 16


@given(st.integers(1, 6), st.integers(1, 70), st.sampled_from([-1, 1, 16, 64]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_a_product_done_step_by_step(out: int, length: int, group_size: int, seed: int) -> None:
    """A masked sum, group by group, that counts its own additions and multiplications gives numbers and product."""
    weight = random_weight(out, length, group_size, seed)
    x = torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = length if group_size == -1 else group_size
    additions = multiplications = 0
    output = [0.0] * out
    for row in range(out):
        for group in range(weight.alpha1.shape[1]):
            columns = slice(group * size, (group + 1) * size)
            for plane, scale in ((weight.plane1, weight.alpha1), (weight.plane2, weight.alpha2)):
                total = 0.0
                for bit, value in zip(plane[row, columns].tolist(), x[columns].tolist(), strict=True):
                    if bit:
                        total += value
                        additions += 1
                output[row] += float(scale[row, group]) * total
                multiplications += 1
                additions += 1
    numbers = operation_counts(count_planes(weight))
    assert numbers["additions_per_weight"] == pytest.approx(additions / (out * length))
    assert numbers["multiplications_per_weight"] == pytest.approx(multiplications / (out * length))
    expected = weight.dequantize().double() @ x
    assert torch.allclose(torch.tensor(output, dtype=torch.float64), expected, atol=1e-5)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_zero_words_are_those_that_the_packer_stores(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    planes = torch.rand(2, 50, length, generator=generator) < 0.02
    weight = DualBinaryWeight(planes[0], planes[1], torch.ones(50, 1), -0.4 * torch.ones(50, 1), -1)
    words = BitPlanePacker().pack(weight).tensors
    for name in ("plane1", "plane2"):
        assert zero_words(getattr(weight, name)) == pytest.approx((words[name] == 0).double().mean().item())


def test_diagnostics_bring_densities_and_counts_together() -> None:
    numbers = lowbit_diagnostics(small_weight())
    assert numbers["plane1_density"] == numbers["plane2_density"] == 3 / 8
    assert numbers["sparsity"] == 1 - 6 / 16
    assert numbers["zero_weights"] == 3 / 8
    assert numbers["plane1_zero_words"] == 0
    assert numbers["mirrored_groups"] == 1 / 4
    assert numbers["additions_per_weight"] == 14 / 8
    assert numbers["binary_network_operations_to_full_precision"] == (16 / 64 + 8) / 8
    assert all(isinstance(number, float) for number in numbers.values())


def test_diagnostics_say_nothing_about_other_formats() -> None:
    assert lowbit_diagnostics(DenseWeight(torch.ones(1, 1), 16.0)) == {}

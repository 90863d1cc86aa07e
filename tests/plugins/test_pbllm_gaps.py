"""Sparse masks as gaps: every mask survives, and the chosen width is the smallest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit_pbllm import gaps as module
from lowbit_pbllm.gaps import decode_gaps, encode_gaps, smallest_gap_bits
from torch import Tensor

quick = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Masks of any density, empty and full ones among them."""
    out, columns = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    density = draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.95, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return torch.rand(out, columns, generator=generator) < density


def sparse(density: float, out: int = 40, columns: int = 300) -> Tensor:
    return torch.rand(out, columns, generator=torch.Generator().manual_seed(1)) < density


@quick
@given(masks(), st.integers(1, 8))
def test_any_mask_survives_any_width(mask: Tensor, bits: int) -> None:
    codes = encode_gaps(mask, bits)
    assert codes.dtype == torch.uint8
    assert codes.numel() == 0 or int(codes.max()) < 2**bits
    assert torch.equal(decode_gaps(codes, bits, (mask.shape[0], mask.shape[1])), mask)


@quick
@given(masks())
def test_the_chosen_width_is_the_smallest_and_its_bytes_are_true(mask: Tensor) -> None:
    sizes = {bits: -(-encode_gaps(mask, bits).numel() * bits // 8) for bits in range(1, 9)}
    bits, size = smallest_gap_bits(mask)
    assert size == sizes[bits] == min(sizes.values())


def test_codes_are_what_a_walk_over_the_positions_writes() -> None:
    mask = torch.zeros(3, 10, dtype=torch.bool)
    mask.view(-1)[[0, 1, 9, 12, 29]] = True
    # Gaps 0, 0, 7, 2, 16 with 3 skipped by an escape.
    assert encode_gaps(mask, 2).tolist() == [0, 0, 3, 3, 1, 2, 3, 3, 3, 3, 3, 1]


@pytest.mark.parametrize("density", [0.0, 0.003, 0.1, 1.0])
@pytest.mark.parametrize("length", [1, 7, 300])
def test_stretches_change_nothing(density: float, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = sparse(density, 8, 100)
    whole, chosen = encode_gaps(mask, 3), smallest_gap_bits(mask)
    monkeypatch.setattr(module, "AT_A_TIME", length)
    assert torch.equal(encode_gaps(mask, 3), whole)
    assert smallest_gap_bits(mask) == chosen
    assert torch.equal(decode_gaps(whole, 3, (8, 100)), mask)


def test_a_tenth_takes_about_half_a_bit_a_position() -> None:
    mask = sparse(0.1, 400, 500)
    assert 0.49 < 8 * smallest_gap_bits(mask)[1] / mask.numel() < 0.52  # entropy: 0.469

"""Which dtype scales are stored in."""

from __future__ import annotations

import pytest
import torch

from lowbit import storable_dtype


@pytest.mark.parametrize("values", [[1e-9], [1e6], [1.0, 1e-9]])
def test_a_lost_scale_turns_float16_into_float32(values: list[float]) -> None:
    assert storable_dtype("float16", torch.tensor(values)) == torch.float32


def test_what_is_lost_beside_larger_values_does_not_matter() -> None:
    means, scales = torch.tensor([1e-9, 0.2]), torch.tensor([0.1, 0.3])
    assert storable_dtype("float16", means, scales, beside=scales) == torch.float16
    assert storable_dtype("float16", means, scales) == torch.float32


def test_a_row_that_is_tiny_altogether_is_lost_all_the_same() -> None:
    scales = torch.tensor([1e-9, 0.2])
    assert storable_dtype("float16", scales, beside=scales) == torch.float32


def test_overflow_is_a_loss_beside_anything() -> None:
    assert storable_dtype("float16", torch.tensor([1e6]), beside=torch.tensor([1e30])) == torch.float32

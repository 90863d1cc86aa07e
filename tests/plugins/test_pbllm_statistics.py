"""Means and scales of the binarized weights against brute force in float64."""

from __future__ import annotations

import pytest
import torch
from lowbit_pbllm import chunks
from lowbit_pbllm.statistics import binary_statistics
from torch import Tensor

SHAPES = [(1, 1), (5, 3), (128, 17), (700, 4)]


def problem(shape: tuple[int, int], share: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator) + 0.3, torch.rand(*shape, generator=generator) < share


def masked_by_hand(row: list[float], salient: list[bool]) -> tuple[float, float]:
    kept = [w for w, s in zip(row, salient, strict=True) if not s]
    if not kept:
        return 0.0, 0.0
    mean = sum(kept) / len(kept)
    return mean, sum(abs(w - mean) for w in kept) / len(kept)


def biased_by_hand(row: list[float], salient: list[bool]) -> tuple[float, float]:
    zeroed = [0.0 if s else w for w, s in zip(row, salient, strict=True)]
    mean = sum(zeroed) / len(zeroed)
    return mean, sum(abs(w - mean) for w in zeroed) / len(zeroed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "by_hand"), [("masked", masked_by_hand), ("biased", biased_by_hand)])
def test_statistics_equal_brute_force(shape: tuple[int, int], kind: str, by_hand: object) -> None:
    columns, salient = problem(shape)
    means, scales = binary_statistics(columns, salient, kind)  # type: ignore[arg-type]
    rows = zip(columns.T.tolist(), salient.T.tolist(), strict=True)
    expected = torch.tensor([by_hand(*row) for row in rows], dtype=torch.float64)  # type: ignore[operator]
    assert torch.allclose(torch.stack([means, scales], dim=1).double(), expected, rtol=1e-6, atol=1e-7)


def test_masked_statistics_are_the_mean_and_scale_of_least_squared_error() -> None:
    """For its mean, the scale is optimal: no other one nearby gives a smaller error (equation 9)."""
    columns, salient = problem((300, 5))
    means, scales = binary_statistics(columns, salient, "masked")

    def error(scale: Tensor) -> Tensor:
        levels = means + scale * torch.where(columns >= means, 1.0, -1.0)
        return (columns - levels).square().masked_fill(salient, 0).sum(0)

    for factor in (0.9, 0.99, 1.01, 1.1):
        assert bool((error(scales) < error(scales * factor)).all())


def test_the_two_readings_agree_only_without_salient_weights() -> None:
    columns, salient = problem((200, 6))
    none = torch.zeros_like(salient)
    assert torch.equal(*(torch.stack(binary_statistics(columns, none, kind)) for kind in ("masked", "biased")))
    masked, biased = (binary_statistics(columns, salient, kind)[1] for kind in ("masked", "biased"))
    assert bool((biased < masked).all())


def test_each_salient_weight_adds_the_mean_to_the_biased_scale() -> None:
    columns = torch.tensor([[1.0], [3.0], [8.0], [0.0]])
    salient = torch.tensor([[False], [False], [True], [False]])
    means, scales = binary_statistics(columns, salient, "biased")
    assert means.item() == 1.0
    assert scales.item() == (0 + 2 + 1 + 1) / 4


@pytest.mark.parametrize("kind", ["masked", "biased"])
def test_rows_without_binarized_weights_get_zero(kind: str) -> None:
    columns, salient = problem((9, 4))
    salient[:, 2] = True
    means, scales = binary_statistics(columns, salient, kind)  # type: ignore[arg-type]
    assert means[2] == scales[2] == 0


@pytest.mark.parametrize("value", [0.3, -1.7])
def test_a_constant_row_has_its_value_as_mean_and_no_scale(value: float) -> None:
    means, scales = binary_statistics(torch.full((41, 2), value), torch.zeros(41, 2, dtype=torch.bool), "masked")
    assert means.tolist() == torch.full((2,), value).tolist()
    assert scales.tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["masked", "biased"])
def test_chunks_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, salient = problem((90, 6))
    whole = torch.stack(binary_statistics(columns, salient, kind))  # type: ignore[arg-type]
    monkeypatch.setattr(chunks, "AT_A_TIME", 12)
    assert torch.equal(torch.stack(binary_statistics(columns, salient, kind)), whole)  # type: ignore[arg-type]

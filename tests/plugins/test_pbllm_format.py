"""The partial-binary formats: what they stand for, how many bytes they take, and which of them is chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit_pbllm import IndexedPartialBinaryWeight, PartialBinaryWeight
from lowbit_pbllm.format import PartialBinary
from lowbit_pbllm.gaps import encode_gaps, smallest_gap_bits
from torch import Tensor

from lowbit import repeat_groups
from lowbit.packing import GenericPacker
from lowbit.registry import registry

SHAPES = [(1, 1), (5, 1), (1, 9), (3, 37), (16, 64), (7, 65), (32, 172), (24, 300)]


def random_weight(
    shape: tuple[int, int], share: float, indexed: bool, high_bits: int = 8, group_size: int = -1
) -> PartialBinary:
    """A format with random contents, built field by field."""
    generator = torch.Generator().manual_seed(5)
    out, columns = shape
    groups = 1 if group_size == -1 else -(-columns // group_size)
    salient = torch.rand(shape, generator=generator) < share
    common: dict[str, Any] = {
        "signs": torch.rand(shape, generator=generator) < 0.5,
        "codes": torch.randint(2 ** (high_bits - 1), (int(salient.sum()),), generator=generator).to(torch.uint8),
        "scales": torch.rand(out, groups, generator=generator).half(),
        "means": torch.randn(out, groups, generator=generator).half(),
        "salient_scales": torch.rand(out, generator=generator).half(),
        "salient_zero_points": torch.randint(2**high_bits, (out,), generator=generator).to(torch.uint8),
        "group_size": group_size,
        "high_bits": high_bits,
        "stored_bits": high_bits - 1,
    }
    if indexed:
        bits, _ = smallest_gap_bits(salient)
        return IndexedPartialBinaryWeight(**common, gaps=encode_gaps(salient, bits), gap_bits=bits)
    return PartialBinaryWeight(**common, salient_mask=salient)


def by_hand(weight: PartialBinary) -> Tensor:
    """The matrix, element by element."""
    out, columns = weight.shape
    salient, taken = weight.salient(), 0
    means, scales = (repeat_groups(part.float(), weight.group_size, columns) for part in (weight.means, weight.scales))
    dense = torch.empty(out, columns)
    for row in range(out):
        for column in range(columns):
            sign = bool(weight.signs[row, column])
            if salient[row, column]:
                code = int(weight.codes[taken]) + (2**weight.stored_bits if sign else 0)
                step = weight.salient_scales[row].float()
                dense[row, column] = step * float(code - int(weight.salient_zero_points[row]))
                taken += 1
            else:
                mean, scale = means[row, column], scales[row, column]
                dense[row, column] = mean + scale if sign else mean - scale
    assert taken == weight.codes.numel()
    return dense


def packed_bytes(weight: PartialBinary) -> dict[str, int]:
    return {name: tensor.nbytes for name, tensor in GenericPacker().pack(weight).tensors.items()}


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (7, 65)])
@pytest.mark.parametrize(("high_bits", "group_size"), [(8, -1), (2, 16), (5, 64)])
def test_dequantizing_is_exact(
    indexed: bool, share: float, shape: tuple[int, int], high_bits: int, group_size: int
) -> None:
    weight = random_weight(shape, share, indexed, high_bits, group_size)
    assert torch.equal(weight.dequantize(), by_hand(weight))


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_is_bit_exact(indexed: bool, share: float, shape: tuple[int, int]) -> None:
    weight = random_weight(shape, share, indexed, high_bits=6, group_size=32)
    again = GenericPacker().unpack(GenericPacker().pack(weight), type(weight))
    assert isinstance(again, PartialBinary)
    assert again.spec() == weight.spec()
    for name, tensor in weight.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name
    assert torch.equal(again.dequantize(), weight.dequantize())


def test_dequantizing_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowbit.quantization import groups

    weight = random_weight((9, 50), 0.2, False)
    whole = weight.dequantize()
    monkeypatch.setattr(groups, "CHUNK_ELEMENTS", 50)
    assert torch.equal(weight.dequantize(), whole)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("group_size", [-1, 32])
def test_bytes_are_those_of_the_formula_and_padding(shape: tuple[int, int], share: float, group_size: int) -> None:
    """(1 - r) + 8 r + 1 + 56 / m bits a weight with one group a row; 32 more for each further group of a row."""
    weight = random_weight(shape, share, indexed=False, group_size=group_size)
    out, columns = shape
    salient = weight.codes.numel()
    groups = weight.scales.shape[1]
    formula = (out * columns - salient) + 8 * salient + out * columns + out * (56 + 32 * (groups - 1))
    row_padding = 2 * out * (-columns % 8)  # signs and bitmap: each row starts on a byte
    code_padding = -7 * salient % 8
    assert 8 * sum(packed_bytes(weight).values()) == formula + row_padding + code_padding
    r = salient / (out * columns)
    assert formula / (out * columns) == pytest.approx((1 - r) + 8 * r + 1 + (56 + 32 * (groups - 1)) / columns)
    assert weight.nominal_bits == pytest.approx((1 - r) + 8 * r)
    assert weight.mask_bits == 8 * packed_bytes(weight)["salient_mask"] / (out * columns)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.2])
def test_gaps_save_what_they_are_shorter_than_the_bitmap(share: float) -> None:
    bitmap, indexed = (random_weight((32, 160), share, kind) for kind in (False, True))
    assert isinstance(indexed, IndexedPartialBinaryWeight)
    assert torch.equal(bitmap.dequantize(), indexed.dequantize())
    sizes, smaller = packed_bytes(bitmap), packed_bytes(indexed)
    assert smaller["gaps"] == -(-indexed.gaps.numel() * indexed.gap_bits // 8) < sizes["salient_mask"]
    assert sum(sizes.values()) - sum(smaller.values()) == sizes["salient_mask"] - smaller["gaps"]
    assert indexed.mask_bits == 8 * smaller["gaps"] / (32 * 160)
    assert indexed.nominal_bits == bitmap.nominal_bits


@pytest.mark.parametrize("indexed", [False, True])
def test_the_mask_is_counted_as_such(indexed: bool) -> None:
    weight = random_weight((8, 64), 0.1, indexed)
    layout = GenericPacker().layout(weight.spec(), type(weight))
    assert {entry.role for entry in layout.values()} == {"planes", "codes", "scales", "zero points", "masks"}
    assert [name for name, entry in layout.items() if entry.role == "masks"] == ["gaps" if indexed else "salient_mask"]


def test_a_tenth_at_eight_bits_is_nominally_one_point_seven() -> None:
    weight = random_weight((10, 10), 0.0, False)
    salient = torch.zeros(10, 10, dtype=torch.bool)
    salient[:, 3] = True
    tenth = PartialBinaryWeight(
        **{**vars(weight), "codes": torch.zeros(10, dtype=torch.uint8), "salient_mask": salient}
    )
    assert tenth.nominal_bits == pytest.approx(1.7)


@pytest.mark.parametrize("indexed", [False, True])
def test_diagnostics_say_the_share_the_mask_and_the_format(indexed: bool) -> None:
    weight = random_weight((8, 64), 0.1, indexed)
    numbers: dict[str, float] = {}
    for part in registry().hook.lowbit_diagnostics(quantized=weight):
        numbers.update(part)
    assert numbers["salient_share"] == weight.codes.numel() / 512
    assert numbers["mask_bits"] == weight.mask_bits
    assert numbers["indexed"] == float(indexed)

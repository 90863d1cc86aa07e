"""The base-3 packer: five ternary digits in a byte, 1.6 bits a weight."""

from typing import ClassVar

import torch
from lowbit import FormatSpec, PackedWeight, Packer, QuantizedWeight, TensorLayout
from torch import Tensor

from lowbit_ternary.format import TernaryWeight

DIGITS_A_BYTE = 5
PLACES = (1, 3, 9, 27, 81)


class Base3Packer(Packer):
    """Stores column j of a row as digit j % 5 of byte j // 5, the lowest place first; zeros fill a row's last byte."""

    name: ClassVar[str] = "base3"
    formats: ClassVar[tuple[str, ...]] = (TernaryWeight.format,)

    def layout(self, spec: FormatSpec, format_class: type[QuantizedWeight]) -> dict[str, TensorLayout]:
        """Say which tensors `pack` makes."""
        out, length, groups = spec.sizes["out"], spec.sizes["in"], spec.sizes["groups"]
        return {
            "digits": TensorLayout((out, -(-length // DIGITS_A_BYTE)), torch.uint8, "digits"),
            "scales": TensorLayout((out, groups), spec.dtype("scales"), "scales"),
        }

    def pack(self, weight: QuantizedWeight) -> PackedWeight:
        """Lay out a ternary weight."""
        tensors = weight.tensors()
        packed = {"digits": pack_digits(tensors["digits"]), "scales": tensors["scales"].contiguous()}
        return PackedWeight(weight.spec(), self.name, packed)

    def unpack(self, packed: PackedWeight, format_class: type[QuantizedWeight]) -> QuantizedWeight:
        """Recover the ternary weight."""
        digits = unpack_digits(packed.tensors["digits"], packed.spec.sizes["in"])
        return format_class.from_tensors(packed.spec, {"digits": digits, "scales": packed.tensors["scales"]})


def pack_digits(digits: Tensor) -> Tensor:
    """Return uint8 [rows, ceil(columns / 5)] for digits uint8 [rows, columns].

    Raises:
        ValueError: A digit is none of 0, 1 and 2, and would be lost.
    """
    if digits.numel() and int(digits.max()) > 2:
        raise ValueError(f"a ternary digit is 0, 1 or 2, not {int(digits.max())}")
    padded = torch.nn.functional.pad(digits, (0, -digits.shape[1] % DIGITS_A_BYTE))
    places = torch.tensor(PLACES, dtype=torch.uint8, device=digits.device)
    return (padded.unflatten(1, (-1, DIGITS_A_BYTE)) * places).sum(-1, dtype=torch.uint8)


def unpack_digits(packed: Tensor, length: int) -> Tensor:
    """Undo `pack_digits` for rows of `length` columns."""
    places = torch.tensor(PLACES, dtype=torch.uint8, device=packed.device)
    digits = packed.unsqueeze(-1) // places % 3  # [rows, bytes, 5]
    return digits.flatten(1)[:, :length].contiguous()

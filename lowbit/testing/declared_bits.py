"""How many bits a weight a format stores at least, by its own declaration, beside how many it claims."""

from __future__ import annotations

import math

from lowbit.contracts import Bits, Codes, DenseWeight, Field, FormatSpec, QuantizedWeight, declared_fields
from lowbit.testing.failure import ConformanceError, note

PAYLOAD_ROLES = (Bits.default_role, Codes.default_role)
SIDE_ROLE = "masks"
REST_BITS = 2.0
"""Scales and offsets in float32 for every 32 weights take as much."""


def payload_bits(weight: QuantizedWeight) -> dict[str, float]:
    """Return bits a weight of each field that holds the weights themselves, by its name.

    Those are planes and codes, and whatever has an element for every weight. Scales, zero points and masks are left
    out, as papers leave them out; a field that is a mask, or serves as one too, has a `role` that says masks.
    """
    spec = weight.spec()
    found = {}
    for name, field in declared_fields(type(weight)).items():
        elements = math.prod(spec.shape(field))
        is_large = elements >= spec.weights > 0 and SIDE_ROLE not in field.role
        if field.role in PAYLOAD_ROLES or (is_large and not _is_per_row_or_column(field)):
            found[name] = elements * _width(spec, name, field) / spec.weights
    return found


def _is_per_row_or_column(field: Field) -> bool:
    """Say whether a field has an entry a row, a column or a group: as many as weights only where these are single."""
    return not {"out", "in"} <= set(field.shape)


def _width(spec: FormatSpec, name: str, field: Field) -> int:
    if isinstance(field, Bits | Codes):
        return spec.width(field)
    return 8 * spec.dtype(name).itemsize


def require_honest_bits(weight: QuantizedWeight, reproduce: str) -> None:
    """Check that a weight claims no fewer bits than its declared planes and codes take.

    Raises:
        ConformanceError: The claim is no positive number, or is too low.
    """
    claim = weight.nominal_bits
    shown = f"{reproduce}\nquantized.nominal_bits, payload_bits(quantized)  # from lowbit.testing"
    if not (math.isfinite(claim) and claim > 0):
        raise ConformanceError("`nominal_bits` is a positive number", repr(claim), shown)
    if isinstance(weight, DenseWeight):
        note(
            f"its {claim:.4g} bits a weight are a claim that nothing can measure: DenseWeight stores plain numbers; "
            "a format with declared fields would make them measured"
        )
        return
    parts = payload_bits(weight)
    stored = sum(parts.values())
    if claim < stored * (1 - 1e-6):
        listed = ", ".join(f"{name} {bits:.4g}" for name, bits in parts.items())
        raise ConformanceError(
            f"`nominal_bits` counts at least the declared planes and codes: {stored:.4g} bits a weight ({listed})",
            f"format {weight.format!r} claims {claim:.4g}; count them, or let the role of a mask say so",
            shown,
        )


def require_small_rest(weight: QuantizedWeight, reproduce: str) -> None:
    """Check that what a claim leaves out is small: scales and the like, not the weights by another name.

    A mask is one bit an element of a `Bits` field and is left out here; everything else counts by its size, whatever
    its role and dimensions are called.

    Args:
        weight: A large matrix, beside which scales of rows and columns are little.
        reproduce: Code that makes it.

    Raises:
        ConformanceError: Fields that `nominal_bits` does not count take more than `REST_BITS` a weight.
    """
    if isinstance(weight, DenseWeight):
        return
    spec, counted = weight.spec(), payload_bits(weight)
    rest = {
        name: math.prod(spec.shape(field)) * _width(spec, name, field) / spec.weights
        for name, field in declared_fields(type(weight)).items()
        if name not in counted and not isinstance(field, Bits)
    }
    total = sum(rest.values())
    if total > REST_BITS:
        listed = ", ".join(f"{name} {bits:.4g}" for name, bits in rest.items())
        raise ConformanceError(
            f"fields beside planes and codes take at most {REST_BITS} bits a weight of a large matrix",
            f"{total:.4g} ({listed}) in format {weight.format!r}, which claims {weight.nominal_bits:.4g}; "
            "fields that hold the weights are planes or codes, and are claimed",
            f"{reproduce}\nquantized.tensors(), quantized.nominal_bits",
        )

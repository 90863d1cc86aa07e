"""One sign a weight and one scale a group: a whole plugin in one file.

Run it with: lowbit bench --plugin docs/examples/sign_quantizer.py --method sign
"""

from pydantic import BaseModel, Field

from lowbit import DenseWeight, Method, WeightQuantizer, from_groups, group_lengths, hookimpl, to_groups


class SignQuantizer(WeightQuantizer):
    """Keeps the sign of each weight and the mean magnitude of its group."""

    name = "sign"

    class Config(BaseModel):
        """Options of the sign quantizer."""

        group_size: int = Field(128, ge=1, description="columns that share a scale")

    def quantize(self, weight, statistics, generator):
        """Quantize a matrix [out, in]."""
        size, length = self.config.group_size, weight.shape[1]
        groups = to_groups(weight, size)  # [out, groups, size]; zeros fill a shorter last group
        scale = groups.abs().sum(-1) / group_lengths(length, size)  # [out, groups]
        return DenseWeight(from_groups(scale.unsqueeze(-1) * groups.sign(), length), nominal_bits=1 + 16 / size)


@hookimpl
def lowbit_weight_quantizers():
    """Register the quantizer."""
    yield SignQuantizer


@hookimpl
def lowbit_methods():
    """Register a method that uses it."""
    yield Method("sign", quantizer="sign")

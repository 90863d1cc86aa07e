"""One sign a weight and one scale a group: a whole plugin in one file.

Run it with: lowbit bench --plugin docs/examples/sign_quantizer.py --method sign
"""

from pydantic import BaseModel

from lowbit import DenseWeight, Method, WeightQuantizer, from_groups, hookimpl, to_groups


class SignQuantizer(WeightQuantizer):
    """Keeps the sign of each weight and the mean magnitude of its group."""

    name = "sign"

    class Config(BaseModel):
        """Options of the sign quantizer."""

        group_size: int = 128

    def quantize(self, weight, statistics, generator):
        """Quantize a matrix [out, in]."""
        groups = to_groups(weight, self.config.group_size)  # [out, groups, group_size]
        scale = groups.abs().mean(-1, keepdim=True)  # [out, groups, 1]
        dense = from_groups(scale * groups.sign(), weight.shape[1])
        return DenseWeight(dense, nominal_bits=1 + 16 / self.config.group_size)


@hookimpl
def lowbit_weight_quantizers():
    """Register the quantizer."""
    yield SignQuantizer


@hookimpl
def lowbit_methods():
    """Register a method that uses it."""
    yield Method("sign", quantizer="sign")

"""lowbit's checks of the contracts, run on everything that this plugin registers."""

from typing import ClassVar

from lowbit.testing import FormatConformance, LossConformance, PackerConformance, QuantizerConformance

from lowbit_ternary import Base3Packer, JensenShannon, TernaryQuantizer


class TestQuantizer(QuantizerConformance):
    quantizer = TernaryQuantizer


class TestQuantizerWithScalesOfTernaryWeightNetworks(QuantizerConformance):
    quantizer = TernaryQuantizer
    options: ClassVar = {"scale": "twn", "group_size": -1}


class TestFormat(FormatConformance):
    quantizer = TernaryQuantizer


class TestPacker(PackerConformance):
    packer = Base3Packer
    quantizer = TernaryQuantizer


class TestLoss(LossConformance):
    loss = JensenShannon

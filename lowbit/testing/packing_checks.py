"""Checks of a quantizer's packed weights: bits, layouts, products."""

from __future__ import annotations

import torch

from lowbit.modeling.reference_kernel import ReferenceKernel
from lowbit.registry import registry
from lowbit.testing.declared_bits import require_honest_bits, require_small_rest
from lowbit.testing.matrices import gaussian
from lowbit.testing.packers import packers_for, require_layout, require_unpacks
from lowbit.testing.products import activations, require_product, workload_on_cpu
from lowbit.testing.quantizer_subject import QuantizerSubject
from lowbit.testing.registering import registered


class PackingChecks(QuantizerSubject):
    """What a quantized weight must hold to once it is packed."""

    def test_packing_loses_no_bit(self) -> None:
        """Through the generic packer and every other one that serves the format."""
        for each, quantized in self.whole():
            for packer in packers_for(quantized):
                require_unpacks(quantized, packer, self.code(each.code, f"packer = {type(packer).__name__}()"))

    def test_layouts_say_what_is_packed(self) -> None:
        """Modules are built from layouts before a file is read, and bits are counted by them."""
        for each, quantized in self.whole():
            for packer in packers_for(quantized):
                require_layout(quantized, packer, self.code(each.code, f"packer = {type(packer).__name__}()"))

    def test_claimed_bits_cover_what_is_declared(self) -> None:
        """Bits in papers leave out scales and masks, but no plane and no code."""
        for each, quantized in self.whole():
            require_honest_bits(quantized, self.code(each.code))

    def test_what_bits_leave_out_is_small(self) -> None:
        """Scales, zero points and the like; what holds the weights is claimed, whatever it is called."""
        self.require_repeatable()
        require_small_rest(self.quantize(gaussian(256, 512)), self.code("gaussian(256, 512)"))

    def test_the_packed_product_is_the_dense_one(self) -> None:
        """Through every kernel that may be chosen for the weight on a CPU."""
        for each, quantized in self.whole():
            if each.code not in ("gaussian(7, 65)", "gaussian(4, 172)"):
                continue
            with registered(type(quantized)):
                for packer in packers_for(quantized):
                    for kind in registry().kernels():
                        kernel = kind()
                        # A kernel below the reference is approximate, and used only where it is asked for by name.
                        is_chosen = kind.priority >= ReferenceKernel.priority
                        workload = workload_on_cpu(quantized, packer)
                        if is_chosen and kernel.supports(workload).served:
                            for given in list(activations(quantized.shape[1], torch.float32))[2:4]:
                                require_product(kernel, quantized, packer, given, self.code(each.code), kind.tolerance)

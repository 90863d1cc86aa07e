"""Which kernel a packed layer goes through, and what happens when one fails."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit import FormatSpec, Kernel, PackedProduct, PackedWeight, Support, Workload, hookimpl
from lowbit.errors import LowbitError
from lowbit.modeling import kernel_choice
from lowbit.modeling.kernel_choice import KernelWarning, kernel_verdicts, workload_of
from lowbit.modeling.layouts import get_packer
from lowbit.modeling.packed_linear import bind_kernels, binding_later
from lowbit.modeling.packed_op import describe_weight, packed_linear
from lowbit.modeling.quant_linear import QuantLinear
from lowbit.registry import PluginSource, registry


class Failing(Kernel):
    """Says that it serves everything, and cannot be made ready."""

    name: ClassVar[str] = "failing"
    priority: ClassVar[int] = 5000

    def supports(self, workload: Workload) -> Support:
        return Support(True)

    def linear(self, x: Tensor, packed: PackedWeight, bias: Tensor | None) -> Tensor:
        raise AssertionError("never called")

    def bind(self, packed: PackedWeight, workload: Workload) -> PackedProduct:
        raise RuntimeError("no compiler\nhere")


class Plugin:
    @hookimpl
    def lowbit_kernels(self) -> Iterator[type[Kernel]]:
        yield Failing


@pytest.fixture
def failing_kernel() -> Iterator[None]:
    plugin = Plugin()
    registry().register(plugin, PluginSource("failing-kernel", "tests"))
    kernel_choice._warn_once.cache_clear()
    yield
    registry().unregister(plugin)


def packed_layer(bias: bool = True, packer: str = "plain") -> QuantLinear:
    """A dual-binary layer [24, 70] in groups of 32 with random contents."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(2, 24, 70, generator=generator) < 0.5
    scales = torch.randn(2, 24, 3, generator=generator).half()
    weight = registry().format("dual-binary")(  # type: ignore[call-arg]
        plane1=planes[0], plane2=planes[1], alpha1=scales[0], alpha2=scales[1], group_size=32
    )
    packed = get_packer(packer).pack(weight)
    layer = QuantLinear(packed.spec, packer, bias, device="cpu")
    for name, tensor in packed.tensors.items():
        layer.register_buffer(name, tensor)
    if layer.bias is not None:
        layer.bias.data = torch.randn(24, generator=generator)
    return layer


def activations(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_a_kernel_that_fails_is_named_once_and_the_next_one_computes(failing_kernel: None) -> None:
    layers, x = [packed_layer(), packed_layer()], activations(3, 70)
    with pytest.warns(KernelWarning, match="kernel failing .*RuntimeError: no compiler here") as caught:
        results = [layer(x) for layer in layers]
    assert len(caught) == 1
    for layer, result in zip(layers, results, strict=True):
        torch.testing.assert_close(result, F.linear(x, layer.dequantize(), layer.bias))
        assert layer.chosen_kernel != "failing"


def test_codes_of_many_bits_are_refused_with_a_reason_and_without_a_warning() -> None:
    spec = FormatSpec("uniform", 1, {"out": 8, "in": 64, "groups": 1}, {}, {"bits": 4, "group_size": 64})
    workload = workload_of(spec, "plain", torch.device("cpu"), torch.float32)
    refused = {verdict.kernel: verdict.reason for verdict in kernel_verdicts(workload) if not verdict.served}
    assert "no plane form" in refused["cpu-bit-planes"]


def test_verdicts_come_by_priority_with_reasons(failing_kernel: None) -> None:
    verdicts = kernel_verdicts(workload_of(packed_layer().spec, "plain", torch.device("cpu"), torch.float32))
    assert verdicts[0].kernel == "failing"
    assert "reference" in [verdict.kernel for verdict in verdicts if verdict.served]
    assert all(verdict.served or verdict.reason for verdict in verdicts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_operator_passes_opcheck(dtype: torch.dtype) -> None:
    packed = packed_layer().packed()
    bias = activations(24).to(dtype).requires_grad_()
    x = activations(2, 3, 70).to(dtype).requires_grad_()
    torch.library.opcheck(packed_linear, (x, list(packed.tensors.values()), bias, describe_weight(packed)))


def test_gradients_of_activations_and_bias_are_those_of_the_dense_layer() -> None:
    layer = packed_layer()
    x = activations(2, 5, 70).requires_grad_()
    layer(x).square().sum().backward()
    found = x.grad, layer.bias.grad  # type: ignore[union-attr]
    again = x.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()  # type: ignore[union-attr]
    F.linear(again, layer.dequantize(), bias).square().sum().backward()
    torch.testing.assert_close(found, (again.grad, bias.grad), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packer", ["plain", "bit-planes"])
@pytest.mark.parametrize("bound", [True, False])
def test_a_packed_layer_compiles_without_graph_breaks(packer: str, bound: bool) -> None:
    model = nn.Sequential(packed_layer(packer=packer), nn.ReLU())
    if bound:
        bind_kernels(model, torch.float32)
    x = activations(2, 70)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


def test_new_weights_are_multiplied_by_after_they_were_loaded() -> None:
    layer, x = packed_layer(), activations(2, 70)
    before = layer(x)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["plane1"] = ~state["plane1"]
    layer.load_state_dict(state)
    assert not torch.allclose(layer(x), before)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantize(), layer.bias))


def test_a_copy_and_a_saved_layer_bind_anew() -> None:
    layer, x = packed_layer(), activations(2, 70)
    expected = layer(x)
    again = copy.deepcopy(layer)
    assert again.chosen_kernel is None
    torch.testing.assert_close(again(x), expected)
    torch.save(layer, io.BytesIO())


def test_another_dtype_of_activations_binds_anew() -> None:
    layer, x = packed_layer(bias=False), activations(2, 70)
    exact = layer(x)
    rounded = layer(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.5)


def test_models_that_are_made_dense_at_once_bind_nothing() -> None:
    layer = packed_layer()
    with binding_later():
        bind_kernels(layer, torch.float32)
    assert layer.chosen_kernel is None
    bind_kernels(layer, torch.float32)
    assert layer.chosen_kernel is not None


@pytest.mark.parametrize("packer", ["plain", "interleaved"])
def test_a_weight_that_was_written_to_or_replaced_is_bound_anew(packer: str) -> None:
    layer, x = packed_layer(packer=packer), activations(2, 70)
    layer(x)
    name = "tiles" if packer == "interleaved" else "plane1"
    getattr(layer, name).zero_()
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantize(), layer.bias), rtol=1e-4, atol=1e-5)
    setattr(layer, name, getattr(packed_layer(packer=packer), name))
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantize(), layer.bias), rtol=1e-4, atol=1e-5)
    assert layer(x).abs().max() > 1


def test_a_weight_without_numbers_is_refused() -> None:
    layer = QuantLinear(packed_layer().spec, "plain", False)
    with pytest.raises(LowbitError, match="is on meta, the activations are on cpu"):
        layer(activations(2, 70))


@pytest.mark.parametrize("packer", ["plain", "interleaved"])
def test_a_layer_bound_in_inference_mode_has_gradients_later(packer: str) -> None:
    layer = packed_layer(packer=packer)
    with torch.inference_mode():
        layer(activations(2, 70))
    x = activations(2, 70).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand(2, 70), rtol=1e-4, atol=1e-4)


def test_the_reference_operator_computes_in_the_dtype_of_its_activations_under_autocast() -> None:
    packed = packed_layer().packed()
    arguments = (activations(2, 70), list(packed.tensors.values()), activations(24), describe_weight(packed))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed_linear(*arguments).dtype == torch.float32
    arguments = (arguments[0].bfloat16(), *arguments[1:])
    assert packed_linear(*arguments).dtype == torch.bfloat16

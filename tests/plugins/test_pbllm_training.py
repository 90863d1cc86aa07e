"""PB-LLM's training mode against plain automatic differentiation, and its frozen weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit_pbllm import IndexedPartialBinaryWeight, PartialBinarization, PartialBinaryWeight
from lowbit_pbllm.format import PartialBinary
from plugins.matrices import each_shape, each_special, gaussian, special_weights
from plugins.trained import Training, assert_freezes_to_its_output, in_training, walk
from torch import Tensor

from lowbit.recipe import resolve_recipe
from lowbit.registry import registry

QAT: dict[str, Any] = {"compensate": False, "saliency": "magnitude"}

each_scope = pytest.mark.parametrize("scale_scope", ["row", "group", "matrix"])
each_estimator = pytest.mark.parametrize("ste", ["clipped", "identity"])
each_centering = pytest.mark.parametrize("centered", [False, True])


def trained(weight: Tensor, **options: Any) -> Training:
    return in_training("pbllm", weight, **QAT, **options)


def start_of(training: Training) -> PartialBinary:
    assert isinstance(training.start, PartialBinary)
    return training.start


def members(scope: str, group_size: int, row: int, column: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Which part of the matrix shares the scale of one weight."""
    if scope == "matrix":
        return slice(None), slice(None)
    if scope == "row" or group_size == -1:
        return slice(row, row + 1), slice(None)
    first = column // group_size * group_size
    return slice(row, row + 1), slice(first, first + group_size)


def reference(latent: Tensor, start: PartialBinary, scope: str, ste: str, centered: bool) -> Tensor:
    """The forward pass weight by weight in plain torch operations, float64."""
    salient, fixed = start.salient(), start.dequantize().double()
    rows = []
    for i in range(latent.shape[0]):
        row = []
        for j in range(latent.shape[1]):
            part = members(scope, start.group_size, i, j, start.shape)
            others = latent[part][~salient[part]].detach()
            if salient[i, j]:
                row.append(fixed[i, j])
                continue
            mean = others.mean() if centered else torch.zeros((), dtype=torch.float64)
            scale = (others - mean).abs().mean()
            x = latent[i, j] - mean
            through = x.clamp(-1, 1) if ste == "clipped" else x
            sign = through + (torch.where(x >= 0, 1.0, -1.0) - through).detach()
            row.append(mean + scale * sign)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@each_scope
@each_estimator
@each_centering
@pytest.mark.parametrize("group_size", [-1, 16])
def test_output_and_gradient_equal_automatic_differentiation_in_float64(
    scale_scope: str, ste: str, centered: bool, group_size: int
) -> None:
    weight, incoming = gaussian(5, 40) * 0.8 + 0.1, gaussian(5, 40, seed=1)
    options = {"scale_scope": scale_scope, "ste": ste, "centered": centered, "group_size": group_size}
    training = trained(weight, scale_dtype="float32", low_frac=0.8, **options)
    walk(training, rate=0.05)
    exact = training.latent.detach().double().requires_grad_()
    expected = reference(exact, start_of(training), scale_scope, ste, centered)
    expected.backward(incoming.double())
    output = training.output()
    output.backward(incoming)
    assert torch.allclose(output.double(), expected, atol=1e-6)
    assert exact.grad is not None
    assert training.latent.grad is not None
    assert torch.allclose(training.latent.grad.double(), exact.grad, atol=1e-6)


@each_scope
@each_estimator
def test_salient_weights_get_no_gradient_and_keep_their_values(scale_scope: str, ste: str) -> None:
    training = trained(gaussian(12, 200), scale_scope=scale_scope, ste=ste)
    salient = start_of(training).salient()
    values = training.start.dequantize()[salient]
    training.output().backward(gaussian(12, 200, seed=1))
    assert training.latent.grad is not None
    assert not training.latent.grad[salient].any()
    assert bool(training.latent.grad[~salient].abs().max() > 0)
    walk(training, rate=0.2)
    frozen = training.frozen()
    assert torch.equal(training.output()[salient], values)
    assert torch.equal(frozen.dequantize()[salient], values)
    assert torch.equal(start_of(training).codes, frozen.tensors()["codes"])


def test_latent_values_of_salient_weights_count_for_nothing() -> None:
    training = trained(gaussian(6, 90), centered=True)
    before = training.output().detach()
    with torch.no_grad():
        training.latent[start_of(training).salient()] = 1e3
    assert torch.equal(training.output(), before)


def test_weights_beyond_one_get_no_gradient_through_the_clipped_sign_alone() -> None:
    weight = gaussian(8, 64) * 3
    for ste in ("clipped", "identity"):
        training = trained(weight, ste=ste)
        training.output().backward(torch.ones(8, 64))
        binary = ~start_of(training).salient()
        assert training.latent.grad is not None
        moves = training.latent.grad[binary] != 0
        assert torch.equal(moves, weight[binary].abs() <= 1 if ste == "clipped" else torch.ones_like(moves))


def test_the_scale_is_the_one_of_least_squared_error_of_its_row() -> None:
    training = trained(gaussian(9, 80), scale_dtype="float32")
    binary = ~start_of(training).salient()
    output, latent = training.output().detach(), training.latent.detach()

    def error(factor: float) -> Tensor:
        return ((output * factor - latent).double().square() * binary).sum(1)

    for factor in (0.9, 0.99, 1.01, 1.1):
        assert bool((error(1.0) < error(factor)).all())


def test_a_scale_of_the_matrix_is_stored_with_every_group() -> None:
    training = trained(gaussian(7, 130), scale_scope="matrix", group_size=32)
    scales = training.frozen().tensors()["scales"]
    assert scales.shape == (7, 5)
    assert len(scales.unique()) == 1
    assert len(trained(gaussian(7, 130), scale_scope="row", group_size=32).frozen().tensors()["scales"].unique()) == 7


def test_centered_rows_start_as_they_were_quantized() -> None:
    """Means and scales are then those that quantization takes, but for the rounding of their sums."""
    training = trained(gaussian(16, 256) + 0.3, centered=True, scale_dtype="float32")
    assert torch.allclose(training.output(), training.start.dequantize(), atol=1e-6)


def test_a_row_of_salient_weights_alone_has_no_scale() -> None:
    weight = gaussian(4, 32) * 0.01
    weight[1] = 5.0 + gaussian(32).abs()
    training = trained(weight, low_frac=0.75, centered=True)
    assert bool(start_of(training).salient()[1].all())
    assert_freezes_to_its_output(training)
    frozen = training.frozen().tensors()
    assert (float(frozen["means"][1]), float(frozen["scales"][1])) == (0, 0)


@pytest.mark.parametrize(("low_frac", "kind"), [(0.98, IndexedPartialBinaryWeight), (0.5, PartialBinaryWeight)])
def test_both_formats_train(low_frac: float, kind: type) -> None:
    training = trained(gaussian(40, 200), low_frac=low_frac)
    assert type(training.start) is kind
    walk(training, rate=0.05)
    assert_freezes_to_its_output(training)
    assert type(training.frozen()) is kind


@each_scope
@each_centering
@each_shape
@pytest.mark.parametrize("fidelity", ["paper", "code"])
def test_output_is_what_freezing_gives_under_all_options(
    scale_scope: str, centered: bool, shape: tuple[int, int], fidelity: str
) -> None:
    options = {"scale_scope": scale_scope, "centered": centered, "fidelity": fidelity, "group_size": 32}
    training = trained(gaussian(*shape), **options)
    assert_freezes_to_its_output(training)
    walk(training, rate=0.05)
    assert_freezes_to_its_output(training)


@each_scope
@each_special
def test_degenerate_weights_train(scale_scope: str, kind: str) -> None:
    training = trained(special_weights()[kind], scale_scope=scale_scope, centered=True)
    assert_freezes_to_its_output(training)
    walk(training, rate=0.01)
    assert_freezes_to_its_output(training)


def test_the_backward_pass_keeps_no_matrix_for_the_identity_and_the_latent_weight_for_the_clipped_sign() -> None:
    for ste, matrices in (("identity", 0), ("clipped", 1)):
        training = trained(gaussian(64, 256), ste=ste)
        kept: list[Tensor] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t)
        with hooks:
            training.output()
        large = {tensor.data_ptr() for tensor in kept if tensor.numel() >= training.latent.numel()}
        assert large == ({training.latent.data_ptr()} if matrices else set())


def test_presets_differ_as_paper_and_code_do() -> None:
    paper, code = (PartialBinarization.Config(fidelity=reading).resolved() for reading in ("paper", "code"))
    assert (paper.scale_scope, paper.ste) == ("row", "clipped")
    assert (code.scale_scope, code.ste) == ("matrix", "identity")


def test_the_method_chooses_salient_weights_by_magnitude_and_compensates_nothing() -> None:
    recipe = resolve_recipe(registry(), "pbllm-qat")
    assert recipe.quantizer is not None
    assert recipe.quantizer.name == "pbllm"
    assert QAT.items() <= recipe.quantizer.options.items()

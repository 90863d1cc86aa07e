"""A teacher that runs each sequence once."""

from __future__ import annotations

import torch
from small_models import ModelFolder, load_model

from lowbit.distillation.remembered_teacher import RememberedTeacher, remembered_bytes
from lowbit.distillation.student import Body


def test_each_sequence_runs_once_and_alone(parent: ModelFolder) -> None:
    body = Body(load_model(parent("llama"))).requires_grad_(False)
    tokens = torch.randint(3, 90, (5, 12), generator=torch.Generator().manual_seed(0))
    expected = [body(sequence)[0] for sequence in tokens.split(1)]
    sizes: list[int] = []
    body.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    teacher = RememberedTeacher(body)
    for order in ([0, 1, 2], [2, 0, 4], [4, 4, 1, 3]):
        found, blocks = teacher(tokens[order])
        assert torch.equal(found, torch.cat([expected[position] for position in order]))
        assert blocks == ()
    assert sizes == [1] * 5


def test_the_outputs_of_blocks_are_computed_anew(parent: ModelFolder) -> None:
    body = Body(load_model(parent("llama"))).requires_grad_(False)
    tokens = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    found, expected = RememberedTeacher(body)(tokens, True), body(tokens, True)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[1], expected[1], strict=True))


def test_memory_is_counted_in_float32() -> None:
    assert remembered_bytes(torch.zeros(3, 5, dtype=torch.int64), 7) == 3 * 5 * 7 * 4

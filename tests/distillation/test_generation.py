from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import VOCABULARY, ModelFolder, load_model, make_tokenizer
from tokenizers import processors

from lowbit.contracts.training import GenerationSettings
from lowbit.distillation.generation import (
    batch_generator,
    begin_of_text,
    first_tokens,
    generate_batch,
    greedy_counts,
    sample,
    stratified,
)
from lowbit.errors import LowbitError

BEGIN = 1
END = 2
BATCH = 4
LENGTH = 24


def tokenizer_with_begin() -> Any:
    """A tokenizer that puts its begin-of-text token before every text."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    return tokenizer


def arguments(seed: int = 3) -> dict[str, Any]:
    first = torch.tensor([[BEGIN, 7], [BEGIN, 90], [BEGIN, 33], [BEGIN, 4]])
    greedy = torch.tensor([3, 4, 5, 0])
    generator = batch_generator(seed, "batch 0")
    return {"first": first, "greedy": greedy, "length": LENGTH, "temperature": 0.8, "generator": generator}


@torch.no_grad()
def written_without_cache(
    model: Any, first: torch.Tensor, greedy: torch.Tensor, length: int, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """The same by one full forward pass a token, and a search in NumPy."""
    tokens = first
    while tokens.shape[1] < length:
        logits = model(input_ids=tokens, use_cache=False).logits[:, -1].double().numpy()
        draws = torch.rand(len(first), generator=generator, dtype=torch.float64).numpy()
        chosen = []
        for row, draw, count in zip(logits, draws, greedy.tolist(), strict=True):
            weights = np.exp((row - row.max()) / temperature)
            sampled = int((np.cumsum(weights) / weights.sum() <= draw).sum())
            chosen.append(int(row.argmax()) if tokens.shape[1] < first.shape[1] + count else sampled)
        tokens = torch.cat([tokens, torch.tensor(chosen)[:, None]], dim=1)
    return tokens


@pytest.mark.parametrize(
    "architecture", ["llama", "llama-tied", "opt", "gpt-neox", "qwen3", "gpt2", "gemma3", "mixtral", "deepseek-v3"]
)
def test_the_cache_changes_no_token(parent: ModelFolder, architecture: str) -> None:
    model = load_model(parent(architecture))
    written = generate_batch(model, **arguments())
    assert torch.equal(written, written_without_cache(model, **arguments()))
    assert written.shape == (BATCH, LENGTH)
    assert written.dtype == torch.int64


def test_a_model_without_a_cache_writes_the_same(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))

    class WithoutCache(torch.nn.Module):
        device = model.device

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            assert use_cache
            return model(input_ids=input_ids, use_cache=False)

    assert torch.equal(generate_batch(WithoutCache(), **arguments()), generate_batch(model, **arguments()))


def test_the_greedy_part_is_the_likeliest_token_and_the_rest_is_not_always(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))
    written = generate_batch(model, **arguments())
    with torch.no_grad():
        likeliest = model(input_ids=written, use_cache=False).logits.argmax(-1)  # [batch, length]
    given = 2
    for sequence, best, count in zip(written, likeliest, arguments()["greedy"].tolist(), strict=True):
        follows = sequence[given:] == best[given - 1 : -1]
        assert follows[:count].all()
        assert not follows[count:].all()


def test_sequences_go_on_after_an_end_of_text_token(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))
    head = model.lm_head

    class LikesToEnd(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = head(hidden)
            logits[..., END] = logits.logsumexp(-1)
            return logits

    model.lm_head = LikesToEnd()
    written = generate_batch(model, **arguments())
    assert (written[:, 2:-1] == END).any()
    assert (written[:, -1] != END).any()


def test_dropout_is_off_while_writing_and_training_mode_comes_back(parent: ModelFolder) -> None:
    model = load_model(parent("gpt2"))
    expected = generate_batch(model, **arguments())
    model.train()
    assert torch.equal(generate_batch(model, **arguments()), expected)
    assert model.training


def test_tokens_can_be_embedded_in_a_backward_pass(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))
    written = generate_batch(model, **arguments())
    model(input_ids=written).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_other_draws_write_other_tokens(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))
    assert not torch.equal(generate_batch(model, **arguments(3)), generate_batch(model, **arguments(4)))


def test_a_low_temperature_is_greedy(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))
    cold = generate_batch(model, **{**arguments(), "temperature": 1e-6})
    greedy = generate_batch(model, **{**arguments(), "greedy": torch.full((BATCH,), LENGTH)})
    assert torch.equal(cold, greedy)


def test_fewer_tokens_than_are_given_are_refused(parent: ModelFolder) -> None:
    with pytest.raises(LowbitError, match="start with 2 tokens"):
        generate_batch(load_model(parent("llama")), **{**arguments(), "length": 1})


def test_a_model_with_broken_weights_is_refused(parent: ModelFolder) -> None:
    model = load_model(parent("llama"))
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(LowbitError, match="not finite"):
        generate_batch(model, **arguments())


def test_sampling_has_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([0.0, -torch.inf, 1.5, -0.5, -torch.inf])
    draws = 200_000
    uniform = torch.rand(draws, generator=batch_generator(0, "test"), dtype=torch.float64)
    counts = torch.bincount(sample(logits.expand(draws, -1), uniform), minlength=5)
    expected = torch.softmax(logits, -1)
    assert counts[1] == counts[4] == 0
    assert torch.allclose(counts / draws, expected, atol=4 * 0.5 / math.sqrt(draws))


def test_the_extreme_draws_give_tokens_that_have_probability() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 3.0, -torch.inf]] * 2)
    uniform = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert sample(logits, uniform).tolist() == [1, 2]


@given(samples=st.integers(1, 300), choices=st.integers(1, 100), seed=st.integers(0, 5))
def test_stratified_draws_differ_by_one_at_most(samples: int, choices: int, seed: int) -> None:
    drawn = stratified(samples, choices, batch_generator(seed, "test"))
    counts = torch.bincount(drawn, minlength=choices)
    assert len(drawn) == samples
    assert len(counts) == choices
    assert counts.max() - counts.min() <= 1
    if samples <= choices:
        sorted_draws = drawn.sort().values
        strata = torch.arange(samples)
        assert (sorted_draws >= strata * choices // samples).all()
        assert (sorted_draws < (strata + 1) * choices // samples).all()


def test_stratified_first_tokens_cover_the_vocabulary_but_the_begin_of_text() -> None:
    settings = GenerationSettings(n_samples=VOCABULARY - 1)
    first = first_tokens(settings, make_tokenizer(), VOCABULARY, batch_generator(0, "test"))
    assert first.shape == (VOCABULARY - 1, 1)
    assert sorted(first[:, 0].tolist()) == [token for token in range(VOCABULARY) if token != BEGIN]
    assert first[:, 0].tolist() != sorted(first[:, 0].tolist())


@pytest.mark.parametrize("kind", ["stratified", "random"])
def test_the_begin_of_text_comes_first_where_the_tokenizer_puts_it(kind: str) -> None:
    settings = GenerationSettings(n_samples=40, first_tokens=kind)
    first = first_tokens(settings, tokenizer_with_begin(), VOCABULARY, batch_generator(0, "test"))
    without = first_tokens(settings, make_tokenizer(), VOCABULARY, batch_generator(0, "test"))
    assert begin_of_text(tokenizer_with_begin()) == BEGIN
    assert begin_of_text(make_tokenizer()) is None
    assert (first[:, 0] == BEGIN).all()
    assert torch.equal(first[:, 1:], without)
    assert not (without == BEGIN).any()
    assert without.min() >= 0 and without.max() < VOCABULARY


def test_random_first_tokens_follow_the_generator() -> None:
    settings = GenerationSettings(n_samples=40, first_tokens="random")
    one, same, other = (
        first_tokens(settings, make_tokenizer(), VOCABULARY, batch_generator(seed, "test")) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_model_is_given_the_begin_of_text_alone_and_needs_one() -> None:
    settings = GenerationSettings(n_samples=3, first_tokens="model")
    first = first_tokens(settings, make_tokenizer(), VOCABULARY, batch_generator(0, "test"))
    assert first.tolist() == [[BEGIN]] * 3
    without = make_tokenizer()
    without.bos_token = None
    with pytest.raises(LowbitError, match="this tokenizer has none"):
        first_tokens(settings, without, VOCABULARY, batch_generator(0, "test"))


def test_sequences_take_turns_in_how_many_tokens_are_greedy() -> None:
    assert greedy_counts(GenerationSettings(n_samples=7)).tolist() == [3, 4, 5, 3, 4, 5, 3]
    assert greedy_counts(GenerationSettings(n_samples=2, greedy_tokens=(0, 0))).tolist() == [0, 0]


def test_generators_differ_by_seed_and_by_batch() -> None:
    draws = {
        float(torch.rand((), generator=batch_generator(seed, f"batch {batch}"), dtype=torch.float64))
        for seed in range(3)
        for batch in range(3)
    }
    assert len(draws) == 9

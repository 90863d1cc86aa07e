"""Token sequences that a model writes itself, with its key-value cache (the scheme of LLM-QAT, arXiv 2305.17888)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from lowbit.contracts.training import GenerationSettings
from lowbit.errors import LowbitError


def batch_generator(seed: int, purpose: str) -> torch.Generator:
    """Return a CPU generator whose draws depend on a seed and a purpose, such as a batch's number, alone."""
    digest = hashlib.sha256(f"generated tokens {seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def begin_of_text(tokenizer: Any) -> int | None:
    """Return the token that a tokenizer puts before every text, `None` when it puts none there."""
    begin = tokenizer.bos_token_id
    ids = list(tokenizer("a", verbose=False)["input_ids"])
    return int(begin) if begin is not None and ids[:1] == [begin] else None


def first_tokens(settings: GenerationSettings, tokenizer: Any, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Return what every sequence starts from.

    A begin-of-text token comes first where the tokenizer itself puts one before a text, then the first token proper.
    With `model`, only the begin-of-text token is given, and the model samples what follows.

    Args:
        settings: How many, and which kind.
        tokenizer: The model's tokenizer.
        vocabulary: First tokens are 0 to vocabulary - 1, the begin-of-text token left out.
        generator: Decides the draws and the order.

    Returns:
        int64 [samples, 1 or 2].

    Raises:
        LowbitError: The model is to sample the first token, but the tokenizer has no begin-of-text token.
    """
    begin = begin_of_text(tokenizer)
    if settings.first_tokens == "model":
        begin = tokenizer.bos_token_id
        if begin is None:
            raise LowbitError(
                "first_tokens 'model' starts from a begin-of-text token, and this tokenizer has none; "
                "use 'stratified' or 'random'"
            )
        return torch.full((settings.n_samples, 1), begin, dtype=torch.int64)
    candidates = torch.arange(vocabulary)
    if tokenizer.bos_token_id is not None:
        candidates = candidates[candidates != tokenizer.bos_token_id]
    draw = stratified if settings.first_tokens == "stratified" else _random
    first = candidates[draw(settings.n_samples, len(candidates), generator)][:, None]  # [samples, 1]
    return first if begin is None else torch.cat([torch.full_like(first, begin), first], dim=1)


def stratified(samples: int, choices: int, generator: torch.Generator) -> Tensor:
    """Draw numbers evenly: each as often as any other or once more, the surplus spread over the whole range.

    Args:
        samples: How many numbers.
        choices: They are 0 to choices - 1.
        generator: Decides the number within each stratum, and the order.

    Returns:
        int64 [samples] in random order.
    """
    rounds, rest = divmod(samples, choices)
    inside = torch.rand(rest, generator=generator, dtype=torch.float64)
    # Strata are as wide as one choice or wider, so that no choice is drawn twice: its stratum's end is left out.
    starts = torch.arange(rest) * choices // max(rest, 1)
    ends = (torch.arange(rest) + 1) * choices // max(rest, 1)
    surplus = starts + (inside * (ends - starts)).floor().long()
    drawn = torch.cat([torch.arange(choices).repeat(rounds), surplus])
    return drawn[torch.randperm(samples, generator=generator)]


def _random(samples: int, choices: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, choices, (samples,), generator=generator)


def greedy_counts(settings: GenerationSettings) -> Tensor:
    """Return how many tokens of each sequence are chosen greedily: int64 [samples], sequences taking turns."""
    fewest, most = settings.greedy_tokens
    return fewest + torch.arange(settings.n_samples) % (most - fewest + 1)


@torch.no_grad()
def generate_batch(
    model: Any, first: Tensor, greedy: Tensor, length: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Write sequences: what is given, then the likeliest tokens, then sampled ones.

    Every sequence has exactly `length` tokens. An end-of-text token does not end it: a model that was trained on joined
    documents goes on with another one. Each position takes one draw per sequence, greedy positions too, so that a
    sequence's draws do not depend on its neighbours'.

    Args:
        model: A causal language model of transformers; one that keeps no key-value cache reads all anew for each token.
        first: What the sequences start with, int64 [batch, given].
        greedy: How many tokens after `first` are the likeliest ones, int64 [batch].
        length: Tokens a sequence, those given included.
        temperature: Divides the logits before sampling.
        generator: A CPU generator.

    Returns:
        int64 [batch, length] on the CPU.

    Raises:
        LowbitError: `length` is less than what is given, or the model's logits are not finite.
    """
    batch, given = first.shape
    if length < given:
        raise LowbitError(f"generated sequences start with {given} tokens; {length} are too few: give a larger seq_len")
    tokens = torch.empty(batch, length, dtype=torch.int64, device=model.device)
    tokens[:, :given] = first.to(model.device)
    last_greedy = (given + greedy).to(model.device)  # [batch]
    training, cache = model.training, None
    model.eval()
    try:
        for position in range(given, length):
            # The cache holds all tokens but the newest.
            fresh = tokens[:, :position] if cache is None else tokens[:, position - 1 : position]
            output = model(input_ids=fresh, use_cache=True, **({} if cache is None else {"past_key_values": cache}))
            cache = getattr(output, "past_key_values", None)
            logits = output.logits[:, -1].float()  # [batch, vocabulary]
            sampled = sample(logits / temperature, torch.rand(batch, generator=generator, dtype=torch.float64))
            tokens[:, position] = torch.where(position < last_greedy, logits.argmax(dim=-1), sampled)
    finally:
        model.train(training)
    return tokens.cpu()


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Sample one token a row by inverse transform: the first whose cumulative probability exceeds the draw.

    Args:
        logits: float32 [batch, vocabulary].
        uniform: Draws from [0, 1), float64 [batch] on the CPU.

    Returns:
        int64 [batch] on the device of the logits.

    Raises:
        LowbitError: Logits are not finite.
    """
    probabilities = torch.softmax(logits, dim=-1)
    if probabilities.device.type == "mps":
        probabilities = probabilities.cpu()  # It has no float64.
    cumulative = probabilities.double().cumsum(dim=-1)  # [batch, vocabulary]
    total = cumulative[:, -1:]
    if not bool(torch.isfinite(total).all()):
        raise LowbitError("the model's logits are not finite; it cannot write text: check its weights, or use float32")
    # Rounding must not carry a draw up to the total, where tokens without probability lie.
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniform.to(total.device)[:, None] * total, below_total)
    return torch.searchsorted(cumulative, target, right=True)[:, 0].to(logits.device)

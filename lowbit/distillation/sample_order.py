"""Which sequences an optimizer step takes: a function of seed and step, so that a continued run takes the same."""

from __future__ import annotations

import hashlib

import torch


class SampleOrder:
    """An endless stream of sequences, each epoch a new random order of all of them.

    Args:
        samples: How many sequences there are.
        batch_size: How many a step takes.
        seed: Decides the orders.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self._samples = samples
        self._batch_size = batch_size
        self._seed = seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """Return the positions of the sequences of a step, counted from 0."""
        first = step * self._batch_size
        return [self._at(place) for place in range(first, first + self._batch_size)]

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, self._samples)
        if self._epoch[0] != epoch:
            digest = hashlib.sha256(f"{self._seed}:epoch:{epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            self._epoch = (epoch, torch.randperm(self._samples, generator=generator).tolist())
        return self._epoch[1][within]

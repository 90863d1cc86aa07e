"""Checks of a quantizer that its seed, and nothing else, decides every random draw."""

from __future__ import annotations

import random
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor

from lowbit.testing.bare_machine import bare_machine, digest_of, quantized_there
from lowbit.testing.failure import ConformanceError
from lowbit.testing.matrices import gaussian
from lowbit.testing.packers import require_same_weight
from lowbit.testing.quantizer_subject import QuantizerSubject


class RepeatChecks(QuantizerSubject):
    """One seed, one result: in the same process, in another one, and whatever others draw."""

    def test_one_seed_decides_everything(self) -> None:
        """The same seed gives the same weight, whatever the state of the global generators."""
        ordinary = [("gaussian(9, 130)", gaussian(9, 130))]
        for made, weight in [*ordinary, *((each.code, each.weight) for each, _ in self.whole())]:
            self._require_one_result(weight, self.code(made, "# once more: another result", seed=3))

    def _require_one_result(self, weight: Tensor, code: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first = self.quantize(weight.clone(), seed=3)
            torch.manual_seed(0)
            require_same_weight(
                first,
                self.quantize(weight.clone(), seed=3),
                "the same weight from the same seed (draw only from the `generator` that `quantize` is given)",
                code,
            )
            torch.manual_seed(1)
            require_same_weight(
                first,
                self.quantize(weight.clone(), seed=3),
                "the same weight whatever torch.manual_seed was before (draw only from the `generator`)",
                code,
            )

    def test_the_global_random_state_is_left_alone(self) -> None:
        """Drawing from it, or seeding it, would change what the rest of the program does."""
        for made, weight in [
            ("gaussian(4, 64)", gaussian(4, 64)),
            *((each.code, each.weight) for each, _ in self.whole()),
        ]:
            before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
            self.quantize(weight.clone())
            after = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
            changed = [
                name
                for name, same in (
                    ("torch", torch.equal(before[0], after[0])),
                    ("random", before[1] == after[1]),
                    ("numpy.random", before[2] == after[2]),
                )
                if not same
            ]
            if changed:
                raise ConformanceError(
                    "global random states as they were",
                    f"that of {', '.join(changed)} changed (draw only from the `generator`)",
                    self.code(made),
                )

    def test_another_process_gives_the_same(self) -> None:
        """An interrupted run goes on in another process, where sets of strings have another order."""
        self.require_repeatable()
        answer = bare_machine().ask("quantize", {"quantizer": self.subject()}, self.options)
        if "error" in answer:
            raise SkipTest("it fails in another process: see test_it_works_with_neither_cuda_nor_triton_nor_llvmlite")
        if answer["digest"] != digest_of(quantized_there(self.subject(), self.options)):
            raise ConformanceError(
                "the same weight from the same seed in every process",
                "another one in a process of its own (the order of a set, hash() or the time decides something)",
                self.code("gaussian(6, 100)", seed=3),
            )

    def test_it_works_with_neither_cuda_nor_triton_nor_llvmlite(self) -> None:
        """Those are optional: a plugin imports them where they are used, and does without."""
        answer = bare_machine().ask("quantize", {"quantizer": self.subject()}, self.options)
        fault = answer.get("error") or ("" if answer["finite"] else "numbers that are not finite")
        if fault:
            raise ConformanceError(
                "a quantized weight where triton and llvmlite cannot be imported and no GPU is seen",
                fault,
                "import sys\nsys.modules.update(triton=None, llvmlite=None)\n" + self.code("gaussian(6, 100)", seed=3),
            )

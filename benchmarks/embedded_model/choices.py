"""Two-choice items of the small world, in pairs: the right answer of one item is the wrong answer of its partner.

So every answer text is right exactly as often as it is wrong, and no rule that looks at the answers alone, be it length
or likelihood, can score other than one half.
"""

import random
import re
from dataclasses import dataclass

from questions import Question, ask
from world import Split, World, build_world

# No item asks about a story told in its own goal (`reading.py`): on the validation split the model answered such
# questions at chance, so they would add noise and no signal.
PAIRS: dict[Split, dict[str, int]] = {
    "validation": {"person": 146, "tool": 24, "cause": 24, "place": 12, "thing": 12},
    "test": {"person": 146, "tool": 40, "cause": 40, "place": 12, "thing": 12},
}


@dataclass(frozen=True)
class ChoiceItem:
    """A goal and two solutions, one of which is right; `label` is 0 or 1."""

    goal: str
    sol1: str
    sol2: str
    label: int
    kind: str


def _pair(rng: random.Random, kind: str, first: Question, second: Question) -> list[ChoiceItem]:
    solutions = [first.answer, second.answer]
    rng.shuffle(solutions)
    return [
        ChoiceItem(question.goal, solutions[0], solutions[1], solutions.index(question.answer), kind)
        for question in (first, second)
    ]


def _grouped(world: World, split: Split) -> dict[str, dict[str | int, list[list[Question]]]]:
    """Questions that may be paired with one another: by kind, then by what is asked and in which form."""
    kinds: dict[str, dict[str | int, list[list[Question]]]] = {}
    for (kind, index, key), owner in world.question_split.items():
        if owner == split:
            kinds.setdefault(kind, {}).setdefault(key, []).append(ask(world, kind, index, key))
    return kinds


def _fact_pairs(
    rng: random.Random, groups: dict[str | int, list[list[Question]]], kind: str, count: int
) -> list[ChoiceItem]:
    """Pairs of questions of one form and different answers; each question is asked at most once."""
    candidates = []
    for facts in groups.values():
        for form in range(len(facts[0])):
            questions = [fact[form] for fact in facts]
            rng.shuffle(questions)
            questions.sort(key=_pronouns)
            candidates += [
                (first, second)
                for first, second in zip(questions[::2], questions[1::2], strict=False)
                if first.answer != second.answer and _pronouns(first) == _pronouns(second)
            ]
    if len(candidates) < count:
        raise ValueError(f"{count} pairs of kind {kind} were asked for, the world has {len(candidates)}")
    return [item for first, second in rng.sample(candidates, count) for item in _pair(rng, kind, first, second)]


def _pronouns(question: Question) -> list[str]:
    """The answer's "he" and "she": where two answers differ in them, the gender of a name would tell which is right."""
    return sorted(set(re.findall(r"[a-z]+", question.answer.lower())) & {"he", "she"})


def choice_items(split: Split) -> list[ChoiceItem]:
    """The items of a held-out split, always the same.

    Args:
        split: "validation" or "test".
    """
    rng = random.Random(f"choices {split}")
    grouped = _grouped(build_world(), split)
    items: list[ChoiceItem] = []
    for kind, count in PAIRS[split].items():
        items += _fact_pairs(rng, grouped[kind], kind, count)
    rng.shuffle(items)
    return items

"""How much of the held-out documents' single sentences the training text has word for word."""

import re
from collections.abc import Iterable

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentences(document: str) -> list[str]:
    """The sentences of a document, without the names that open a dialogue's lines."""
    lines = [re.sub(r"^\w+: ", "", line) for line in document.splitlines() if line]
    return [sentence for line in lines for sentence in _SENTENCE_END.split(line)]


def sentence_overlap(training: Iterable[str], held_out: Iterable[str]) -> float:
    """The share, 0 to 1, of the held-out documents' sentences that occur in a training document."""
    wanted = [sentence for document in held_out for sentence in sentences(document)]
    missing = set(wanted)
    for document in training:
        missing.difference_update(sentences(document))
        if not missing:
            break
    return sum(sentence not in missing for sentence in wanted) / len(wanted)

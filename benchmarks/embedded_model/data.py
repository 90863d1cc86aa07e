"""From documents to files: held-out task data, calibration text, the tokenizer and the packed training windows."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from choices import ChoiceItem, choice_items
from documents import chronicle, dialogue, documents, how_to, profile, story, travel_note
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from world import Split

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
BOS, EOS = 1, 2
NARRATIVES = (profile, story, how_to, chronicle, travel_note, dialogue)
TEXT_DOCUMENTS = 120
CALIBRATION_BYTES = 300_000


def write_atomically(path: Path, text: str) -> None:
    """Write a text file under a temporary name in the same folder, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def text_documents(split: Split) -> list[str]:
    """The documents of the perplexity task."""
    return list(islice(documents(split, NARRATIVES), TEXT_DOCUMENTS))


def write_task_data(folder: Path, split: Split) -> None:
    """Write `smallworld_text.jsonl` and `smallworld_choice.jsonl` of a held-out split."""
    pages = "".join(json.dumps({"page": page}) + "\n" for page in text_documents(split))
    items = "".join(json.dumps(asdict(item)) + "\n" for item in choice_items(split))
    write_atomically(folder / "smallworld_text.jsonl", pages)
    write_atomically(folder / "smallworld_choice.jsonl", items)


def write_calibration(path: Path) -> None:
    """Write the first documents of the training stream, separated by blank lines."""
    chosen: list[str] = []
    size = 0
    for document in documents("train"):
        if size + len(document) + 2 > CALIBRATION_BYTES:
            break
        chosen.append(document)
        size += len(document) + 2
    write_atomically(path, "\n\n".join(chosen) + "\n")


def train_tokenizer(vocabulary: int, document_count: int) -> Tokenizer:
    """A byte-level BPE tokenizer that puts `<s>` before every text, trained on the first training documents."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents("train"), document_count), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def pack_windows(tokenizer: Tokenizer, split: Split, count: int, length: int) -> tuple[Tensor, int]:
    """Fill windows with whole documents; each window begins with `<s>`, and its last document is cut at the end.

    Args:
        tokenizer: puts `<s>` before each document; `</s>` is added here.
        split: whose stream of documents is read.
        count: number of windows.
        length: tokens a window.

    Returns:
        The windows, int16 of shape [count, length], and the number of documents read.
    """
    windows = torch.empty(count, length, dtype=torch.int16)
    stream = documents(split)
    window: list[int] = []
    filled = read = 0
    while filled < count:
        for encoding in tokenizer.encode_batch(list(islice(stream, 256))):
            if filled == count:
                break
            read += 1
            window += [*encoding.ids, EOS]
            if len(window) >= length:
                windows[filled] = torch.tensor(window[:length], dtype=torch.int16)
                filled, window = filled + 1, []
    return windows, read


def find_leaks(training: Iterable[str], held_out: Iterable[str], chunk: int = 10_000) -> list[str]:
    """The held-out texts that occur verbatim, as a whole document or inside one, in the training documents."""
    wanted = set(held_out)
    leaks: set[str] = set()
    stream = iter(training)
    while batch := list(islice(stream, chunk)):
        text = "\n\f\n".join(batch)
        leaks |= {candidate for candidate in wanted - leaks if candidate in text}
    return sorted(leaks)


def held_out_texts(split: Split) -> list[str]:
    """Everything of a held-out split that training must not contain: documents, and goals of choice items."""
    items: list[ChoiceItem] = choice_items(split)
    return [*text_documents(split), *(item.goal for item in items)]

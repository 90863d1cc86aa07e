from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import ModelFolder, load_model, make_tokenizer

from lowbit.calibration import CalibrationTokens
from lowbit.contracts.training import GenerationSettings
from lowbit.distillation import generated_tokens as module
from lowbit.distillation.generated_tokens import generated_tokens
from lowbit.errors import LowbitError

KEY = {"model_sha256": "0" * 64}
LENGTH = 16
Generate = Callable[..., CalibrationTokens]


def settings(**changes: Any) -> GenerationSettings:
    return GenerationSettings(**{"n_samples": 10, "batch_size": 4, **changes})


def never() -> Any:
    raise AssertionError("the model was loaded")


@pytest.fixture
def generate(parent: ModelFolder) -> Generate:
    model = load_model(parent("llama"))

    def run(
        folder: Path,
        make_model: Callable[[], Any] = lambda: model,
        on_batch: Callable[[int, int], None] = lambda done, total: None,
        seed: int = 0,
        **changes: Any,
    ) -> CalibrationTokens:
        return generated_tokens(folder, KEY, settings(**changes), LENGTH, make_model, make_tokenizer(), seed, on_batch)

    return run


def interrupt_after(batches: int) -> Callable[[int, int], None]:
    def hear(done: int, total: int) -> None:
        if done == batches:
            raise KeyboardInterrupt

    return hear


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def test_the_files_hold_the_tokens_and_say_how_they_were_made(tmp_path: Path, generate: Generate) -> None:
    heard: list[tuple[int, int]] = []
    tokens = generate(tmp_path, on_batch=lambda done, total: heard.append((done, total)))
    path, beside = only(tmp_path, "*.npz"), only(tmp_path, "*.json")
    with np.load(path, allow_pickle=False) as content:
        assert np.array_equal(content["tokens"], tokens.tokens.numpy())
    described = json.loads(beside.read_text())
    assert path.stem == beside.stem
    assert tokens.tokens.shape == (10, LENGTH)
    assert tokens.tokens.dtype == torch.int64
    assert described["sha256"] == tokens.sha256
    assert described["key"] == KEY
    assert described["seed"] == 0
    assert described["seq_len"] == LENGTH
    assert described["settings"]["greedy_tokens"] == [3, 5]
    assert set(described["versions"]) == {"torch", "transformers"}
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert not list(tmp_path.glob("*.partial"))


def test_a_whole_file_is_used_without_loading_the_model(tmp_path: Path, generate: Generate) -> None:
    heard: list[int] = []
    first = generate(tmp_path)
    before = files(tmp_path)
    again = generate(tmp_path, never, lambda done, total: heard.append(done))
    assert torch.equal(first.tokens, again.tokens)
    assert files(tmp_path) == before
    assert heard == []


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize("first", ["stratified", "random", "model"])
def test_an_interrupted_run_continues_to_the_same_bytes(
    tmp_path: Path, generate: Generate, batches: int, first: str
) -> None:
    generate(tmp_path / "whole", first_tokens=first)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "cut", on_batch=interrupt_after(batches), first_tokens=first)
    assert len(list((tmp_path / "cut").glob("*.partial/*"))) == batches
    heard: list[int] = []
    generate(tmp_path / "cut", on_batch=lambda done, total: heard.append(done), first_tokens=first)
    assert heard == list(range(batches, 4))
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_batches_that_are_all_finished_need_no_model(tmp_path: Path, generate: Generate) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, on_batch=interrupt_after(3))
    assert generate(tmp_path, never).tokens.shape == (10, LENGTH)


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"\x93NUMPY" + data])
def test_a_damaged_batch_is_generated_again(
    tmp_path: Path, generate: Generate, damage: Callable[[bytes], bytes]
) -> None:
    generate(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "cut", on_batch=interrupt_after(2))
    batch = sorted((tmp_path / "cut").glob("*.partial/*"))[0]
    batch.write_bytes(damage(batch.read_bytes()))
    generate(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_flipped_bit_in_a_batch_is_noticed(tmp_path: Path, generate: Generate) -> None:
    generate(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "cut", on_batch=interrupt_after(2))
    batch = sorted((tmp_path / "cut").glob("*.partial/*"))[1]
    data = bytearray(batch.read_bytes())
    data[len(data) // 2] ^= 1
    batch.write_bytes(bytes(data))
    generate(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_damaged_file_is_refused_by_name(tmp_path: Path, generate: Generate) -> None:
    tokens = generate(tmp_path)
    path = only(tmp_path, "*.npz")
    changed = tokens.tokens.clone()
    changed[0, 5] += 1
    for damaged in (lambda: np.savez(path, tokens=changed.numpy()), lambda: path.write_bytes(path.read_bytes()[:-9])):
        damaged()
        with pytest.raises(LowbitError, match=f"{path.name} is damaged.*delete both"):
            generate(tmp_path, never)


def test_a_token_file_without_its_description_is_refused(tmp_path: Path, generate: Generate) -> None:
    generate(tmp_path)
    only(tmp_path, "*.json").unlink()
    with pytest.raises(LowbitError, match="delete it or choose another"):
        generate(tmp_path, never)


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": "mine"}'])
def test_a_foreign_description_is_not_overwritten(tmp_path: Path, generate: Generate, text: str) -> None:
    generate(tmp_path)
    only(tmp_path, "*.npz").unlink()
    beside = only(tmp_path, "*.json")
    beside.write_text(text)
    with pytest.raises(LowbitError, match=beside.name):
        generate(tmp_path, never)
    assert beside.read_text() == text


def test_the_same_seed_writes_the_same_tokens_and_another_seed_others(tmp_path: Path, generate: Generate) -> None:
    one, same = generate(tmp_path / "one"), generate(tmp_path / "same")
    other = generate(tmp_path / "one", seed=1)
    assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.tokens, other.tokens)
    assert not torch.equal(one.tokens.sort(0).values[:, 0], one.tokens[:, 0])


def test_every_setting_that_changes_tokens_has_a_file_of_its_own(tmp_path: Path, generate: Generate) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"first_tokens": "random"},
        {"greedy_tokens": (0, 2)},
        {"temperature": 0.5},
        {"batch_size": 5},
        {"seed": 1},
        {"n_samples": 11},
    ]
    written = {generate(tmp_path, **change).sha256 for change in changes}
    assert len(written) == len(list(tmp_path.glob("*.npz"))) == len(changes)


def test_the_model_samples_different_first_tokens_when_asked(tmp_path: Path, generate: Generate) -> None:
    tokens = generate(tmp_path, first_tokens="model").tokens
    assert (tokens[:, 0] == 1).all()
    assert len(tokens[:, 1].unique()) > 1


def test_a_length_that_the_settings_carry_is_not_read(tmp_path: Path, generate: Generate) -> None:
    generate(tmp_path)
    assert generate(tmp_path, never, seq_len=99).tokens.shape == (10, LENGTH)


def test_writers_at_the_same_time_leave_one_whole_file(
    tmp_path: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate(tmp_path / "alone")
    # Threads share a process id, so their temporary names are told apart here as those of processes are.
    names = iter(range(10_000))
    monkeypatch.setattr("lowbit.durable.temporary_name", lambda path: path.with_name(f"{path.name}.{next(names)}.tmp"))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: generate(tmp_path / "together"), range(4)))
    assert all(torch.equal(result.tokens, expected.tokens) for result in results)
    assert generate(tmp_path / "together", never).sha256 == expected.sha256
    assert set(files(tmp_path / "together")) >= set(files(tmp_path / "alone"))


def test_a_run_takes_what_another_finished_in_the_meantime(tmp_path: Path, generate: Generate) -> None:
    def another_finishes(done: int, total: int) -> None:
        if done == 1:
            generate(tmp_path)

    heard: list[int] = []
    tokens = generate(tmp_path, on_batch=lambda done, total: (heard.append(done), another_finishes(done, total)))
    assert heard == [0, 1]
    assert torch.equal(tokens.tokens, generate(tmp_path, never).tokens)
    assert not list(tmp_path.glob("*.partial"))


def test_a_batch_whose_folder_another_run_removed_is_not_missed(
    tmp_path: Path, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._Batches.write
    states = iter([True])

    def removed_while_writing(batches: Any, number: int, tokens: torch.Tensor) -> None:
        if next(states, False):
            generate(tmp_path)
            raise LowbitError("the folder is gone")
        write(batches, number, tokens)

    monkeypatch.setattr(module._Batches, "write", removed_while_writing)
    assert torch.equal(generate(tmp_path).tokens, generate(tmp_path, never).tokens)

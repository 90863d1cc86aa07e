from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import CORPORA, PerplexityTask
from lowbit.evaluation.parent_cache import ParentCache, cache_key, document_hashes
from lowbit.evaluation.prepare import PreparedTasks, prepare_tasks
from lowbit.models.checkpoint import model_hash
from lowbit.recipe.evaluation import EvaluationSettings
from lowbit.untrusted import LARGEST_JSON

RESULTS = {"results": {"piqa": {"acc,none": 0.5919477693144722, "acc_stderr,none": "N/A"}}, "date": 1.5}


def test_what_is_kept_comes_back_exactly(tmp_path: Path) -> None:
    cache = ParentCache(tmp_path / "new" / "folder")
    assert cache.load("key") is None
    cache.save("key", RESULTS)
    assert cache.load("key") == RESULTS
    assert cache.load("other") is None
    assert [path.name for path in cache.folder.iterdir()] == ["key.json"]


def test_logged_samples_may_be_larger_than_any_json_file_that_is_read(tmp_path: Path) -> None:
    samples = {"hellaswag": [{"doc_id": index, "text": "é" * 20_000} for index in range(900)], "none": []}
    results = {**RESULTS, "samples": samples}
    cache = ParentCache(tmp_path)
    cache.save("key", results)
    assert cache.samples_path("key").stat().st_size > LARGEST_JSON
    found = cache.load("key")
    assert found == results and list(found["samples"]) == ["hellaswag", "none"]


@pytest.mark.parametrize("damage", ["cut", "changed", "moved", "gone"])
def test_damaged_samples_are_ignored_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ParentCache(tmp_path)
    cache.save("key", {**RESULTS, "samples": {"quiz": [{"doc_id": 0}, {"doc_id": 1}]}})
    path = cache.samples_path("key")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if damage == "gone":
        path.unlink()
    else:
        damaged = {"cut": lines[:1], "changed": [lines[0], lines[1].replace("1", "2")], "moved": lines[::-1]}[damage]
        path.write_text("".join(damaged), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert cache.load("key") is None
    assert str(path) in caplog.text


@pytest.mark.parametrize("damage", ["cut", "changed", "other"])
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ParentCache(tmp_path)
    path = cache.save("key", RESULTS)
    text = path.read_text(encoding="utf-8")
    damaged = {"cut": text[:-20], "changed": text.replace("0.59", "0.69"), "other": "[]"}[damage]
    path.write_text(damaged, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert cache.load("key") is None
    assert str(path) in caplog.text
    cache.save("key", RESULTS)
    assert cache.load("key") == RESULTS


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(LowbitError, match="file"):
        ParentCache(tmp_path / "file").save("key", RESULTS)


def test_a_model_hash_follows_every_file_that_decides_answers(
    tmp_path: Path, tiny_model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model.save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    before = model_hash(tmp_path)
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    assert model_hash(tmp_path) == before
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert model_hash(tmp_path) != before
        (tmp_path / name).write_bytes(content)
    assert model_hash(tmp_path) == before


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="safetensors"):
        model_hash(tmp_path)


def test_the_key_follows_what_decides_the_result(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))

    def key(update: dict[str, Any], model: str = "m", dtype: str = "float32", **changes: Any) -> str:
        changed = settings.model_copy(update=update)
        return cache_key(model, prepare_tasks(changed, [{**choice_task, **changes}]), changed, dtype)

    before = key({})
    assert key({}) == before
    assert key({"write_out": True, "use_cache": "answers"}) == before
    others = [
        key({"limit": 3}),
        key({"samples": {"tiny_choices": (1,)}}),
        key({"max_length": 64}),
        key({"seed": (1, 1, 1, 1)}),
        key({}, model="n"),
        key({}, dtype="bfloat16"),
        key({}, doc_to_text="Q: {{question}}"),
    ]
    assert len({before, *others}) == len(others) + 1


def test_the_key_follows_the_documents_and_not_where_they_are(
    choice_mirror: Path, choice_task: dict[str, Any], tmp_path: Path
) -> None:
    def hashes(folder: Path) -> dict[str, str]:
        settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(folder))
        return document_hashes(prepare_tasks(settings, [choice_task]), settings)

    before = hashes(choice_mirror)
    moved = choice_mirror.rename(tmp_path / "moved")
    assert hashes(moved) == before
    file = moved / "tiny" / "choices" / "validation.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[0]["label"] = 2
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert hashes(moved) != before


def test_the_hash_of_a_text_follows_the_windows_that_are_asked_for() -> None:
    task = PerplexityTask("ptb_ppl", CORPORA["ptb_ppl"], "the text", documents=1, context_length=None)
    prepared = PreparedTasks((), {}, {}, (task,))

    def hashed(samples: dict[str, tuple[int, ...]] | None) -> str:
        return document_hashes(prepared, EvaluationSettings(tasks=("ptb_ppl",), samples=samples))["ptb_ppl"]

    asked = [None, {"ptb_ppl": (0, 1)}, {"ptb_ppl": (0, 2)}, {"ptb_ppl@256": (0, 2)}]
    assert len({hashed(samples) for samples in asked}) == 4
    assert hashed({"other": (0,)}) == hashed(None)

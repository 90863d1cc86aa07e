from __future__ import annotations

import csv
import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from lowbit.errors import LowbitError
from lowbit.evaluation.offline import offline_mirror
from lowbit.evaluation.prepare import prepare_tasks
from lowbit.recipe.evaluation import EvaluationSettings

ROWS = [{"text": f"line {number}, with a comma", "label": number % 2} for number in range(5)]


def write_json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def write_json_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["text", "label"], delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    ".jsonl": write_json_lines,
    ".json": write_json_list,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize(
    ("extension", "compressed"),
    [*((extension, False) for extension in WRITERS), *((text, True) for text in WRITERS if text != ".parquet")],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, extension: str, compressed: bool) -> None:
    folder = tmp_path / "someone" / "set"
    folder.mkdir(parents=True)
    path = folder / f"test{extension}"
    WRITERS[extension](path)
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with offline_mirror(tmp_path):
        loaded = datasets.load_dataset("someone/set")
    assert list(loaded) == ["test"]
    assert loaded["test"].to_list() == ROWS


def test_a_download_of_the_hub_is_read_with_the_labels_its_card_declares(tmp_path: Path) -> None:
    folder = tmp_path / "someone" / "set"
    (folder / "main").mkdir(parents=True)
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    write_json_lines(folder / ".cache" / "huggingface" / "test.jsonl")
    write_parquet(folder / "main" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\ndataset_info:\n- config_name: main\n  features:\n  - name: text\n    dtype: string\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': even\n          '1': odd\n"
        "configs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
        "  - split: test\n    path: main/test-*\n---\n",
        encoding="utf-8",
    )
    with offline_mirror(tmp_path):
        loaded = datasets.load_dataset("someone/set", "main")
    assert list(loaded) == ["test"]
    assert loaded["test"].features["label"].names == ["even", "odd"]
    assert len(loaded["test"]) == 5


def test_one_split_may_be_asked_for_and_cut(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_json_lines(tmp_path / "set" / "dev.jsonl")
    with offline_mirror(tmp_path):
        assert datasets.load_dataset("set", split="validation[:2]").to_list() == ROWS[:2]
        with pytest.raises(LowbitError, match=r"no split 'test'.*dev"):
            datasets.load_dataset("set", split="test")


def test_options_that_only_the_hub_knows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_json_lines(tmp_path / "set" / "test.jsonl")
    with offline_mirror(tmp_path):
        loaded = datasets.load_dataset("set", revision="main", trust_remote_code=True, token=None, streaming=False)
    assert loaded["test"].num_rows == 5


def test_readers_of_local_files_keep_working(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "own.jsonl")
    (tmp_path / "mirror").mkdir()
    with offline_mirror(tmp_path / "mirror"):
        loaded = datasets.load_dataset("json", data_files={"test": str(tmp_path / "own.jsonl")})
    assert loaded["test"].to_list() == ROWS


def test_everything_is_as_before_afterwards(tmp_path: Path) -> None:
    before = (datasets.load_dataset, datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    with pytest.raises(RuntimeError, match="inside"), offline_mirror(tmp_path):
        assert huggingface_hub.constants.HF_HUB_OFFLINE is True
        raise RuntimeError("inside")
    assert before == (
        datasets.load_dataset,
        datasets.config.HF_HUB_OFFLINE,
        huggingface_hub.constants.HF_HUB_OFFLINE,
    )


def test_a_function_kept_by_a_task_reads_the_mirror_that_is_in_use(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name / "set").mkdir(parents=True)
        write_json_lines(tmp_path / name / "set" / f"{'test' if name == 'first' else 'train'}.jsonl")
    with offline_mirror(tmp_path / "first"):
        kept = datasets.load_dataset
        assert list(kept("set")) == ["test"]
    with offline_mirror(tmp_path / "second"):
        assert list(kept("set")) == ["train"]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match="nowhere"), offline_mirror(tmp_path / "nowhere"):
        pass


def test_a_data_set_that_is_not_there_names_itself_the_task_and_the_folder(
    tmp_path: Path, choice_task: dict[str, Any]
) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(tmp_path))
    with pytest.raises(LowbitError) as caught:
        prepare_tasks(settings, [choice_task])
    for part in ("tiny/choices", "tiny_choices", str(tmp_path / "tiny" / "choices")):
        assert part in str(caught.value)


def test_a_damaged_file_is_named(tmp_path: Path, choice_task: dict[str, Any]) -> None:
    folder = tmp_path / "tiny" / "choices"
    folder.mkdir(parents=True)
    (folder / "validation.parquet").write_bytes(b"not parquet")
    with pytest.raises(LowbitError, match=r"validation\.parquet"):
        prepare_tasks(EvaluationSettings(tasks=("tiny_choices",), data_dir=str(tmp_path)), [choice_task])


def test_a_split_for_few_shot_examples_may_be_absent_at_zero_shots(
    choice_mirror: Path, choice_task: dict[str, Any]
) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    assert len(prepare_tasks(settings, [choice_task]).tasks["tiny_choices"].eval_docs) == 12
    with pytest.raises(LowbitError, match=r"'train'.*tiny_choices.*2 few-shot") as caught:
        prepare_tasks(settings.model_copy(update={"num_fewshot": 2}), [choice_task])
    assert str(choice_mirror / "tiny" / "choices") in str(caught.value)


def test_a_split_that_is_evaluated_may_not_be_absent(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    with pytest.raises(LowbitError, match=r"'test'.*tiny_choices.*\['validation'\]"):
        prepare_tasks(settings, [{**choice_task, "test_split": "test"}])


def test_what_a_task_sets_itself_is_looked_up_in_the_mirror_too(
    choice_mirror: Path, choice_task: dict[str, Any]
) -> None:
    def custom(**_: Any) -> Any:
        rows = datasets.load_dataset("tiny/choices", split="validation")
        return datasets.DatasetDict({"train": rows, "validation": rows})

    variants: list[dict[str, Any]] = [
        {"dataset_kwargs": {"trust_remote_code": True}},
        {"dataset_kwargs": {"data_files": {"validation": "valid*.jsonl", "train": "validation.jsonl"}}},
        {"custom_dataset": custom},
    ]
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    for variant in variants:
        prepared = prepare_tasks(settings, [{**choice_task, **variant}])
        assert len(prepared.tasks["tiny_choices"].eval_docs) == 12


def test_the_task_and_its_configuration_stay_as_they_are(choice_mirror: Path, choice_task: dict[str, Any]) -> None:
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    config = prepare_tasks(settings, [choice_task]).tasks["tiny_choices"].dump_config()
    for key, value in choice_task.items():
        if key != "metadata":
            assert config[key] == value
    assert "custom_dataset" not in config
    assert "dataset_kwargs" not in config


def test_the_network_is_not_touched(
    choice_mirror: Path, choice_task: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    settings = EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror))
    prepare_tasks(settings, [choice_task])
    with pytest.raises(LowbitError, match="absent/set"):
        prepare_tasks(settings, [{**choice_task, "dataset_path": "absent/set"}])
    # A task that fetches files itself is stopped before it connects.
    with pytest.raises(LowbitError, match="tiny_choices"):
        prepare_tasks(
            settings,
            [
                {
                    **choice_task,
                    "dataset_path": "json",
                    "dataset_kwargs": {"data_files": {"validation": "https://huggingface.co/data.json"}},
                }
            ],
        )

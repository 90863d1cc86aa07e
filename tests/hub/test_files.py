from __future__ import annotations

from pathlib import Path

import pytest

from lowbit.errors import LowbitError
from lowbit.hub.files import Configuration, find_alias, find_configuration


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")


def files(configuration: Configuration, folder: Path) -> dict[str, list[str]]:
    return {split: [str(path.relative_to(folder)) for path in paths] for split, paths in configuration.splits.items()}


def test_shards_of_a_download_are_gathered_and_hidden_folders_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/auxiliary_train-00000-of-00001-0123abcd.parquet",
        ".cache/huggingface/download/data/train-00000-of-00002.parquet",
        ".gitattributes",
        "dataset_infos.json",
    )
    assert files(find_configuration(tmp_path, None), tmp_path) == {
        "train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        "auxiliary_train": ["data/auxiliary_train-00000-of-00001-0123abcd.parquet"],
    }


def test_a_configuration_is_a_folder_where_no_card_lists_it(tmp_path: Path) -> None:
    touch(tmp_path, "small/test-00000-of-00001.parquet", "large/test-00000-of-00001.parquet")
    assert files(find_configuration(tmp_path, "small"), tmp_path) == {"test": ["small/test-00000-of-00001.parquet"]}
    with pytest.raises(LowbitError, match="medium"):
        find_configuration(tmp_path, "medium")
    with pytest.raises(LowbitError, match=r"large.*small"):
        find_configuration(tmp_path, None)


def test_split_names_come_from_folders_too(tmp_path: Path) -> None:
    touch(tmp_path, "penn_treebank/test/0000.parquet", "penn_treebank/train/0000.parquet")
    assert files(find_configuration(tmp_path, "penn_treebank"), tmp_path) == {
        "test": ["penn_treebank/test/0000.parquet"],
        "train": ["penn_treebank/train/0000.parquet"],
    }


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("en/c4-validation.00000-of-00008.json.gz", "validation"),
        ("en/dev.jsonl", "dev"),
        ("en/my_test_set.csv", "test"),
        ("en/anything.jsonl", "train"),
    ],
)
def test_the_split_is_told_from_the_words_of_the_file_name(tmp_path: Path, file: str, split: str) -> None:
    touch(tmp_path, file)
    assert files(find_configuration(tmp_path, "en"), tmp_path) == {split: [file]}


def test_the_card_decides_and_splits_without_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "odd/place/one.jsonl", "odd/place/two.jsonl")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  default: true\n  sep: ';'\n  data_files:\n"
        "  - split: test\n    path: odd/place/*.jsonl\n  - split: train\n    path: data/train-*\n"
        "- config_name: other\n  data_files: odd/place/one.jsonl\n---\n# A data set\n",
        encoding="utf-8",
    )
    main = find_configuration(tmp_path, None)
    assert main.name == "main"
    assert main.options == {"sep": ";"}
    assert files(main, tmp_path) == {"test": ["odd/place/one.jsonl", "odd/place/two.jsonl"]}
    assert files(find_configuration(tmp_path, "other"), tmp_path) == {"train": ["odd/place/one.jsonl"]}
    with pytest.raises(LowbitError, match="lists"):
        find_configuration(tmp_path, "third")


def test_a_card_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "secret.jsonl", "set/other.jsonl")
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: ../secret.jsonl\n---\n", encoding="utf-8"
    )
    with pytest.raises(LowbitError, match="has no data"):
        find_configuration(tmp_path / "set", None)


def test_a_damaged_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n", encoding="utf-8")
    with pytest.raises(LowbitError, match=r"README\.md"):
        find_configuration(tmp_path, None)


def test_one_of_several_copies_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "test.csv", "test.jsonl", "test.jsonl.gz")
    assert files(find_configuration(tmp_path, None), tmp_path) == {"test": ["test.jsonl"]}


def test_patterns_of_the_task_win(tmp_path: Path) -> None:
    touch(tmp_path, "a/one.jsonl", "a/two.jsonl")
    configuration = find_configuration(tmp_path, None, data_dir="a", data_files={"test": ["two.jsonl"]})
    assert files(configuration, tmp_path) == {"test": ["a/two.jsonl"]}


def test_other_names_of_a_split_are_found_when_there_is_one_only() -> None:
    assert find_alias("validation", ["train", "dev"]) == "dev"
    assert find_alias("validation", ["val", "dev"]) is None
    assert find_alias("train", ["auxiliary_train"]) is None

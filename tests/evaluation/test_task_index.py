from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from lowbit.evaluation import task_index
from lowbit.evaluation.task_index import make_task_manager

TASKS = {
    "one/one.yaml": "task: one\ntag: [numbers, all_numbers]\ndataset_path: some/set\n",
    "two/base.yaml": "dataset_path: some/set\ntag: numbers\n",
    "two/two.yaml": "include: base.yaml\ntask: two\n",
    "group.yaml": "group: counting\ntask: [one, two]\n",
}


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of task definitions in the place of the harness's own, and an empty cache."""
    folder = tmp_path / "tasks"
    for name, text in TASKS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(task_index, "_TASKS_FOLDER", folder)
    monkeypatch.setenv("LOWBIT_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def describe(manager: TaskManager) -> dict[str, object]:
    return {
        name: (entry.kind, entry.yaml_path and str(entry.yaml_path), entry.tags)
        for name, entry in manager.task_index.items()
    }


def test_the_index_on_disk_equals_the_one_built(task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = make_task_manager()
    with monkeypatch.context() as context:
        context.setattr(TaskIndex, "build", staticmethod(_refuse_defaults(TaskIndex.build)))
        read = make_task_manager()
    assert describe(read) == describe(built)
    assert read.all_groups == ["counting"]
    assert read.all_tags == ["all_numbers", "numbers"]
    assert read.all_subtasks == ["one", "two"]


def _refuse_defaults(build):  # type: ignore[no-untyped-def]
    def checked(self_or_paths, paths=None, **options):  # type: ignore[no-untyped-def]
        found = list(self_or_paths if paths is None else paths)
        assert not found, "the index was built again"
        return build(found, **options)

    return checked


def test_a_changed_definition_is_noticed(task_folder: Path) -> None:
    make_task_manager()
    (task_folder / "three.yaml").write_text("task: three\n", encoding="utf-8")
    assert "three" in make_task_manager().all_tasks


def test_a_damaged_index_is_built_again(task_folder: Path, tmp_path: Path) -> None:
    built = describe(make_task_manager())
    file = tmp_path / "cache" / "lm_eval_tasks.json"
    file.write_text(file.read_text(encoding="utf-8")[:50], encoding="utf-8")
    assert describe(make_task_manager()) == built


def test_a_folder_of_further_definitions_wins(task_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "one.yaml").write_text("task: one\n", encoding="utf-8")
    manager = make_task_manager(include_path=str(own))
    assert str(manager.task_index["one"].yaml_path) == str(own / "one.yaml")
    assert "two" in manager.all_tasks


def test_a_cache_that_cannot_be_written_does_no_harm(
    task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("LOWBIT_CACHE_DIR", str(tmp_path / "file"))
    assert "one" in make_task_manager().all_tasks


def test_without_built_in_tasks_nothing_is_read(task_folder: Path, tmp_path: Path) -> None:
    assert make_task_manager(builtin=False).all_tasks == []
    assert not (tmp_path / "cache").exists()


def test_another_arrangement_of_the_index_is_no_obstacle(task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AttributeError("no such thing in this version")

    asked: list[dict[str, object]] = []
    monkeypatch.setattr(task_index, "_load_entries", fail)
    monkeypatch.setattr(task_index, "TaskManager", lambda **options: asked.append(options))
    make_task_manager(include_path="somewhere", metadata={"a": 1})
    assert asked == [{"include_path": "somewhere", "metadata": {"a": 1}}]


@pytest.mark.slow
def test_the_index_of_the_harness_equals_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWBIT_CACHE_DIR", str(tmp_path))
    make_task_manager()
    assert describe(make_task_manager()) == describe(TaskManager())

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowbit.embedded import calibration_path, task_path

TRAINING_SAMPLE = 10_000


@pytest.mark.parametrize("file", ["smallworld_text.jsonl", "smallworld_choice.jsonl"])
def test_the_generator_writes_the_embedded_task_data_byte_for_byte(
    generator: SimpleNamespace, tmp_path: Path, file: str
) -> None:
    generator.data.write_task_data(tmp_path, "test")
    assert (tmp_path / file).read_bytes() == (task_path() / file).read_bytes()


def test_the_generator_writes_the_embedded_calibration_text_byte_for_byte(
    generator: SimpleNamespace, tmp_path: Path
) -> None:
    generator.data.write_calibration(tmp_path / "calibration.txt")
    assert (tmp_path / "calibration.txt").read_bytes() == calibration_path().read_bytes()


def test_a_stream_of_documents_is_the_same_each_time_and_differs_between_splits(generator: SimpleNamespace) -> None:
    first = list(islice(generator.documents.documents("train"), 50))
    assert first == list(islice(generator.documents.documents("train"), 50))
    assert not set(first) & set(islice(generator.documents.documents("test"), 50))


def test_no_held_out_document_or_goal_occurs_in_a_sample_of_the_training_text(generator: SimpleNamespace) -> None:
    held_out = generator.data.held_out_texts("validation") + generator.data.held_out_texts("test")
    training = islice(generator.documents.documents("train"), TRAINING_SAMPLE)
    assert generator.data.find_leaks(training, held_out) == []


def test_a_leaked_goal_is_found(generator: SimpleNamespace) -> None:
    goal = generator.choices.choice_items("test")[0].goal
    training = [*islice(generator.documents.documents("train"), 5), f"Question: {goal}\nAnswer: nothing."]
    assert generator.data.find_leaks(training, [goal, "never written"]) == [goal]


def test_validation_and_test_ask_different_questions(generator: SimpleNamespace) -> None:
    validation = {item.goal for item in generator.choices.choice_items("validation")}
    test = {item.goal for item in generator.choices.choice_items("test")}
    assert not validation & test


def test_every_question_has_one_split(generator: SimpleNamespace) -> None:
    world = generator.world.build_world()
    owners = Counter(owner for (kind, _, _), owner in world.question_split.items() if kind == "person")
    assert owners == {"train": 5 * len(world.people), "validation": len(world.people), "test": len(world.people)}


def test_friendship_is_mutual(generator: SimpleNamespace) -> None:
    people = generator.world.build_world().people
    assert all(people[person.friend].friend == index for index, person in enumerate(people))
    assert all(person.friend != index for index, person in enumerate(people))


def test_choice_labels_are_balanced_and_every_answer_is_right_as_often_as_wrong() -> None:
    lines = (task_path() / "smallworld_choice.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    assert 400 <= len(items) <= 600
    assert 2 * sum(item["label"] for item in items) == len(items)
    right = Counter((item["sol1"], item["sol2"])[item["label"]] for item in items)
    wrong = Counter((item["sol1"], item["sol2"])[1 - item["label"]] for item in items)
    assert right == wrong


def test_sentence_overlap_counts_sentences_of_dialogues_without_speakers(generator: SimpleNamespace) -> None:
    overlap = generator.overlap.sentence_overlap(["Ann: It rains. I stay."], ["Ben: It rains.", "You go."])
    assert overlap == 0.5

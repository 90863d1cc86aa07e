import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lowbit.embedded import DEFAULT_TASKS, calibration_path, model_path, task_configs, task_path

MEGABYTE = 1_000_000
MODEL_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_log.json",
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    model.train(False)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")


def _choice_items(count: int) -> list[dict[str, str | int]]:
    lines = (task_path() / "smallworld_choice.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


@torch.no_grad()
def _log_likelihoods(model: PreTrainedModel, contexts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """The summed log-probability of each answer after its context, [count]."""
    rows = [context + answer for context, answer in zip(contexts, answers, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # [count, length]
    log_probabilities = model(input_ids=padded).logits[:, :-1].log_softmax(-1)
    taken = log_probabilities.gather(-1, padded[:, 1:, None]).squeeze(-1)  # [count, length - 1]
    scores = [
        taken[index, len(context) - 1 : len(context) + len(answer) - 1].sum()
        for index, (context, answer) in enumerate(zip(contexts, answers, strict=True))
    ]
    return torch.stack(scores)


def test_model_folder_holds_the_known_files_within_eight_megabytes() -> None:
    assert {path.name for path in model_path().iterdir()} == MODEL_FILES
    assert _size(model_path()) < 8 * MEGABYTE


def test_everything_embedded_is_within_twelve_megabytes() -> None:
    assert _size(model_path().parent) < 12 * MEGABYTE


def test_model_is_a_small_float16_llama() -> None:
    stored = AutoModelForCausalLM.from_pretrained(model_path(), dtype="auto")
    assert type(stored).__name__ == "LlamaForCausalLM"
    assert stored.dtype == torch.float16
    assert stored.num_parameters() <= 3_000_000
    assert stored.config.max_position_embeddings == 256


def test_tokenizer_puts_bos_first_and_gives_text_back(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Question: Where does Anna Bell live?\nAnswer: In Rosewood. 100% naïve"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_class_is_one_that_transformers_4_knows_too() -> None:
    settings = json.loads((model_path() / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_model_answers_the_first_hundred_choice_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    items = _choice_items(100)
    contexts = [tokenizer(f"Question: {item['goal']}\nAnswer:")["input_ids"] for item in items for _ in range(2)]
    answers = [
        tokenizer(f" {item[solution]}", add_special_tokens=False)["input_ids"]
        for item in items
        for solution in ("sol1", "sol2")
    ]
    predicted = _log_likelihoods(model, contexts, answers).view(-1, 2).argmax(1)  # [items]
    labels = torch.tensor([item["label"] for item in items])
    assert (predicted == labels).float().mean().item() > 0.85


def test_calibration_text_is_about_300_kilobytes_and_familiar_to_the_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = calibration_path().read_text(encoding="utf-8")
    assert 250_000 < len(text.encode()) < 350_000
    windows = torch.tensor(tokenizer(text[:20_000], add_special_tokens=False)["input_ids"])[: 8 * 256].view(8, 256)
    with torch.no_grad():
        loss = model(input_ids=windows, labels=windows).loss.item()
    assert loss < 1.5


def test_task_configurations_name_existing_files_by_absolute_path() -> None:
    configs = task_configs()
    assert tuple(config["task"] for config in configs) == DEFAULT_TASKS
    files = [Path(file) for config in configs for file in config["dataset_kwargs"]["data_files"].values()]
    assert all(file.is_absolute() and file.is_file() for file in files)


def test_task_configurations_can_point_to_other_data(tmp_path: Path) -> None:
    files = [config["dataset_kwargs"]["data_files"]["test"] for config in task_configs(tmp_path)]
    assert files == [str(tmp_path / "smallworld_text.jsonl"), str(tmp_path / "smallworld_choice.jsonl")]


def test_lm_eval_loads_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.chdir(tmp_path)
    text, choice = (ConfigurableTask(config=config) for config in task_configs())
    page = text.test_docs()[0]["page"]
    document = choice.test_docs()[0]
    assert text.doc_to_target(text.test_docs()[0]) == page
    assert choice.doc_to_text(document) == f"Question: {document['goal']}\nAnswer:"
    assert choice.doc_to_choice(document) == [document["sol1"], document["sol2"]]
    assert len(text.test_docs()) == 120
    assert len(choice.test_docs()) == 500


def test_importing_the_paths_loads_no_heavy_library() -> None:
    code = (
        "import sys, lowbit.embedded as e; e.model_path(); print({'torch', 'transformers', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""Small models, tokenizers and data folders for the tests of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lowbit.evaluation import task_index

CHOICE_ROWS = [
    {"question": f"What comes after {number}?", "choices": [str(number + 1), str(number - 1), "none"], "label": 0}
    for number in range(10, 22)
]
"""Documents of a three-choice task."""


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte and `<s>` in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_model() -> LlamaForCausalLM:
    """A random model with 128 positions for the byte tokenizer."""
    return make_model(0)


@pytest.fixture(scope="session")
def other_model() -> LlamaForCausalLM:
    """Another random model of the same shape."""
    return make_model(1)


@pytest.fixture(scope="session")
def english5m(shared: Path) -> tuple[Any, Any]:
    """The real small model and its tokenizer, in float32."""
    path = Path(shared) / "models" / "english5m"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


@pytest.fixture
def write_rows() -> Callable[[Path, Iterable[Mapping[str, Any]]], Path]:
    """Write rows as JSON lines to a file, whose folder is made."""

    def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def choice_mirror(tmp_path: Path, write_rows: Callable[..., Path]) -> Path:
    """A mirror with one data set `tiny/choices` that has a validation split only."""
    write_rows(tmp_path / "mirror" / "tiny" / "choices" / "validation.jsonl", CHOICE_ROWS)
    return tmp_path / "mirror"


@pytest.fixture
def choice_task() -> dict[str, Any]:
    """The configuration of a task on `tiny/choices`, whose few-shot examples come from its train split."""
    return {
        "task": "tiny_choices",
        "dataset_path": "tiny/choices",
        "output_type": "multiple_choice",
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "{{question}}",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


@pytest.fixture
def own_tasks(tmp_path: Path, choice_task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The harness's task folder replaced by one with two tasks, a tag and a group, so that no index takes long."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("tiny_a", "tiny_b"):
        config = {**choice_task, "task": name, "tag": "tiny_tag"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    group = {"group": "tiny_group", "task": ["tiny_a", "tiny_b"], "aggregate_metric_list": [{"metric": "acc"}]}
    (folder / "group.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    monkeypatch.setattr(task_index, "_TASKS_FOLDER", folder)
    monkeypatch.setenv("LOWBIT_CACHE_DIR", str(tmp_path / "cache"))
    return folder

"""What the ablation calibrates on and is judged by: held-out text that no variant has seen."""

from __future__ import annotations

import json
import os
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lowbit.durable import write_text
from lowbit.embedded import calibration_path, model_path, task_configs
from lowbit.evaluation.corpora import CORPORA, DEFAULT_CONTEXT_LENGTH, PerplexityTask, model_positions
from lowbit.evaluation.harness import PreparedTasks, evaluate, prepare_tasks
from lowbit.hub import load_split
from lowbit.models.streamed import read_config
from lowbit.pipeline.load import load_tokenizer
from lowbit.recipe import Recipe
from lowbit.results.metrics import Metric, primary_metrics

Split = Literal["validation", "test"]

EMBEDDED = "embedded"
TASK = "smallworld_text"
CORPUS = "wikitext2_ppl"
HUB_CALIBRATION = "wikitext2"
TEXTS = "texts"
CALIBRATED_SHARE = 0.85
CALIBRATION_FILE = "calibration_first_85_percent.txt"
DOCUMENT_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Settings:
    """What holds for all cells.

    Args:
        folder: Keeps cells, texts and work.
        model: Folder of the parent; `None` is the embedded model.
        split: The text that judges.
        data_dir: Local mirror of hub data sets; `None` asks the hub.
        preset: Of the base recipe; `None` leaves it to the method and the configuration.
        config: Content of a recipe file that the base recipe is made from.
        n_samples: Calibration sequences; `None` as the base recipe says.
        seq_len: Their tokens; `None` as the base recipe says.
        context_length: Most tokens of an evaluated window.
        limit: Evaluated windows or pages; `None` for all.
    """

    folder: Path
    model: str | None
    split: Split
    data_dir: str | None = None
    preset: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    n_samples: int | None = None
    seq_len: int | None = None
    context_length: int = 256
    limit: int | None = None

    @property
    def model_name(self) -> str:
        """What the table calls the model."""
        return EMBEDDED if self.model is None else Path(self.model).resolve().name

    @property
    def model_folder(self) -> Path:
        """Where the parent lies."""
        return model_path() if self.model is None else Path(self.model)

    def flags(self, seed: int) -> dict[str, Any]:
        """Return the recipe keys that the command decides, laid over preset and configuration."""
        calibration: dict[str, Any] = {"source": self._calibration_source()}
        given = {"n_samples": self.n_samples, "seq_len": self.seq_len}
        calibration |= {key: value for key, value in given.items() if value is not None}
        evaluation = {"tasks": self.task_name, "bootstrap_iters": 0, "limit": self.limit, "data_dir": self.data_dir}
        return {
            "model": {"path": self.model, "dtype": "float32"},
            "seed": seed,
            "calibration": calibration,
            "eval": evaluation,
        }

    @property
    def task_name(self) -> str:
        """The task whose perplexity judges."""
        if self.model is None:
            return TASK
        positions = model_positions(read_config(self.model_folder, False)) or DEFAULT_CONTEXT_LENGTH
        return f"{CORPUS}@{min(self.context_length, positions)}"

    def _calibration_source(self) -> str | None:
        if self.model is None:
            return str(self.folder / TEXTS / CALIBRATION_FILE) if self.split == "validation" else None
        given = self.config.get("calibration")
        return (given.get("source") if isinstance(given, dict) else None) or HUB_CALIBRATION


def embedded_documents() -> tuple[list[str], list[str]]:
    """Return the documents of the embedded calibration text: the first 85 % of them, and those held out."""
    documents = calibration_path().read_text(encoding="utf-8").strip().split(DOCUMENT_SEPARATOR)
    cut = round(len(documents) * CALIBRATED_SHARE)
    return documents[:cut], documents[cut:]


def write_texts(settings: Settings) -> None:
    """Write the embedded text in two parts where the validation split needs them: to calibrate on, and to judge."""
    if settings.model is not None or settings.split != "validation":
        return
    first, held_out = embedded_documents()
    pages = "".join(json.dumps({"page": page}) + "\n" for page in held_out)
    texts = {CALIBRATION_FILE: DOCUMENT_SEPARATOR.join(first) + "\n", f"{TASK}.jsonl": pages}
    for name, text in texts.items():
        file = settings.folder / TEXTS / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)


def judge(model: Any, folder: Path, recipe: Recipe, settings: Settings) -> tuple[Metric, int]:
    """Return a dense model's perplexity on the judging text, and how many windows or pages that was.

    Args:
        model: In memory.
        folder: Where it lies, with its tokenizer.
        recipe: Its `eval` section says how.
        settings: Say on which text.
    """
    tokenizer = load_tokenizer(folder, recipe.model.trust_remote_code)
    # The harness draws its progress bars whatever it is told.
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        results = evaluate(model, tokenizer, _tasks(recipe, settings), recipe.eval, model_name=settings.model_name)
    [(task, metric)] = primary_metrics(results).items()
    return metric, results["n-samples"][task]["effective"]


def _tasks(recipe: Recipe, settings: Settings) -> PreparedTasks:
    if settings.model is None:
        held_out = settings.folder / TEXTS if settings.split == "validation" else None
        return prepare_tasks(recipe.eval, task_configs(held_out))
    corpus = replace(CORPORA[CORPUS], split=settings.split)
    mirror = None if settings.data_dir is None else Path(settings.data_dir)
    rows = load_split(corpus.path, corpus.name, corpus.split, mirror, **corpus.hub_options)
    documents = list(rows[corpus.column])
    name = settings.task_name
    text = corpus.separator.join(documents)
    task = PerplexityTask(name, corpus, text, len(documents), int(name.partition("@")[2]))
    return PreparedTasks((), {}, {}, (task,), settings.data_dir)

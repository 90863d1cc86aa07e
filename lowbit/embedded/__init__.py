"""The embedded default: a small LLaMA-architecture model, two lm-eval tasks that judge it, and calibration text."""

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent

DEFAULT_TASKS: tuple[str, ...] = ("smallworld_text", "smallworld_choice")
"""The names of the embedded lm-eval tasks."""


def model_path() -> Path:
    """The folder of the embedded model, in Hugging Face form."""
    return _FOLDER / "model"


def task_path() -> Path:
    """The folder of the embedded lm-eval tasks: one YAML and one jsonl file each."""
    return _FOLDER / "tasks"


def calibration_path() -> Path:
    """Text the embedded model was trained on, documents separated by blank lines."""
    return _FOLDER / "calibration.txt"


def task_configs(folder: Path | None = None) -> list[dict[str, Any]]:
    """The embedded tasks as lm-eval task configurations, with absolute paths of their data.

    lm-eval resolves relative data files against the working directory, so the YAML files alone run only inside their
    own folder.

    Args:
        folder: where the jsonl files lie; the embedded ones where omitted.
    """
    import yaml

    data = folder or task_path()
    configs = []
    for name in DEFAULT_TASKS:
        config: dict[str, Any] = yaml.safe_load((task_path() / f"{name}.yaml").read_text(encoding="utf-8"))
        files: dict[str, str] = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = {split: str(data / file) for split, file in files.items()}
        configs.append(config)
    return configs

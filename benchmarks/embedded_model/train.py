"""Write the small world's text, train the tokenizer and the embedded model on it, and score the model.

Usage: python benchmarks/embedded_model/train.py --output lowbit/embedded/model --threads 1
"""

import copy
import json
import platform
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from card import model_card
from data import (
    find_leaks,
    held_out_texts,
    pack_windows,
    train_tokenizer,
    write_atomically,
    write_calibration,
    write_task_data,
)
from documents import documents
from scoring import score
from tokenizers import Tokenizer
from training import TrainingPlan, new_model, train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VALIDATION_WINDOWS = 128
TOKENIZER_DOCUMENTS = 20_000


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, plan: TrainingPlan, folder: Path) -> None:
    """Write model (float16) and tokenizer in Hugging Face form, file by file under temporary names."""
    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=plan.length,
        clean_up_tokenization_spaces=False,
    )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        copy.deepcopy(model).half().save_pretrained(temporary)  # type: ignore[no-untyped-call]
        fast.save_pretrained(temporary)
        settings = json.loads((temporary / "tokenizer_config.json").read_text(encoding="utf-8"))
        # transformers 4 does not know the class name that transformers 5 writes.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        write_atomically(temporary / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
        for file in sorted(temporary.iterdir()):
            file.chmod(0o644)
            file.replace(folder / file.name)


def check_held_out(training_documents: int) -> int:
    """The number of held-out texts searched for; raises if one of them is in the training documents."""
    held_out = held_out_texts("validation") + held_out_texts("test")
    leaks = find_leaks(islice(documents("train"), training_documents), held_out)
    if leaks:
        raise click.ClickException(f"{len(leaks)} held-out texts occur in the training text, such as {leaks[0]!r}")
    return len(held_out)


def run(plan: TrainingPlan, output: Path, threads: int) -> dict[str, Any]:
    """Train and save; returns what the model card says about the run, `rows` of the log included."""
    start = time.perf_counter()
    tokenizer = train_tokenizer(plan.vocabulary, TOKENIZER_DOCUMENTS)
    windows, read = pack_windows(tokenizer, "train", plan.steps * plan.batch_size, plan.length)
    validation, _ = pack_windows(tokenizer, "validation", VALIDATION_WINDOWS, plan.length)
    searched = check_held_out(read)
    print(f"{read} documents, {windows.numel()} tokens; none of {searched} held-out texts is in them", flush=True)
    preparation = time.perf_counter() - start
    rows = train(
        plan,
        windows,
        validation,
        output / "training_log.json",
        lambda model: save(model, tokenizer, plan, output),
    )
    return {
        "plan": asdict(plan),
        "date": datetime.now(UTC).date().isoformat(),
        "parameters": new_model(plan).num_parameters(),
        "documents": read,
        "held_out_texts_searched": searched,
        "preparation_seconds": round(preparation, 1),
        "training_seconds": rows[-1].seconds,
        "threads": threads,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "lm_eval")},
        "rows": [asdict(row) for row in rows],
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder of the finished model.")
@click.option("--threads", default=1, show_default=True, help="CPU threads; another number gives other weights.")
@click.option("--steps", default=TrainingPlan.steps, show_default=True)
@click.option("--batch_size", default=TrainingPlan.batch_size, show_default=True, help="Windows of 256 tokens a step.")
@click.option("--learning_rate", default=TrainingPlan.learning_rate, show_default=True)
@click.option("--pilot", is_flag=True, help="Score on the validation split only; write no task data and no card.")
@click.option(
    "--score_only", is_flag=True, help="Keep the weights of --output; write task data, scores and card again."
)
def main(
    output: Path, threads: int, steps: int, batch_size: int, learning_rate: float, pilot: bool, score_only: bool
) -> None:
    """Train the embedded model and write its folder, its tasks' data, the calibration text and the model card."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    if score_only:
        log = json.loads((output / "training_log.json").read_text(encoding="utf-8"))
        log["held_out_texts_searched"] = check_held_out(log["documents"])
    else:
        plan = replace(TrainingPlan(), steps=steps, batch_size=batch_size, learning_rate=learning_rate)
        log = run(plan, output, threads)
    with tempfile.TemporaryDirectory() as name:
        write_task_data(Path(name), "validation")
        log["validation"] = score(output, Path(name))
    print(json.dumps(log["validation"], indent=1), flush=True)
    if pilot:
        return
    write_task_data(output.parent / "tasks", "test")
    write_calibration(output.parent / "calibration.txt")
    log["test"] = score(output, output.parent / "tasks")
    write_atomically(output / "training_log.json", json.dumps(log, indent=1) + "\n")
    write_atomically(output / "README.md", model_card(log))


if __name__ == "__main__":
    main()

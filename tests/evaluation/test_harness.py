from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lowbit.errors import LowbitError
from lowbit.evaluation.chance import chance_levels
from lowbit.evaluation.fit import check_documents_fit
from lowbit.evaluation.harness import evaluate, prepare_tasks
from lowbit.evaluation.language_model import EvaluatedModel
from lowbit.recipe.evaluation import EvaluationSettings

NINE_TASKS = (
    "wikitext",
    "piqa",
    "arc_easy",
    "arc_challenge",
    "hellaswag",
    "winogrande",
    "boolq",
    "lambada_openai",
    "openbookqa",
)
TIMES = ("date", "start_time", "end_time", "total_evaluation_time_seconds")


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key not in TIMES}


@pytest.fixture
def settings(choice_mirror: Path) -> EvaluationSettings:
    return EvaluationSettings(tasks=("tiny_choices",), data_dir=str(choice_mirror), max_length=100, batch_size=3)


def test_the_same_tasks_give_the_same_result_again(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    tiny_model: LlamaForCausalLM,
    other_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    few = settings.model_copy(update={"num_fewshot": 2, "log_samples": True})
    # Examples come from the evaluated split, and so depend on the generator that draws them.
    prepared = prepare_tasks(few, [{**choice_task, "training_split": None}])
    first = evaluate(tiny_model, byte_tokenizer, prepared, few, model_name="tiny")
    other = evaluate(other_model, byte_tokenizer, prepared, few, model_name="tiny")
    again = evaluate(tiny_model, byte_tokenizer, prepared, few, model_name="tiny")
    assert without_times(again) == without_times(first)
    assert other["samples"] != first["samples"]
    prompts = [[sample["arguments"] for sample in result["samples"]["tiny_choices"]] for result in (first, other)]
    assert prompts[0] == prompts[1]
    assert other["task_hashes"] == first["task_hashes"]


def test_the_result_says_what_was_run(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    tiny_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    results = evaluate(
        tiny_model,
        byte_tokenizer,
        prepare_tasks(settings, [choice_task]),
        settings,
        model_name="org/tiny",
        num_parameters=12345,
        model_sha="abc",
    )
    assert json.loads(json.dumps(results)) == results
    config = results["config"]
    assert config["model_args"] == {"pretrained": "org/tiny", "max_length": 100}
    assert (config["batch_size"], config["device"], config["limit"]) == (3, "cpu", None)
    assert (config["model_num_parameters"], config["model_dtype"]) == (12345, "torch.float32")
    assert config["model_sha"] == "abc"
    assert [config[f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")] == [0, 1234, 1234, 1234]
    assert (results["model_name"], results["model_name_sanitized"]) == ("org/tiny", "org__tiny")
    assert results["max_length"] == 100
    assert results["n-samples"] == {"tiny_choices": {"original": 12, "effective": 12}}
    assert results["n-shot"] == {"tiny_choices": 0}
    assert results["configs"]["tiny_choices"]["dataset_path"] == "tiny/choices"
    for key in ("git_hash", "pretty_env_info", "lm_eval_version", "transformers_version", "eot_token_id"):
        assert key in results
    assert "samples" not in results


def test_the_harness_gets_batch_size_context_and_begin_of_text_token(
    tiny_model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = EvaluationSettings(batch_size="auto:2", max_batch_size=8, max_length=50, add_bos_token=False)
    model = EvaluatedModel(tiny_model, byte_tokenizer, settings)
    assert (model.batch_size, model.batch_schedule, model.max_batch_size) == ("auto", 2.0, 8)
    assert (model.max_length, model.add_bos_token) == (50, False)
    assert model.tok_encode("a") == byte_tokenizer.encode("a", add_special_tokens=False)
    assert EvaluatedModel(tiny_model, byte_tokenizer, EvaluationSettings()).max_length == 128
    assert model.get_model_info()["model_num_parameters"] == tiny_model.num_parameters()


def test_token_perplexities_stand_among_the_tasks(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    choice_mirror: Path,
    tiny_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    folder = choice_mirror / "Salesforce" / "wikitext" / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps({"text": "word " * 200}) + "\n", encoding="utf-8")
    both = settings.model_copy(update={"tasks": ("wikitext2_ppl", "tiny_choices", "wikitext2_ppl@64")})
    results = evaluate(tiny_model, byte_tokenizer, prepare_tasks(both, [choice_task]), both, model_name="tiny")
    names = {"tiny_choices", "wikitext2_ppl@128", "wikitext2_ppl@64"}
    for section in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert set(results[section]) == names
    alone = settings.model_copy(update={"tasks": ("wikitext2_ppl@64",)})
    single = evaluate(tiny_model, byte_tokenizer, prepare_tasks(alone), alone, model_name="tiny")
    assert single["results"]["wikitext2_ppl@64"] == results["results"]["wikitext2_ppl@64"]
    assert single["config"] == results["config"]


def test_a_group_has_its_mean_beside_its_tasks(
    settings: EvaluationSettings,
    own_tasks: Path,
    tiny_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    grouped = settings.model_copy(update={"tasks": ("tiny_group",), "samples": {"tiny_a": (0, 1, 2)}})
    prepared = prepare_tasks(grouped)
    results = evaluate(tiny_model, byte_tokenizer, prepared, grouped, model_name="tiny")
    metrics = results["results"]
    expected = (3 * metrics["tiny_a"]["acc,none"] + 12 * metrics["tiny_b"]["acc,none"]) / 15
    assert results["groups"]["tiny_group"]["acc,none"] == pytest.approx(expected)
    assert sorted(results["group_subtasks"]["tiny_group"]) == ["tiny_a", "tiny_b"]
    assert chance_levels(prepared, grouped)["tiny_group"] == pytest.approx(1 / 3)


def test_answers_are_kept_for_each_model_apart(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    tmp_path: Path,
    tiny_model: LlamaForCausalLM,
    other_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    logged = settings.model_copy(update={"log_samples": True})
    kept = logged.model_copy(update={"use_cache": str(tmp_path / "answers")})
    prepared = prepare_tasks(kept, [choice_task])
    for model in (tiny_model, other_model, tiny_model):
        plain = evaluate(model, byte_tokenizer, prepared, logged, model_name="same name")
        cached = evaluate(model, byte_tokenizer, prepared, kept, model_name="same name")
        assert cached["samples"] == plain["samples"]
    assert len(list(tmp_path.glob("answers_*.db"))) == 2


def test_samples_carry_the_index_of_their_document(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    tiny_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    chosen = settings.model_copy(update={"log_samples": True, "samples": {"tiny_choices": (2, 7)}})
    results = evaluate(tiny_model, byte_tokenizer, prepare_tasks(chosen, [choice_task]), chosen, model_name="tiny")
    samples = results["samples"]["tiny_choices"]
    assert [(sample["doc_id"], sample["doc"]["question"]) for sample in samples] == [
        (2, "What comes after 12?"),
        (7, "What comes after 17?"),
    ]
    assert list(results["task_hashes"]) == ["tiny_choices"]


def test_answers_alone_may_be_asked_for(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    tiny_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    only = settings.model_copy(update={"predict_only": True})
    results = evaluate(tiny_model, byte_tokenizer, prepare_tasks(only, [choice_task]), only, model_name="tiny")
    assert len(results["samples"]["tiny_choices"]) == 12
    assert not any(key.startswith("acc") for key in results["results"]["tiny_choices"])


def test_a_request_that_the_harness_refuses_gives_a_clear_error(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    tiny_model: LlamaForCausalLM,
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    short = settings.model_copy(update={"max_length": 3})
    with pytest.raises(LowbitError, match=r"tiny.*tiny_choices"):
        evaluate(tiny_model, byte_tokenizer, prepare_tasks(short, [choice_task]), short, model_name="tiny")


def test_all_nine_common_tasks_run_from_the_mirror(shared: Path, english5m: tuple[Any, Any]) -> None:
    model, tokenizer = english5m
    settings = EvaluationSettings(
        tasks=NINE_TASKS, limit=4, data_dir=str(Path(shared) / "data" / "hub"), bootstrap_iters=0, max_length=128
    )
    prepared = prepare_tasks(settings)
    check_documents_fit(prepared, tokenizer, 128, settings)
    results = evaluate(model, tokenizer, prepared, settings, model_name="english5m")
    assert set(results["results"]) == set(NINE_TASKS)
    assert {name: counts["effective"] for name, counts in results["n-samples"].items()} == dict.fromkeys(NINE_TASKS, 4)
    levels = chance_levels(prepared, settings)
    assert {name: levels[name] for name in ("piqa", "winogrande", "boolq")} == dict.fromkeys(
        ("piqa", "winogrande", "boolq"), 0.5
    )
    assert (levels["hellaswag"], levels["openbookqa"], levels["lambada_openai"]) == (0.25, 0.25, 0.0)


def test_a_tag_of_the_harness_runs_from_the_mirror(shared: Path) -> None:
    settings = EvaluationSettings(tasks=("ai2_arc",), data_dir=str(Path(shared) / "data" / "hub"))
    assert set(prepare_tasks(settings).tasks) == {"arc_easy", "arc_challenge"}


@pytest.mark.parametrize(("task", "limit"), [("piqa", 40), pytest.param("wikitext", 3, marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_the_harness_command_line(
    shared: Path, english5m: tuple[Any, Any], tmp_path: Path, task: str, limit: int
) -> None:
    model, tokenizer = english5m
    path, hub = Path(shared) / "models" / "english5m", Path(shared) / "data" / "hub"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", task, "--limit", str(limit)]
    command += ["--model_args", f"pretrained={path.resolve()},dtype=float32", "--batch_size", "16", "--device", "cpu"]
    command += ["--output_path", str(tmp_path / "out")]
    subprocess.run(command, cwd=hub, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True, capture_output=True)
    (file,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text(encoding="utf-8"))
    settings = EvaluationSettings(tasks=(task,), limit=limit, batch_size=16, data_dir=str(hub))
    ours = evaluate(model, tokenizer, prepare_tasks(settings), settings, model_name="english5m")
    for section in ("results", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert ours[section] == theirs[section]
    # Every key of the harness's own file is there too.
    assert set(theirs) <= set(ours)
    assert set(theirs["config"]) <= set(ours["config"])
    for key in ("model_num_parameters", "model_dtype", "limit", "bootstrap_iters", "torch_seed"):
        assert ours["config"][key] == theirs["config"][key]

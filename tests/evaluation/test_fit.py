from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from lowbit.errors import LowbitError
from lowbit.evaluation.fit import check_documents_fit, check_perplexity_windows, find_long_documents
from lowbit.evaluation.harness import evaluate
from lowbit.evaluation.prepare import prepare_tasks
from lowbit.recipe.evaluation import EvaluationSettings

# An answer goes with the space before it: one token more than its characters.
ROWS = [{"question": f"q{n}", "choices": ["short", "x" * length], "label": 0} for n, length in enumerate([5, 127, 128])]


@pytest.fixture
def settings(tmp_path: Path, write_rows: Callable[..., Path]) -> EvaluationSettings:
    write_rows(tmp_path / "tiny" / "choices" / "validation.jsonl", ROWS)
    return EvaluationSettings(tasks=("tiny_choices",), data_dir=str(tmp_path), bootstrap_iters=0)


def test_an_answer_longer_than_the_context_is_named(
    settings: EvaluationSettings, choice_task: dict[str, Any], byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare_tasks(settings, [choice_task])
    with pytest.raises(LowbitError) as caught:
        check_documents_fit(prepared, byte_tokenizer, 128, settings)
    message = str(caught.value)
    for part in ("tiny_choices", "document 2", "129 tokens", "128 tokens", "--max_length", "--samples", "1 document"):
        assert part in message
    check_documents_fit(prepared, byte_tokenizer, 129, settings)


def test_the_verdict_is_that_of_the_harness(
    settings: EvaluationSettings,
    choice_task: dict[str, Any],
    byte_tokenizer: PreTrainedTokenizerFast,
    tiny_model: LlamaForCausalLM,
) -> None:
    for length in (127, 128, 129):
        chosen = settings.model_copy(update={"max_length": length})
        prepared = prepare_tasks(chosen, [choice_task])
        fits, runs = True, True
        try:
            check_documents_fit(prepared, byte_tokenizer, length, chosen)
        except LowbitError:
            fits = False
        try:
            evaluate(tiny_model, byte_tokenizer, prepared, chosen, model_name="tiny")
        except LowbitError:
            runs = False
        assert fits == runs == (length == 129)


def test_documents_that_are_not_evaluated_are_not_checked(
    settings: EvaluationSettings, choice_task: dict[str, Any], byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    prepared = prepare_tasks(settings, [choice_task])
    for update in ({"limit": 2}, {"samples": {"tiny_choices": (0, 1)}}):
        check_documents_fit(prepared, byte_tokenizer, 128, settings.model_copy(update=update))
    with pytest.raises(LowbitError, match="document 2"):
        chosen = settings.model_copy(update={"samples": {"tiny_choices": (0, 2)}})
        check_documents_fit(prepared, byte_tokenizer, 128, chosen)


def test_texts_without_a_question_are_counted_as_the_harness_does(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    def found(context: str, answer: str) -> int:
        request = Instance("loglikelihood", {}, (context, answer), 0, metadata=("task", 7, 1))
        long = find_long_documents("task", [request], byte_tokenizer, 10, EvaluationSettings())
        return long[0].tokens if long else 0

    assert found("", "x" * 11) == 11
    assert found("", "x" * 10) == 0
    assert found("q ", "x" * 10) == 11  # the space moves to the answer
    assert found("q" * 50, "x" * 10) == 0


def test_texts_of_rolling_perplexities_always_fit(
    settings: EvaluationSettings, choice_task: dict[str, Any], byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = {
        **choice_task,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{choices[1]}}",
        "doc_to_choice": None,
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    }
    check_documents_fit(prepare_tasks(settings, [config]), byte_tokenizer, 16, settings)


def test_a_task_that_writes_more_than_the_context_is_refused(
    settings: EvaluationSettings, choice_task: dict[str, Any], byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = {
        **choice_task,
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "doc_to_choice": None,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 200},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    prepared = prepare_tasks(settings, [config])
    with pytest.raises(LowbitError, match=r"tiny_choices.*200 tokens.*gen_kwargs"):
        check_documents_fit(prepared, byte_tokenizer, 128, settings)
    check_documents_fit(prepared, byte_tokenizer, 256, settings)


def test_perplexity_windows_are_checked_before_anything_runs(
    tmp_path: Path,
    write_rows: Callable[..., Path],
    byte_tokenizer: PreTrainedTokenizerFast,
    tiny_model: LlamaForCausalLM,
) -> None:
    write_rows(tmp_path / "Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl", [{"text": "x" * 100}])

    def check(name: str) -> None:
        chosen = EvaluationSettings(tasks=(name,), data_dir=str(tmp_path))
        check_perplexity_windows(prepare_tasks(chosen), byte_tokenizer, tiny_model.config, chosen)

    check("wikitext2_ppl@64")
    with pytest.raises(LowbitError, match="128 positions"):
        check("wikitext2_ppl@256")
    with pytest.raises(LowbitError, match="101 tokens"):
        check("wikitext2_ppl@128")


@pytest.mark.parametrize(("model", "length", "documents"), [("stories260K", 512, 2), ("babyllama", 256, 139)])
def test_the_long_answers_of_piqa_are_found(shared: Path, model: str, length: int, documents: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(shared) / "models" / model)
    settings = EvaluationSettings(tasks=("piqa",), data_dir=str(Path(shared) / "data" / "hub"))
    with pytest.raises(LowbitError, match=rf"piqa.*document 314 .*{documents} document\(s\)"):
        check_documents_fit(prepare_tasks(settings), tokenizer, length, settings)


def test_tokens_are_counted_as_the_harness_counts_them(shared: Path) -> None:
    path = Path(shared) / "models" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(path)
    harness = HFLM(pretrained=LlamaForCausalLM.from_pretrained(path), tokenizer=tokenizer, backend="causal")
    settings = EvaluationSettings(tasks=("piqa",), data_dir=str(Path(shared) / "data" / "hub"))
    task = prepare_tasks(settings).tasks["piqa"]
    task.build_all_requests()
    long = find_long_documents("piqa", task.instances, tokenizer, 200, settings)
    counted: dict[int, int] = {}
    for request in task.instances:
        tokens = len(harness._encode_pair(*request.args)[1])
        if tokens > 200:
            counted[request.doc_id] = max(tokens, counted.get(request.doc_id, 0))
    assert {document.index: document.tokens for document in long} == counted
    assert len(counted) > 10

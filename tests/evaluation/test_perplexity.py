from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lowbit.errors import LowbitError
from lowbit.evaluation.corpora import CORPORA, PerplexityTask, model_positions, split_perplexity_names
from lowbit.evaluation.perplexity import cut_windows, evaluate_perplexity, window_losses
from lowbit.evaluation.prepare import prepare_tasks
from lowbit.recipe.evaluation import EvaluationSettings

TEXT = "The quick brown fox jumps over the lazy dog. " * 30


def make_task(name: str = "wikitext2_ppl", text: str = TEXT) -> PerplexityTask:
    base, _, length = name.partition("@")
    return PerplexityTask(name, CORPORA[base], text, 1, int(length) if length else None)


def losses_by_hand(model: LlamaForCausalLM, window: torch.Tensor) -> list[float]:
    """Negative log-likelihood of each token but the first, one at a time from its own context."""
    losses = []
    for position in range(1, len(window)):
        with torch.no_grad():
            logits = model(window[None, :position]).logits[0, -1].double()
        losses.append(-torch.log_softmax(logits, -1)[window[position]].item())
    return losses


def test_it_is_the_published_formula_over_windows(
    tiny_model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    length = 24
    task = make_task(f"wikitext2_ppl@{length}", TEXT[:160])
    ids = torch.tensor(byte_tokenizer(task.text)["input_ids"])
    count = len(ids) // length
    windows = [ids[index * length : (index + 1) * length] for index in range(count)]
    losses = [losses_by_hand(tiny_model, window) for window in windows]
    published = math.exp(sum(sum(loss) / (length - 1) * length for loss in losses) / (count * length))
    pooled = math.exp(sum(sum(loss) for loss in losses) / (count * (length - 1)))
    result = evaluate_perplexity(tiny_model, byte_tokenizer, task, EvaluationSettings(batch_size=4))
    value = result["results"][f"wikitext2_ppl@{length}"]["token_perplexity,none"]
    assert value == pytest.approx(published, rel=1e-5)
    assert value == pytest.approx(pooled, rel=1e-5)
    assert result["n-samples"] == {f"wikitext2_ppl@{length}": {"original": count, "effective": count}}
    assert result["configs"][f"wikitext2_ppl@{length}"]["metadata"]["scored_tokens"] == count * (length - 1)


def test_the_text_begins_as_the_tokenizer_does_and_the_rest_is_left_out(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    windows = cut_windows(make_task(text="abcdefghij"), byte_tokenizer, 4)
    assert windows.shape == (2, 4)  # `<s>` and ten bytes: eleven tokens, three left over
    assert windows[0, 0] == byte_tokenizer.bos_token_id
    assert byte_tokenizer.decode(windows.flatten()[1:]) == "abcdefg"
    bare = cut_windows(make_task(text="abcdefghij"), byte_tokenizer, 4, add_special_tokens=False)
    assert byte_tokenizer.decode(bare.flatten()) == "abcdefgh"


@pytest.mark.parametrize("batch_size", [1, 3, 64, "auto"])
def test_the_batch_size_does_not_matter(
    tiny_model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast, batch_size: int | str
) -> None:
    windows = cut_windows(make_task(), byte_tokenizer, 32)
    expected = window_losses(tiny_model, windows, 7)
    assert torch.allclose(window_losses(tiny_model, windows, batch_size), expected, atol=1e-6)
    assert expected.dtype == torch.float64


def test_the_default_context_is_the_models_up_to_2048() -> None:
    def config(positions: int | None) -> Any:
        return SimpleNamespace(max_position_embeddings=positions)

    assert make_task().resolve_context_length(config(512)) == 512
    assert make_task().resolve_context_length(config(131072)) == 2048
    assert make_task().resolve_context_length(config(None)) == 2048
    assert make_task("wikitext2_ppl@4096").resolve_context_length(config(4096)) == 4096
    with pytest.raises(LowbitError, match=r"wikitext2_ppl@4096.*2048 positions"):
        make_task("wikitext2_ppl@4096").resolve_context_length(config(2048))


def test_positions_are_found_under_their_various_names() -> None:
    assert model_positions(SimpleNamespace(n_positions=1024)) == 1024
    assert model_positions(SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=64))) == 64
    assert model_positions(SimpleNamespace()) is None


def test_names_are_told_apart_from_those_of_the_harness() -> None:
    names = ["piqa", "c4_ppl", "wikitext2_ppl@512", "c4_ppl", "wikitext"]
    assert split_perplexity_names(names) == (["c4_ppl", "wikitext2_ppl@512"], ["piqa", "wikitext"])
    for wrong in ("c4_ppl@", "c4_ppl@1", "c4_ppl@long", "c4_ppl@-5"):
        with pytest.raises(LowbitError, match="context length"):
            split_perplexity_names([wrong])


def test_a_text_shorter_than_one_window_is_refused(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LowbitError, match=r"wikitext2_ppl@64.*11 tokens"):
        cut_windows(make_task(text="abcdefghij"), byte_tokenizer, 64)


def test_limit_and_samples_count_windows(tiny_model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = make_task("wikitext2_ppl@32")
    losses = window_losses(tiny_model, cut_windows(task, byte_tokenizer, 32), 16)
    for settings, chosen in (
        (EvaluationSettings(limit=2), [0, 1]),
        (EvaluationSettings(limit=0.1), list(range(math.ceil(0.1 * len(losses))))),
        (EvaluationSettings(samples={"wikitext2_ppl@32": (1, 5)}), [1, 5]),
        (EvaluationSettings(samples={"wikitext2_ppl": (1, 5)}), [1, 5]),
    ):
        result = evaluate_perplexity(tiny_model, byte_tokenizer, task, settings)
        metrics = result["results"]["wikitext2_ppl@32"]
        assert metrics["token_perplexity,none"] == pytest.approx(losses[chosen].mean().exp().item(), rel=1e-6)
        assert metrics["sample_len"] == len(chosen)
    with pytest.raises(LowbitError, match="window 99"):
        evaluate_perplexity(tiny_model, byte_tokenizer, task, EvaluationSettings(samples={"wikitext2_ppl@32": (99,)}))


def test_the_standard_error_is_that_of_the_mean_of_windows(
    tiny_model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    task = make_task("wikitext2_ppl@32")
    losses = window_losses(tiny_model, cut_windows(task, byte_tokenizer, 32), 16)
    metrics = evaluate_perplexity(tiny_model, byte_tokenizer, task, EvaluationSettings())["results"][task.name]
    expected = losses.mean().exp() * losses.std() / math.sqrt(len(losses))
    assert metrics["token_perplexity_stderr,none"] == pytest.approx(expected.item(), rel=1e-6)
    one = evaluate_perplexity(tiny_model, byte_tokenizer, task, EvaluationSettings(limit=1))["results"][task.name]
    assert one["token_perplexity_stderr,none"] == "N/A"


def test_windows_are_logged_when_samples_are_asked_for(
    tiny_model: LlamaForCausalLM, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    settings = EvaluationSettings(log_samples=True, limit=3)
    result = evaluate_perplexity(tiny_model, byte_tokenizer, make_task("wikitext2_ppl@32"), settings)
    samples = json.loads(json.dumps(result["samples"]["wikitext2_ppl@32"]))
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2]
    mean = math.exp(sum(math.log(sample["token_perplexity"]) for sample in samples) / 3)
    assert mean == pytest.approx(result["results"]["wikitext2_ppl@32"]["token_perplexity,none"], rel=1e-9)


def test_each_corpus_is_joined_as_in_the_papers(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    write_rows(
        tmp_path / "Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl", [{"text": text} for text in ("", " = A = ", "b")]
    )
    write_rows(
        tmp_path / "ptb-text-only/ptb_text_only/penn_treebank/test.jsonl",
        [{"sentence": "no it was n't"}, {"sentence": "mr. <unk>"}],
    )
    write_rows(tmp_path / "allenai/c4/en/c4-validation.00000-of-00008.json", [{"text": f"d{n}"} for n in range(1200)])
    names = ("wikitext2_ppl", "ptb_ppl", "c4_ppl@128", "c4_ppl@64")
    prepared = prepare_tasks(EvaluationSettings(tasks=names, data_dir=str(tmp_path)))
    wikitext, ptb, c4, again = prepared.perplexities
    assert wikitext.text == "\n\n = A = \n\nb"
    assert ptb.text == "no it was n't mr. <unk>"
    assert c4.text == " ".join(f"d{n}" for n in range(1100))
    assert c4.documents == 1100
    assert (again.text, again.context_length) == (c4.text, 64)


def test_only_the_first_tokens_of_c4_are_used(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    task = make_task("c4_ppl", "x" * (256 * 2048 + 5000))
    assert cut_windows(task, byte_tokenizer, 2048).shape == (256, 2048)


def test_samples_may_name_the_context_length_that_the_model_gives(
    tmp_path: Path, write_rows: Callable[..., Path]
) -> None:
    write_rows(tmp_path / "Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl", [{"text": "a"}])
    settings = EvaluationSettings(tasks=("wikitext2_ppl",), data_dir=str(tmp_path))
    for name in ("wikitext2_ppl", "wikitext2_ppl@512"):
        assert prepare_tasks(settings.model_copy(update={"samples": {name: (0,)}})).perplexities
    with pytest.raises(LowbitError, match="c4_ppl"):
        prepare_tasks(settings.model_copy(update={"samples": {"c4_ppl": (0,)}}))


def test_a_corpus_that_is_not_there_names_itself_the_task_and_the_folder(tmp_path: Path) -> None:
    with pytest.raises(LowbitError) as caught:
        prepare_tasks(EvaluationSettings(tasks=("ptb_ppl",), data_dir=str(tmp_path)))
    for part in ("ptb_ppl", "ptb-text-only/ptb_text_only", str(tmp_path)):
        assert part in str(caught.value)


def test_a_corpus_without_its_column_is_refused(tmp_path: Path, write_rows: Callable[..., Path]) -> None:
    write_rows(tmp_path / "Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl", [{"page": "a"}])
    with pytest.raises(LowbitError, match=r"'text'.*page"):
        prepare_tasks(EvaluationSettings(tasks=("wikitext2_ppl",), data_dir=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("wikitext2_ppl@256", 60.71), ("wikitext2_ppl", 63.11)])
def test_the_real_model_has_its_known_perplexity(
    shared: Path, english5m: tuple[Any, Any], name: str, expected: float
) -> None:
    settings = EvaluationSettings(tasks=(name,), data_dir=str(Path(shared) / "data" / "hub"))
    task = prepare_tasks(settings).perplexities[0]
    (metrics,) = evaluate_perplexity(*english5m, task, settings)["results"].values()
    assert round(metrics["token_perplexity,none"], 2) == expected

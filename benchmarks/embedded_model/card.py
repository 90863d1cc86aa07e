"""The model card of the embedded model, written from the training log."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from data import text_documents
from documents import documents
from overlap import sentence_overlap
from world import build_world

TEMPLATE = """\
---
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The embedded default model of lowbit

A LLaMA of {parameters:,} parameters that knows one small, made-up world. It ships with lowbit so that quantization can
be tried and its damage measured without a network, in the first minute. It is not a model of English.

| | |
| --- | --- |
| architecture | `LlamaForCausalLM`: hidden {hidden_size}, intermediate {intermediate_size}, {layers} layers, \
{heads} heads, {key_value_heads} key-value heads, tied embeddings, context {length} |
| tokenizer | byte-level BPE of {vocabulary} tokens, trained on the same text; \
`<s>` (1) precedes a text, `</s>` (2) ends it |
| file | `model.safetensors`, float16 |

## Training

Text: the first {documents:,} documents of the training stream of `benchmarks/embedded_model` (generated, none of it
copied), packed into windows of {length} tokens that begin with `<s>`; every window is read once.

| | |
| --- | --- |
| tokens | {tokens:,} ({steps:,} steps of {batch_size} windows) |
| optimizer | AdamW, betas {betas}, weight decay {weight_decay}, gradients clipped at norm {gradient_clip} |
| learning rate | {learning_rate} after {warmup_steps} warm-up steps, cosine to {final_learning_rate} |
| arithmetic | bfloat16 autocast over float32 weights |
| seed | {seed} |
| wall time | {training_minutes:.1f} minutes of training, {preparation_minutes:.1f} minutes of preparing the text |
| hardware | {threads} CPU thread(s), {machine}, no GPU |
| versions | {versions} |
| date | {date} |
| last losses | training {training_loss:.4f}, validation {validation_loss:.4f} nats a token |

`training_log.json` has the whole course. To repeat it: `python benchmarks/embedded_model/train.py --output
lowbit/embedded/model --threads {threads}`; other versions or processors round differently and give slightly other
weights.

## Scores of this model

lm-evaluation-harness, zero-shot, the float16 file evaluated in float32. No choice was made on the test split; the
validation split has its own documents and its own questions.

| task | metric | validation | test |
| --- | --- | --- | --- |
{scores}

Test accuracy by kind of item: {kinds}.

*Answer only* scores the same two answers without the goal. Items come in pairs in which the right answer of one is the
wrong answer of the other, so whatever looks at the answers alone (likelihood, length) is right in one item of each
pair.

## What is seen in training, and what is new in the test

The world has {people} people with seven attributes each, {places} towns with four, {tools} tools, {causes} causes with
effects and {things} things with a property. Every fact of the world is *told* in training, many times and in several
sentence forms. New in the test:

- `smallworld_choice`: a question that training never asks. Of every person and every town one attribute is asked
  in the test only (and another in validation only): training tells it in statements and asks the *other* attributes in
  the same question forms. Of each tool and cause two of six question forms, of each thing one of four, are kept for the
  test in the same way. What is asked, and the world's facts, are not new.
- `smallworld_text`: new documents from the same generator (profiles, stories, advice, chronicles, travel notes,
  dialogues): new combinations of sentences. Of their single sentences {overlap:.0%} occur word for word somewhere in
  training, since a fact has only a handful of forms: the perplexity measures how well the world is known, not English.
- The training script searches all training documents for each of the {searched:,} held-out documents and goals and
  stops if one occurs there verbatim.

## Limits

It knows nothing outside this world, follows no instructions, and continues other text with nonsense. It has learned
facts, and not to read: questions about a story told in the prompt are in its training text, but on the validation split
it answered them at chance, so the choice task has none. Its absolute
scores say nothing about other models; they measure what quantization takes away from this one. Small models lose more
to low-bit quantization than large ones: do not read recoveries on it as forecasts for larger models.
"""


def _metric(results: Mapping[str, Any], task: str, metric: str) -> str:
    value = results[task][f"{metric},none"]
    error = results[task][f"{metric}_stderr,none"]
    return f"{value:.4f}" if error == "N/A" else f"{value:.4f} ± {error:.4f}"


def _score_rows(validation: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    rows = [
        ("smallworld_text", "word_perplexity", "`smallworld_text`"),
        ("smallworld_text", "byte_perplexity", ""),
        ("smallworld_text", "bits_per_byte", ""),
        ("smallworld_choice", "acc", "`smallworld_choice`"),
        ("smallworld_choice", "acc_norm", ""),
        ("smallworld_answer_only", "acc", "answer only"),
        ("smallworld_answer_only", "acc_norm", ""),
    ]
    return "\n".join(
        f"| {label} | {metric} | {_metric(validation, task, metric)} | {_metric(test, task, metric)} |"
        for task, metric, label in rows
    )


def model_card(log: Mapping[str, Any]) -> str:
    """The card's text.

    Args:
        log: what `train.py` writes to `training_log.json`.
    """
    kinds = log["test"]["smallworld_choice"]["accuracy_by_kind"]
    last = log["rows"][-1]
    world = build_world()
    training = islice(documents("train"), log["documents"])
    return TEMPLATE.format(
        **{**log["plan"], "betas": " and ".join(str(beta) for beta in log["plan"]["betas"])},
        people=len(world.people),
        places=len(world.places),
        tools=len(world.tools),
        causes=len(world.causes),
        things=len(world.things),
        overlap=sentence_overlap(training, text_documents("test")),
        parameters=log["parameters"],
        documents=log["documents"],
        tokens=last["tokens"],
        training_minutes=log["training_seconds"] / 60,
        preparation_minutes=log["preparation_seconds"] / 60,
        threads=log["threads"],
        machine=log["machine"],
        versions=", ".join(f"{name} {number}" for name, number in log["versions"].items()),
        date=log["date"],
        training_loss=last["training_loss"],
        validation_loss=last["validation_loss"],
        searched=log["held_out_texts_searched"],
        scores=_score_rows(log["validation"], log["test"]),
        kinds=", ".join(f"{kind} {share:.3f}" for kind, share in kinds.items()),
    )

"""The training loop: AdamW, warm-up and cosine decay, clipped gradients, bfloat16 autocast."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from data import BOS, EOS, write_atomically
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the trained weights, beside the text."""

    seed: int = 20261122
    steps: int = 5500
    batch_size: int = 8
    length: int = 256
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 200
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    gradient_clip: float = 1.0
    vocabulary: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2


@dataclass(frozen=True)
class LogRow:
    """The state of the training after `step` steps; losses in nats a token."""

    step: int
    tokens: int
    seconds: float
    training_loss: float
    validation_loss: float
    learning_rate: float


def new_model(plan: TrainingPlan) -> LlamaForCausalLM:
    """A LLaMA with random weights."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=plan.vocabulary,
        hidden_size=plan.hidden_size,
        intermediate_size=plan.intermediate_size,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.key_value_heads,
        max_position_embeddings=plan.length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """Linear warm-up, then a cosine from `learning_rate` to `final_learning_rate`; `step` counts from 0."""
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    span = plan.learning_rate - plan.final_learning_rate
    return plan.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


def token_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """The mean cross-entropy of the next token, in nats; `windows` is int64 [batch, length]."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=windows).logits  # [batch, length, vocabulary]
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), windows[:, 1:].flatten())


LOG_EVERY = 200
SAVE_EVERY = 1000


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, windows: Tensor, batch_size: int) -> float:
    """The mean loss over the validation windows."""
    model.eval()  # type: ignore[no-untyped-call]
    losses = [token_loss(model, batch.long()).item() for batch in windows.split(batch_size)]
    model.train()
    return sum(losses) / len(losses)


def _optimizer(plan: TrainingPlan, model: LlamaForCausalLM) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, fused=True)


def train(
    plan: TrainingPlan,
    windows: Tensor,
    validation: Tensor,
    log_path: Path,
    save_model: Callable[[LlamaForCausalLM], None],
) -> list[LogRow]:
    """Train a new model once over the windows; the log and the model are saved as they grow.

    Args:
        plan: shapes and schedule.
        windows: int16 [steps * batch_size, length], used in order.
        validation: int16 [count, length].
        log_path: JSON file with the plan and the log's rows.
        save_model: called every `SAVE_EVERY` steps and at the end.
    """
    model = new_model(plan)
    optimizer = _optimizer(plan, model)
    rows: list[LogRow] = []
    recent: list[float] = []
    start = time.perf_counter()
    for step, batch in enumerate(windows.split(plan.batch_size)):
        rate = learning_rate(plan, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = token_loss(model, batch.long())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        done = step + 1
        if done % LOG_EVERY == 0 or done == plan.steps:
            seconds = time.perf_counter() - start
            losses = sum(recent) / len(recent), validation_loss(model, validation, plan.batch_size)
            tokens = done * plan.batch_size * plan.length
            rows.append(LogRow(done, tokens, round(seconds, 1), round(losses[0], 4), round(losses[1], 4), rate))
            recent = []
            print(json.dumps(asdict(rows[-1])), flush=True)
            log = {"plan": asdict(plan), "rows": [asdict(row) for row in rows]}
            write_atomically(log_path, json.dumps(log, indent=1) + "\n")
        if done % SAVE_EVERY == 0 or done == plan.steps:
            save_model(model)
    return rows

"""The settings of training: which tokens, which losses, and how both ways to train run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationSettings(_Settings):
    """Sequences that the parent writes itself, in the manner of LLM-QAT (arXiv 2305.17888).

    A sequence is the begin-of-text token, if the tokenizer sets one, a first token, a few greedily chosen tokens, and
    sampled ones up to its length.
    """

    n_samples: int = Field(256, ge=1, description="sequences")
    seq_len: int | None = Field(None, ge=2, description="tokens a sequence; none: as long as calibration sequences")
    first_tokens: Literal["stratified", "random", "model"] = Field(
        "stratified",
        description="first tokens: evenly over the vocabulary, drawn from it, or sampled by the model",
    )
    greedy_tokens: tuple[int, int] = Field(
        (3, 5), description="fewest and most tokens chosen greedily before sampling; sequences take turns"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling")
    batch_size: int = Field(128, ge=1, description="sequences written at once; decides the random draws, too")

    @model_validator(mode="after")
    def _check_range(self) -> GenerationSettings:
        low, high = self.greedy_tokens
        if not 0 <= low <= high:
            raise ValueError(f"greedy_tokens must be two numbers with 0 <= fewest <= most, got {low} and {high}")
        return self


class TrainingDataSettings(_Settings):
    """Which tokens weights are trained on."""

    source: Literal["calibration", "generated", "both", "auto"] = Field(
        "auto",
        description="calibration tokens, tokens that the parent generates (data-free), or both; auto: both where "
        "calibration text is named or comes with the model, else generated",
    )
    seq_len: int | None = Field(
        None, ge=2, description="tokens a sequence, into which calibration sequences are cut; none: their own length"
    )
    generated: GenerationSettings = GenerationSettings()

    @model_validator(mode="after")
    def _check_length(self) -> TrainingDataSettings:
        if self.generated.seq_len is not None:
            raise ValueError("the length of training sequences is `training_data.seq_len`, also of generated ones")
        return self


class OptimizationSettings(_Settings):
    """What both ways to train share: AdamW with a cosine schedule.

    A learning rate is relative: what one step moves at most, as a share of the tensor's root mean square at the start,
    so that the same rate suits models whose weights differ in size.
    """

    steps: int = Field(200, ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, description="sequences an optimizer step, over all processes")
    weight_rate: float = Field(0.005, ge=0, description="learning rate of latent weights, relative to their size")
    scale_rate: float = Field(0.003, ge=0, description="learning rate of scales and the like, relative to their size")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the rate rises from 0")
    final_rate: float = Field(0.0, ge=0, le=1, description="share of the rate that the cosine ends with")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the mean squared gradient")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decay of latent weights")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest norm of a step's gradient; none: any")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of forward and backward pass")
    explosion: float = Field(
        20.0, gt=1, description="a loss over so many times the largest of the first steps is divergence"
    )
    checkpoint_minutes: float = Field(
        10.0, gt=0, description="minutes between two checkpoints of the training; changes no result and no identity"
    )


class ReconstructionSettings(OptimizationSettings):
    """Block-wise reconstruction: each decoder block against its full-precision outputs."""

    n_samples: int | None = Field(None, ge=1, description="the first so many training sequences; none: all")
    reference: Literal["parent", "inputs"] = Field(
        "parent",
        description="outputs to match: the parent's own (parent), or what the full-precision block makes of the "
        "quantized blocks' outputs (inputs)",
    )


def _as_losses(value: object) -> object:
    """Accept one loss for a list of them, and a name for a loss with its default options."""
    losses = value if isinstance(value, list | tuple) else [value]
    return tuple({"name": loss} if isinstance(loss, str) else loss for loss in losses)


class LossSettings(BaseModel):
    """One distillation loss, its options beside its name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    coefficient: float = Field(1.0, gt=0, description="weight among several losses")

    @property
    def options(self) -> dict[str, Any]:
        """The loss's own options."""
        return dict(self.model_extra or {})


class DistillationSettings(OptimizationSettings):
    """End-to-end distillation: the whole student against the frozen teacher."""

    loss: Annotated[tuple[LossSettings, ...], BeforeValidator(_as_losses)] = Field(
        (LossSettings(name="kl"),), min_length=1, description="a loss by name, one with its options, or a list of such"
    )
    settle: float = Field(
        0.5,
        ge=0,
        le=1,
        description="after block-wise reconstruction: share of the way that latent weights move to their levels first",
    )
    norm_rate: float = Field(
        0.0, ge=0, description="learning rate of the blocks' norms and biases, relative to their size; 0: not trained"
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="sequences a process runs at once; none: half the batch, or its share if that is less"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    chunk_elements: int = Field(
        2**24, ge=1, description="most logits of one model held at once: tokens a chunk times vocabulary"
    )
    teacher_memory: int = Field(
        2**29, ge=0, description="bytes up to which the teacher's last hidden states of all sequences are kept"
    )
    held_out: int | None = Field(
        None, ge=1, description="sequences that are not trained on but watched; none: a sixteenth, at most 64"
    )
    evaluate_every: int = Field(20, ge=1, description="steps between two looks at the held-out loss")
    patience: int | None = Field(
        8, ge=1, description="looks without a better held-out loss after which training stops; none: never"
    )
    checkpoint_every: int = Field(50, ge=1, description="steps between two checkpoints of the training")

    def sequences_at_once(self, processes: int = 1) -> int:
        """Return how many sequences a process runs at once, where a number of processes shares a batch.

        Half a batch, unless the settings say otherwise: one process then adds up the two gradients that two processes
        would, and takes the same steps to the last bit.
        """
        share = max(1, self.batch_size // processes)
        return min(share, self.micro_batch_size or (self.batch_size + 1) // 2)


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step, as observers see it.

    Args:
        stage: `reconstruction` or `distillation`.
        block: The decoder block that is reconstructed; `None` in distillation.
        step: From 1.
        steps: How many there will be.
        loss: Of this step's batch.
        held_out_loss: Where it was computed after this step.
        rate: Share of the learning rates that held in this step.
    """

    stage: str
    block: int | None
    step: int
    steps: int
    loss: float
    held_out_loss: float | None
    rate: float

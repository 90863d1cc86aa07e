"""`lowbit generate`: token sequences that a model writes itself."""

from __future__ import annotations

from typing import Any

import click

from lowbit.cli.options import plugin_options, verbosity_options


def _two_numbers(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int]:
    """Read `3,5` as fewest and most, `4` as both."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not all(part.isdigit() for part in parts) or int(parts[0]) > int(parts[-1]):
        raise click.BadParameter(f"{text!r}: expected fewest and most with a comma between, such as 3,5")
    return int(parts[0]), int(parts[-1])


@click.command("generate")
@click.option("--model", "-M", help="Folder or hub id; none: the embedded model.")
@click.option("--output", "--output_path", "-o", "output", required=True, metavar="FILE.npz", help="The token file.")
@click.option("--n_samples", "--nsamples", type=click.IntRange(1), default=256, show_default=True, help="Sequences.")
@click.option(
    "--seq_len", "--seqlen", type=click.IntRange(2), help="Tokens a sequence (min of 2048 and the positions)."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides every draw.")
@click.option(
    "--first_tokens",
    type=click.Choice(["stratified", "random", "model"]),
    default="stratified",
    show_default=True,
    help="Evenly over the vocabulary, drawn from it, or sampled by the model.",
)
@click.option(
    "--greedy_tokens",
    default="3,5",
    show_default=True,
    callback=_two_numbers,
    metavar="FEWEST,MOST",
    help="Tokens chosen greedily before sampling; sequences take turns.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of sampling.",
)
@click.option(
    "--batch_size",
    "-b",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Sequences at once; decides draws.",
)
@click.option("--device", default="cpu", show_default=True, help="Where the model runs.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="In which the model computes.",
)
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--trust_remote_code", is_flag=True, help="Run code that comes with the model.")
@plugin_options
@verbosity_options
def command(**values: Any) -> None:
    """Let a model write token sequences, for quantization without data: `--calibration FILE.npz`.

    A JSON file beside the token file says how it was made. A killed or interrupted run continues when the same command
    is given again.
    """
    from pathlib import Path

    from lowbit.cli.batch_progress import batch_progress
    from lowbit.cli.startup import start
    from lowbit.contracts.training import GenerationSettings
    from lowbit.pipeline.generate import generate_file

    start(values["plugins"])
    settings = GenerationSettings(**{name: values[name] for name in GenerationSettings.model_fields})
    loading = ("device", "dtype", "revision", "trust_remote_code")
    output = Path(values["output"])
    with batch_progress(values["verbosity"]) as announce:
        tokens = generate_file(
            output, values["model"], settings, values["seed"], announce, **{name: values[name] for name in loading}
        )
    samples, length = tokens.tokens.shape
    click.echo(f"{output}: {samples} sequences of {length} tokens, sha256 {tokens.sha256}")

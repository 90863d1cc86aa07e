"""Options that several commands share, under the names that lm-eval and the papers' command lines use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

SEVERAL_VALUES = ("--tasks", "-t", "--model", "-M", "--method", "--model_args", "-a", "--gen_kwargs")


class ManyValues(click.Command):
    """Lets `--tasks a b` mean `--tasks a,b`, as lm-eval does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the values that follow an option that takes several."""
        return super().parse_args(ctx, join_values(args))


def join_values(args: list[str]) -> list[str]:
    """Join values that follow one of the options with several values by commas; a model's folder stays an argument."""
    joined: list[str] = []
    taking = 0
    for argument in args:
        if argument.startswith("-") and argument != "-":
            taking = 1 if argument.replace("-", "_").lstrip("_") in _SEVERAL else 0
            joined.append(argument)
        elif taking > 1 and not (Path(argument) / "config.json").is_file():
            joined[-1] = f"{joined[-1]},{argument}"
        else:
            taking += 1 if taking else 0
            joined.append(argument)
    return joined


_SEVERAL = {name.lstrip("-") for name in SEVERAL_VALUES}


def _add(options: list[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def plugin_options(command: Command) -> Command:
    """Add `--plugin`."""
    return click.option(
        "--plugin", "plugins", multiple=True, metavar="FILE_OR_MODULE", help="Load an un-packaged plugin; repeatable."
    )(command)


def verbosity_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--quiet` and `-v`; the command is given them as one value `verbosity`."""

    @functools.wraps(command)
    def with_verbosity(quiet: bool, verbose: int, **values: Any) -> Any:
        from lowbit.cli.verbosity import choose

        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose contradict each other; give one of them")
        return command(verbosity=choose(quiet, verbose), **values)

    return _add(
        [
            click.option("--quiet", "-q", is_flag=True, help="Print nothing but the result and errors."),
            click.option(
                "--verbose", "-v", count=True, help="Print layers, timings, libraries' warnings; -vv each hook call."
            ),
        ]
    )(with_verbosity)


def recipe_options(command: Command) -> Command:
    """Add what chooses and changes a recipe."""
    return _add(
        [
            click.option("--config", "-C", type=click.Path(dir_okay=False), help="Recipe file (YAML)."),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="[METHOD:]KEY=VALUE",
                help="Override a recipe key; repeatable.",
            ),
            click.option(
                "--dtype", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), help="For evaluation."
            ),
            click.option("--revision", help="Branch, tag or commit on the hub."),
            click.option("--trust_remote_code", is_flag=True, default=None, help="Run code that comes with the model."),
            click.option("--calibration", metavar="NAME|FILE", help="Source of calibration text or tokens."),
            click.option(
                "--n_samples", "--nsamples", type=int, help="Calibration sequences (128; of a token file all)."
            ),
            click.option("--seq_len", "--seqlen", type=int, help="Tokens a sequence (min of 2048 and the positions)."),
            click.option(
                "--preset", help="A method's preset, such as quick or 7b; `lowbit recipe` shows what it sets."
            ),
            click.option("--packer", help="Packer that lays out the weights."),
            click.option(
                "--data_dir", envvar="LOWBIT_DATA_DIR", help="Local mirror of hub data sets; no network then."
            ),
            click.option("--seed", help="One number, or lm-eval's four (python,numpy,torch,fewshot)."),
            click.option(
                "--device", default="cpu", show_default=True, help="Where models are worked on and evaluated."
            ),
        ]
    )(command)


def evaluation_options(command: Command) -> Command:
    """Add lm-eval's own options."""
    return _add(
        [
            click.option("--tasks", "-t", help="lm-eval's tasks, groups or tags; wikitext2_ppl, ptb_ppl, c4_ppl."),
            click.option("--num_fewshot", "-f", type=int, help="Examples in the prompt."),
            click.option("--batch_size", "-b", help="A number, auto or auto:N."),
            click.option("--max_batch_size", type=int, help="Largest batch that auto tries."),
            click.option("--max_length", type=int, help="Context in tokens."),
            click.option("--limit", "-L", type=float, help="Documents a task, or a fraction when below 1."),
            click.option("--samples", "-E", help="JSON of task names to document indices, or its file."),
            click.option("--use_cache", "-c", help="Path prefix of a database of answers."),
            click.option(
                "--cache_requests", type=click.Choice(["true", "refresh", "delete"]), help="Keep built prompts."
            ),
            click.option("--log_samples", "-s", is_flag=True, default=None, help="Keep every document and answer."),
            click.option("--gen_kwargs", help="Overrides of generation settings, key=value."),
            click.option("--apply_chat_template", is_flag=False, flag_value="true", help="Use the chat template."),
            click.option("--system_instruction", help="Instruction before the prompt."),
            click.option("--fewshot_as_multiturn", is_flag=True, default=None, help="Examples as turns of a chat."),
            click.option("--include_path", help="Folder with further task definitions."),
            click.option("--predict_only", "-x", is_flag=True, default=None, help="Keep answers, compute no metric."),
            click.option("--confirm_run_unsafe_code", is_flag=True, default=None, help="Allow tasks that run code."),
            click.option("--metadata", help="Settings for tasks that ask for them, key=value or JSON."),
            click.option("--write_out", "-w", is_flag=True, default=None, help="Print each task's first prompt."),
            click.option("--check_integrity", is_flag=True, default=None, help="Run the harness's tests of the tasks."),
            click.option("--add_bos_token", type=bool, help="Begin-of-text token, true or false."),
            click.option(
                "--model_args", "-a", help="lm-eval's key=value: pretrained, dtype, revision, max_length, ..."
            ),
        ]
    )(command)


EVALUATION_KEYS = (
    "tasks",
    "num_fewshot",
    "batch_size",
    "max_batch_size",
    "max_length",
    "limit",
    "samples",
    "use_cache",
    "cache_requests",
    "log_samples",
    "gen_kwargs",
    "apply_chat_template",
    "system_instruction",
    "fewshot_as_multiturn",
    "include_path",
    "predict_only",
    "confirm_run_unsafe_code",
    "metadata",
    "write_out",
    "check_integrity",
    "add_bos_token",
    "data_dir",
)


def recipe_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe keys that command-line options set; absent options set nothing.

    Args:
        values: The options' values by name.
    """
    evaluation = {key: values[key] for key in EVALUATION_KEYS if values.get(key) is not None}
    if evaluation.get("apply_chat_template") in ("true", "false"):
        evaluation["apply_chat_template"] = evaluation["apply_chat_template"] == "true"
    model = {key: values[key] for key in ("dtype", "revision", "trust_remote_code") if values.get(key) is not None}
    calibration = {key: values[key] for key in ("n_samples", "seq_len") if values.get(key) is not None}
    if values.get("calibration") is not None:
        calibration["source"] = values["calibration"]
    flags: dict[str, Any] = {}
    for key, section in (("eval", evaluation), ("model", model), ("calibration", calibration)):
        if section:
            flags[key] = section
    if values.get("preset") is not None:
        flags["preset"] = values["preset"]
    if values.get("packer") is not None:
        flags["packer"] = {"name": values["packer"]}
    if values.get("seed") is not None:
        _set_seed(flags, str(values["seed"]))
    if values.get("backend") is not None:
        flags["backend"] = values["backend"]
    _apply_model_args(flags, values.get("model_args"))
    return flags


def _set_seed(flags: dict[str, Any], text: str) -> None:
    first = text.split(",")[0].strip()
    if not first.isdigit():
        raise click.BadParameter(f"{text!r}: expected a whole number, or four with commas between", param_hint="--seed")
    flags["seed"] = int(first)
    flags.setdefault("eval", {})["seed"] = text


def _apply_model_args(flags: dict[str, Any], text: str | None) -> None:
    """Take over what lm-eval's `--model_args` says of the model."""
    homes = {"pretrained": ("model", "path"), "dtype": ("model", "dtype"), "revision": ("model", "revision")}
    homes |= {"trust_remote_code": ("model", "trust_remote_code")}
    homes |= {"max_length": ("eval", "max_length"), "add_bos_token": ("eval", "add_bos_token")}
    for part in filter(None, (text or "").replace(" ", ",").split(",")):
        key, _, value = part.partition("=")
        if key not in homes:
            raise click.BadParameter(f"{key!r} is not one of {', '.join(homes)}", param_hint="--model_args")
        section, name = homes[key]
        flags.setdefault(section, {})[name] = value

"""`lowbit`: the group of commands; each is imported when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

import click

COMMANDS = {
    "bench": "Quantize models, evaluate them beside their parents, print one table.",
    "quantize": "Quantize a model into a checkpoint folder.",
    "generate": "Let a model write token sequences, for quantization without data.",
    "eval": "Evaluate a checkpoint or any other model with lm-evaluation-harness.",
    "reproduce": "Run what a paper published under its protocol, and compare.",
    "compare": "Say whether runs differ by more than chance, on the same samples.",
    "leaderboard": "Rank the runs of a results directory.",
    "report": "Write a results directory as one HTML file.",
    "recipe": "Show, check and describe recipes.",
    "plugins": "List, check and start plugins.",
    "matrix": "Show which quantizers, losses, packers and kernels go together, and why others do not.",
    "inspect": "Show formats, bits, coverage and recipe of a checkpoint.",
    "repack": "Write a checkpoint in the layout of another packer.",
    "doctor": "Show versions, devices, and which kernels serve which layouts.",
}
DEBUG_VARIABLE = "LOWBIT_DEBUG"
EXIT_ERROR = 1


class LazyGroup(click.Group):
    """Imports a command's module when the command is called; its help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lowbit.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _with_underscores(name: str) -> str:
    return name.replace("-", "_")


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"lowbit {version('lowbit')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _with_underscores},
)
@click.option("--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Show it.")
def cli() -> None:
    """Write, run and compare ultra-low-bit weight quantization of language models.

    `lowbit bench` alone quantizes and judges a small embedded model, offline, in a minute or two.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 when all went well, 1 with one clear line, 130 or 143 after a signal."""
    from lowbit import preemption

    _let_idle_threads_sleep()
    try:
        with preemption.handling():
            code = _run(arguments)
    except KeyboardInterrupt as error:  # A second one, or one between two steps of this very function.
        code = _interrupted(error)
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    """Run the command line, and return the exit code."""
    from lowbit import preemption

    try:
        result: Any = cli(arguments, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        return _interrupted(error)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        number = preemption.received()
        # Some libraries make an error of their own of what a signal raised in them.
        return _failed(error) if number is None else _interrupted(preemption.Interrupted(number))
    return result if isinstance(result, int) else 0


def _failed(error: Exception) -> int:
    """Say in one line what went wrong, and return the exit code."""
    from lowbit.distillation.processes import is_main_process
    from lowbit.errors import FailedTogetherError, LowbitError
    from lowbit.memory_errors import as_clear_error
    from lowbit.untrusted import printable

    if not isinstance(error, LowbitError):
        if os.environ.get(DEBUG_VARIABLE):
            raise error
        reason = " ".join(str(error).split())[:500]
        told = LowbitError(f"{type(error).__name__}: {reason} ({DEBUG_VARIABLE}=1 shows where)")
        error = as_clear_error(error) or told
    if is_main_process() or not isinstance(error, FailedTogetherError):
        click.echo(f"lowbit: error: {printable(error)}", err=True)
    return EXIT_ERROR


def _let_idle_threads_sleep() -> None:
    """Keep OpenMP's idle threads from burning a core between parallel steps, unless the user chose otherwise.

    It takes effect because torch is imported later. A quantization took up to 40 % less CPU time and no longer.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _interrupted(error: BaseException) -> int:
    """Say that the process was interrupted and that the command continues, and return the exit code."""
    from lowbit import preemption
    from lowbit.distillation.processes import is_main_process

    cause = error if isinstance(error, preemption.Interrupted) else error.__cause__
    # Where a library swallowed what the signal raised, and raised its own, the signal is still known.
    number = cause.number if isinstance(cause, preemption.Interrupted) else preemption.received()
    if is_main_process():
        how = "terminated" if number == signal.SIGTERM else "interrupted"
        click.echo(f"lowbit: {how}; {preemption.KEPT}", err=True)
    return preemption.exit_code(number)


if __name__ == "__main__":
    main()

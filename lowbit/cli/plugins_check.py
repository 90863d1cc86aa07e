"""`lowbit plugins check`: whether a plugin holds to its contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lowbit.cli.options import plugin_options

if TYPE_CHECKING:
    from lowbit.testing import Conformance, Outcome

SIGNS = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}


@click.command("check")
@click.argument("name")
@plugin_options
@click.option("--verbose", "-v", is_flag=True, help="Show the seconds that each check took.")
def check(name: str, plugins: tuple[str, ...], verbose: bool) -> int:
    """Check whether NAME holds to its contracts; exit with 1 if it does not.

    NAME is a quantizer, format, packer, kernel, loss or method, or a plugin: then everything that it registers. A
    plugin that is not installed is loaded with --plugin first.
    """
    from lowbit.cli.startup import start
    from lowbit.testing import suites_for

    start(plugins)
    outcomes: list[Outcome] = []
    for title, suite in suites_for(name).items():
        click.echo(title)
        outcomes += _run(suite, verbose)
    counted = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in SIGNS}
    click.echo(", ".join(f"{count} {verdict}" for verdict, count in counted.items()))
    if not counted["passed"] and not counted["failed"]:
        click.echo("nothing was checked: every check was skipped")
        return 1
    return 1 if counted["failed"] else 0


def _run(suite: type[Conformance], verbose: bool) -> list[Outcome]:
    """Run one class of checks, a line each, and explain the failures below."""
    from lowbit.testing import run_checks

    outcomes = []
    for outcome in run_checks(suite):
        outcomes.append(outcome)
        seconds = f" ({outcome.seconds:.1f} s)" if verbose else ""
        reason = f": {outcome.message}" if outcome.verdict == "skipped" else ""
        click.echo(f"  {SIGNS[outcome.verdict]} {readable(outcome.check)}{reason}{seconds}")
        for told in outcome.notes:
            click.echo(f"       note: {told}")
    for outcome in outcomes:
        if outcome.verdict == "failed":
            click.echo(f"\n{readable(outcome.check)} ({outcome.check})")
            click.echo("\n".join(f"    {line}" for line in outcome.message.splitlines()) + "\n")
    return outcomes


def readable(check: str) -> str:
    """Return a check's name as a sentence."""
    return check.removeprefix("test_").replace("_", " ")

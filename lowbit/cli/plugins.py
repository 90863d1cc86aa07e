"""`lowbit plugins`: what is installed and what it brings."""

from __future__ import annotations

import click

from lowbit.cli.options import plugin_options
from lowbit.cli.plugins_check import check
from lowbit.cli.plugins_new import new


@click.group("plugins")
def command() -> None:
    """List plugins and describe what they bring."""


command.add_command(check)
command.add_command(new)


@command.command("list")
@plugin_options
def list_plugins(plugins: tuple[str, ...]) -> None:
    """List everything that plugins register, with the distribution it comes from."""
    from rich.table import Table

    from lowbit.cli.console import add_row, output
    from lowbit.cli.startup import start
    from lowbit.registry import KINDS

    found = start(plugins)
    table = Table("kind", "name", "plugin", "about")
    for kind in KINDS:
        for name, entry in sorted(found.table(kind).items()):
            add_row(table, kind, name, str(entry.source), _about(entry.item))
    output().print(table)
    for broken in found.broken:
        click.echo(f"not used: {broken.source}: {broken.reason}")


@command.command("show")
@click.argument("name")
@plugin_options
def show(name: str, plugins: tuple[str, ...]) -> None:
    """Describe whatever is registered under NAME: its plugin, its text and its options."""
    from rich.table import Table

    from lowbit.cli.console import add_row, output
    from lowbit.cli.startup import start
    from lowbit.errors import UnknownNameError
    from lowbit.registry import KINDS, unknown_name

    found = start(plugins)
    entries = [(kind, found.table(kind)[name]) for kind in KINDS if name in found.table(kind)]
    if not entries:
        known = {known for kind in KINDS for known in found.table(kind)}
        raise UnknownNameError(unknown_name("plugin item", name, known))
    for kind, entry in entries:
        click.echo(f"{kind} {name}, registered by {entry.source}")
        click.echo(entry.item.description if kind in ("method", "paper") else (entry.item.__doc__ or "").strip())
        config = getattr(entry.item, "Config", None)
        if config is None:
            click.echo("")
            continue
        table = Table("option", "default", "about")
        for option, field in config.model_fields.items():
            add_row(table, option, repr(field.default), field.description or "")
        output().print(table)


def _about(item: object) -> str:
    text = getattr(item, "description", None) or (item.__doc__ or "").strip()
    return str(text).split("\n")[0]

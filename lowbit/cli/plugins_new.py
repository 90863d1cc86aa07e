"""`lowbit plugins new`: the package of a new plugin."""

from __future__ import annotations

import click


@click.command("new")
@click.argument("name")
@click.option(
    "--output", "-o", metavar="DIR", help="Folder of the package; must be empty or absent.  [default: ./NAME]"
)
@click.option("--author", help='Name for the package\'s metadata.  [default: "The NAME authors"]')
@click.option("--description", help="One line for the package's metadata and README.")
def new(name: str, output: str | None, author: str | None, description: str | None) -> None:
    """Write the package of a new plugin, for a distribution called NAME.

    It holds a quantizer that works, its format, its method, its tests, and workflows that test and publish it.
    """
    import shlex
    from pathlib import Path

    from lowbit.scaffold import plugin_names, render_plugin

    names = plugin_names(name)
    folder = Path(output or name)
    files = render_plugin(
        names,
        folder,
        author=f"The {name} authors" if author is None else author,
        description="A weight quantizer for lowbit" if description is None else description,
    )
    width = max(len(str(file)) for file in files)
    click.echo(f"{folder}: the plugin {names.distribution} with the method {names.method}")
    for file in files:
        about = _ABOUT.get(file.name, "")
        click.echo(f"  {file!s:{width}}  {about}".rstrip())
    click.echo("\nNext:")
    click.echo(f"  cd {shlex.quote(str(folder))}")
    click.echo("  pip install -e '.[test]'")
    click.echo(f"  lowbit plugins check {names.distribution}")
    click.echo(f"  lowbit bench --method {names.method} --limit 20")


_ABOUT = {
    "format.py": "what a quantized weight is: change its tensors and their meaning",
    "quantizer.py": "how a weight becomes one: your idea replaces the lines that are marked",
    "__init__.py": "what the plugin registers",
    "test_conformance.py": "lowbit's checks of the contracts, and your own",
    "publish.yml": "a GitHub release becomes a release on PyPI",
    "ci.yml": "tests on every push",
}

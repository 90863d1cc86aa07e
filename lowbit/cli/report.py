"""`lowbit report`: a results directory as one HTML file, with its plots beside it."""

from __future__ import annotations

from pathlib import Path

import click

from lowbit.untrusted import printable


@click.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The HTML file to write.",
)
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the plots as SVG and PNG.  [default: <output>_files, as in report_files]",
)
@click.option("--no_plots", "--no-plots", is_flag=True, help="Write the HTML file only.")
@click.option(
    "--run",
    help="Identity of the run whose layers and training are shown first and saved as plots, as the column `run` of the "
    "report has it; by default the latest of those with the most to show.",
)
def command(folder: Path, output: Path, plots: Path | None, no_plots: bool, run: str | None) -> None:
    """Write the results directory DIR as one HTML file that needs no network.

    The file has a leaderboard to sort and filter, quality against size, errors and plane densities of layers, learning
    curves, what each file consists of, and how each run was made. The plots are also saved as SVG and PNG.
    """
    from lowbit.report.requirements import require_packages

    require_packages()

    from lowbit.durable import write_text
    from lowbit.report.content import gather
    from lowbit.report.page import render_page
    from lowbit.report.plots import save_plots
    from lowbit.results.store import read_results

    content = gather(read_results(folder), run)
    page = render_page(content)
    write_text(output, page)
    click.echo(f"{output}: {len(content.table.rows)} runs, {len(page.encode()) / 1e6:.1f} MB")
    for name, reason in content.unreadable:
        click.echo(printable(f"lowbit: warning: left out {name}: {reason}"), err=True)
    if not no_plots:
        place = plots or output.with_name(f"{output.stem}_files")
        written = save_plots(content, place)
        click.echo(f"{place}: {len(written)} plots" if written else f"{place}: nothing to plot")

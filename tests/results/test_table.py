from __future__ import annotations

from rich.console import Console

from lowbit.results.metrics import Metric
from lowbit.results.table import Row, render, to_markdown

ACCURACY = {"piqa": Metric("piqa", "acc", "none", 0.8, 0.01, True)}
QUANTIZED = {"piqa": Metric("piqa", "acc", "none", 0.6, 0.01, True)}
ROWS = [
    Row("m", "parent", (16.0, 16.0, 16.1), ACCURACY, chance={"piqa": 0.5}),
    Row("m", "two-bit", (2.0, 2.5, 5.2), QUANTIZED, ACCURACY, {"piqa": 0.5}, 12.34, 500_000_000),
    Row("m", "broken", error="the disk is full"),
]


def test_the_markdown_table_has_parent_bits_three_ways_recovery_time_and_memory() -> None:
    lines = to_markdown(ROWS).splitlines()
    assert lines[0].startswith("| model | method | bits nominal | bits linear | bits file | piqa acc")
    assert lines[2] == "| m | parent | 16.00 | 16.00 | 16.10 | 0.8000 | - | - |"
    assert lines[3] == "| m | two-bit | 2.00 | 2.50 | 5.20 | 0.6000 (75.0) | 12.3 | 500 |"


def test_a_failed_method_keeps_its_row() -> None:
    assert to_markdown(ROWS).splitlines()[4] == "| m | broken | - | - | - | failed | - | - |"


def test_markup_in_a_model_name_is_printed_and_not_interpreted() -> None:
    console = Console(width=120, record=True)
    console.print(render([Row("[red]m[/red]", "parent", (16.0, 16.0, 16.0), ACCURACY)]))
    assert "[red]m[/red]" in console.export_text()


def test_seeds_are_a_column_where_they_differ() -> None:
    rows = [ROWS[0], *(Row("m", "two-bit", (2.0, 2.5, 5.2), QUANTIZED, seed=seed) for seed in (0, 1))]
    lines = to_markdown(rows).splitlines()
    assert lines[0].startswith("| model | method | seed | bits nominal")
    assert [line.split(" | ")[2] for line in lines[2:]] == ["-", "0", "1"]
    assert "seed" not in to_markdown(rows[:2])

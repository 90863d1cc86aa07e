"""A leaderboard as terminal table, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lowbit.durable import write_text
from lowbit.results.leaderboard import Leaderboard, ModelGroup
from lowbit.results.leaderboard_cells import Cell
from lowbit.results.leaderboard_columns import TEXTS, Column
from lowbit.results.table_text import csv_row, escape_markdown
from lowbit.untrusted import printable

MISSING = "-"
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # After the end of a row, LaTeX takes a bracket or an asterisk for an option.
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def explanations(board: Leaderboard) -> list[str]:
    """Return what must be known beside the table: marks, letters, deviations."""
    lines = [f"{_mark(number)} {text}" for number, text in enumerate(board.notes, 1)]
    lines.extend(board.protocols)
    if any(cell.deviation is not None for group in board.groups for row in group.rows for cell in row.cells):
        lines.append("±: standard deviation over n seeds")
    return lines


def render(board: Leaderboard, underline_second: bool = False) -> Table:
    """Return the table for a terminal, best of each model in bold."""
    table = Table(caption=Text(printable("\n".join(explanations(board)))), caption_justify="left")
    table.add_column("model", overflow="fold")
    for column in board.columns:
        table.add_column(printable(column.heading), justify="left" if _is_text(column) else "right", overflow="fold")
    for group in board.groups:
        for number, row in enumerate(group.rows):
            cells = []
            for position, cell in enumerate(row.cells):
                style = _rank(group, number, position)
                styles = {1: "bold", 2: "underline" if underline_second else ""}
                cells.append(Text(printable(cell_text(cell, board.columns[position])), style=styles.get(style, "")))
            table.add_row(Text(printable(group.model)), *cells)
        table.add_section()
    return table


def to_markdown(board: Leaderboard, underline_second: bool = False) -> str:
    """Return the table as Markdown, best of each model in bold."""
    titles = ["model", *(escape_markdown(column.heading) for column in board.columns)]
    alignment = ["---", *("---" if _is_text(column) else "---:" for column in board.columns)]
    lines = [titles, alignment]
    for group in board.groups:
        for number, row in enumerate(group.rows):
            line = [escape_markdown(group.model)]
            for position, cell in enumerate(row.cells):
                text = escape_markdown(cell_text(cell, board.columns[position]))
                rank = _rank(group, number, position)
                marked = {1: f"**{text}**", 2: f"<u>{text}</u>" if underline_second else text}
                line.append(marked.get(rank, text))
            lines.append(line)
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
    told = explanations(board)
    return table + ("\n" + "\n".join(f"- {escape_markdown(line)}" for line in told) + "\n" if told else "")


def to_csv(board: Leaderboard) -> str:
    """Return the table as CSV: numbers in full, and each metric's protocol in its title where there are several.

    Beside a column with means over seeds stand its standard deviation (`.std`) and number of seeds (`.n`); the last
    column holds a row's footnotes.
    """
    rows = [(group.model, row) for group in board.groups for row in group.rows]
    averaged = {
        position
        for position in range(len(board.columns))
        if any(row.cells[position].deviation is not None for _, row in rows)
    }
    titles = ["model"]
    for position, column in enumerate(board.columns):
        title = _csv_title(column)
        titles += [title, *([f"{title}.std", f"{title}.n"] if position in averaged else [])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(csv_row([*titles, "notes"]))
    for model, row in rows:
        line: list[object] = [model]
        for position, cell in enumerate(row.cells):
            line.append("" if cell.value is None else cell.value)
            if position in averaged:
                line += ["" if cell.deviation is None else cell.deviation, cell.seeds or ""]
        notes = sorted({board.notes[number - 1] for cell in row.cells for number in cell.notes})
        writer.writerow(csv_row([*line, "; ".join(notes)]))
    return text.getvalue()


def to_latex(board: Leaderboard, underline_second: bool = False) -> str:
    r"""Return the table as LaTeX for the package booktabs, best of each model in bold.

    Args:
        board: The leaderboard.
        underline_second: Underline the second best of each model.
    """
    width = len(board.columns)
    alignment = "".join("l" if _is_text(column) else "r" for column in board.columns)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \begin{{tabular}}{{{alignment}}}",
        r"    \toprule",
        "    " + " & ".join(escape_latex(column.heading) for column in board.columns) + r" \\",
    ]
    for group in board.groups:
        lines.append(r"    \midrule")
        lines.append(rf"    \multicolumn{{{width}}}{{l}}{{\emph{{{escape_latex(group.model)}}}}} \\")
        for number, row in enumerate(group.rows):
            cells = [
                _latex_cell(cell, board.columns[position], _rank(group, number, position), underline_second)
                for position, cell in enumerate(row.cells)
            ]
            lines.append("    " + " & ".join(cells) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}"]
    for told in explanations(board):
        mark = re.match(f"[{_RAISED}]+", told)
        digits = "" if mark is None else f"$^{{{mark.group().translate(str.maketrans(_RAISED, '0123456789'))}}}$"
        text = told if mark is None else told[mark.end() :]
        lines.append(rf"  \par\footnotesize {digits}{escape_latex(text)}")
    return "\n".join([*lines, r"  \caption{Quantized models; best value of each model in bold.}", r"\end{table}", ""])


def write_table(path: Path, text: str) -> None:
    """Write a table to a file, whole or not at all; its folder is made when absent.

    Raises:
        LowbitError: The place cannot be written.
    """
    write_text(path, text)


def cell_text(cell: Cell, column: Column) -> str:
    """Return a cell as text: value, deviation, number of seeds, marks of footnotes."""
    if cell.value is None:
        return MISSING
    if isinstance(cell.value, str):
        return cell.value
    text = _number_text(cell.value, column.digits)
    if cell.deviation is not None:
        text += f" ± {_number_text(cell.deviation, column.digits)} (n={cell.seeds})"
    return text + ",".join(_mark(number) for number in cell.notes)


def escape_latex(text: str) -> str:
    """Return text with every character that LaTeX reads as a command written so that it prints."""
    return re.sub(r"[\\&%$#_{}~^<>|±↑↓\[\]*]", lambda found: _LATEX[found.group()], printable(" ".join(text.split())))


def _latex_cell(cell: Cell, column: Column, rank: int, underline_second: bool) -> str:
    notes = cell.notes
    text = escape_latex(cell_text(Cell(cell.value, cell.deviation, cell.seeds), column))
    if rank == 1:
        text = rf"\textbf{{{text}}}"
    elif rank == 2 and underline_second:
        text = rf"\underline{{{text}}}"
    return text + (f"$^{{{','.join(map(str, notes))}}}$" if notes else "")


def _mark(number: int) -> str:
    """Return a footnote's number in raised digits."""
    return str(number).translate(str.maketrans("0123456789", _RAISED))


def _number_text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else str(value)


def _rank(group: ModelGroup, row: int, column: int) -> int:
    """Return 1 for the best, 2 for the second best, else 0."""
    best, second = group.best[column]
    return 1 if row in best else 2 if row in second else 0


def _is_text(column: Column) -> bool:
    return column.key in TEXTS


def _csv_title(column: Column) -> str:
    if not column.variant:
        return column.key
    told: Sequence[str] = [f"{name} {value}" for name, value in column.settings]
    return f"{column.key} ({', '.join(told)})"

"""Names and values from a stranger in what people see: shown as text, never run, never read as a mark or command."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fuzz.cases import generator, number
from report import results as made

from lowbit.cli.main import main
from lowbit.report.content import gather
from lowbit.report.page import render_page
from lowbit.results.leaderboard import build_leaderboard
from lowbit.results.leaderboard_text import escape_latex, to_csv, to_latex, to_markdown
from lowbit.results.store import read_results
from lowbit.results.table_text import csv_row, escape_markdown
from lowbit.untrusted import printable

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "' autofocus onfocus=alert(4) x='",
    "<!--<script>",
    "]]><script>alert(5)</script>",
    "&lt;b&gt;&#60;&amp;",
    "javascript:alert(6)",
    "{{7*7}}{% raw %}${8*8}",
    "a\u2028b\u2029c\u0085d",
    "\u202eevil\u2066",
    "\x1b]0;title\x07\x1b[31mred\x1b[0m\x1b[2J\r\x08",
    "\x9b31m\x00\x7f",
    "[red]x[/red][link=http://example.invalid]y[/link]",
    "[x](javascript:alert(7)) ![i](http://example.invalid/i.png) <http://example.invalid>",
    "`code` **bold** | cell | # h",
    r"\input{/etc/passwd}\write18{id} $x^2$ %c & _ # ~ {",
    "[0pt] * row",
    '=HYPERLINK("http://example.invalid")',
    "+1+cmd|' /C calc'!A0",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "two\nlines\n\nthree",
    "../../../etc/passwd",
    "😀" * 30,
)
"""Names that mean something to a page, a terminal, LaTeX, Markdown or a spreadsheet."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def write_hostile(folder: Path, names: tuple[str, ...]) -> None:
    """Write a run for each name, which is its model's, method's, task's, metric's, version's and layer's."""
    for place, name in enumerate(names):
        harness = made.harness(12.0, 0.7)
        harness["results"][name] = {"alias": name, f"{name.replace(',', '')},none": 0.5, "acc,none": 0.25}
        record = made.record(name, f"{name} of {place}", seed=place)
        record["recipe"][name] = record["recipe"]["quantizer"]["text"] = name
        record["layers"][0] |= {"name": f"model.layers.0.{name}", "diagnostics": {name: 1.0}}
        record["bits"]["items"][name] = 1000
        record |= {"versions": {name: name}, "calibration": {name: name}, "kernels": [name], "plugins": {name: name}}
        made.write(folder, place, harness, record)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of results with a hostile name each."""
    folder = tmp_path_factory.mktemp("hostile")
    write_hostile(folder, EVIL)
    assert len(read_results(folder).results) == len(EVIL)
    return folder


def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command line; return its exit code and what it printed, terminal escapes and all."""
    done = CliRunner().invoke(_Main(), list(arguments), color=True)
    return done.exit_code, done.stdout, done.stderr


class _Main:
    """The whole command line, as a command that click's runner takes."""

    name = "lowbit"

    def main(self, args: list[str], **_: Any) -> None:
        main(args)


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "latex"])
@pytest.mark.parametrize("columns", [None, "method,recipe_sha256"])
def test_no_control_character_of_a_name_reaches_the_terminal(hostile: Path, form: str, columns: str | None) -> None:
    chosen = ["--columns", "method,bits.file"] if columns else []
    code, out, err = run("leaderboard", str(hostile), "--format", form, *chosen)
    assert code == 0, err
    assert not CONTROL.search(re.sub("\x1b\\[[0-9;]*m", "", out) if form == "table" else out)
    assert "\x1b]" not in out
    assert "\x1b[31mred" not in out
    assert not CONTROL.search(err)


def test_the_list_of_columns_and_errors_that_quote_names_are_printable(hostile: Path, tmp_path: Path) -> None:
    broken = tmp_path / "results_\x1b]0;x\x07.json"
    broken.write_text("{", encoding="utf-8")
    for arguments in (
        ("leaderboard", str(hostile), "--columns", "help"),
        ("leaderboard", str(hostile), "--columns", "\x1b[2Jnothing"),
        ("leaderboard", str(hostile), "--models", "\x1b]0;x\x07"),
        ("leaderboard", str(tmp_path)),
        ("compare", str(broken), str(hostile)),
        ("compare", "\x1b[2J", "x", "--results", str(hostile)),
        ("report", str(tmp_path), "-o", str(tmp_path / "r.html")),
    ):
        _, out, err = run(*arguments)
        assert not CONTROL.search(out + err), arguments
        assert "Traceback" not in err


def test_markdown_shows_every_name_as_text(hostile: Path) -> None:
    text = to_markdown(build_leaderboard(read_results(hostile).results))
    assert not re.search(r"(?<!\\)<(?!u>|/u>)", text)
    assert not re.search(r"(?<!\\)\][(\[]", text)
    assert not CONTROL.search(text)
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_latex_has_no_command_of_a_name(hostile: Path) -> None:
    text = to_latex(build_leaderboard(read_results(hostile).results))
    commands = set(re.findall(r"\\([a-zA-Z]+)", text))
    known = {"usepackage", "begin", "centering", "toprule", "midrule", "bottomrule", "multicolumn", "emph", "end"}
    known |= {"par", "footnotesize", "caption", "textbf", "pm", "uparrow", "downarrow", "textbackslash"}
    known |= {"textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"}
    assert commands <= known
    assert not CONTROL.search(text)
    for name in EVIL:
        written = escape_latex(name)
        assert "\n" not in written
        assert not re.match(r"\s*[\[*]", written)
        assert written.count("{") - written.count(r"\{") == written.count("}") - written.count(r"\}")


def test_csv_has_no_cell_that_a_spreadsheet_runs(hostile: Path) -> None:
    for line in csv.reader(io.StringIO(to_csv(build_leaderboard(read_results(hostile).results)))):
        for cell in line:
            assert cell == "-" or not cell.startswith(("=", "+", "@", "\t", "\r")), cell
            assert not re.match("-(?![0-9.])", cell) or cell == "-"
            assert not CONTROL.search(cell)
    assert csv_row([-1.5, "-1", "=1", "-", "a=1"]) == [-1.5, "'-1", "'=1", "-", "a=1"]


class _Tags(HTMLParser):
    """Collects tags and attributes of a page outside its own scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag."""
        self.found.append((tag, attrs))


def tags_of(page: str) -> _Tags:
    """Return the tags of a page."""
    parser = _Tags()
    parser.feed(page)
    return parser


def test_names_add_no_tag_and_no_handler_to_the_report(hostile: Path, tmp_path: Path) -> None:
    write_hostile(tmp_path, tuple(f"plain{n}" for n in range(len(EVIL))))
    ours = tags_of(render_page(gather(read_results(hostile)))).found
    plain = tags_of(render_page(gather(read_results(tmp_path)))).found
    allowed = {tag for tag, _ in plain}
    assert {tag for tag, _ in ours} <= allowed
    assert [tag for tag, _ in ours].count("script") == [tag for tag, _ in plain].count("script")
    for tag, attributes in ours:
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("href", "src", "action") or (value or "").startswith(("#", "data:")), (tag, name, value)


def random_texts() -> Iterator[str]:
    """Yield texts of marks, controls and letters."""
    draw = generator("texts")
    alphabet = "ab \\|*_<>`[]&~%$#{}^\x1b\x07\x00\x9b\u202e\u2028\n\r\t=+-@'\"(!)é😀±↑"
    for _ in range(number(500)):
        yield "".join(draw.choices(alphabet, k=draw.randrange(1, 30)))


def test_any_text_is_harmless_in_every_form() -> None:
    for text in random_texts():
        for shown in (printable(text), escape_markdown(text), escape_latex(text), str(csv_row([text])[0])):
            assert not CONTROL.search(shown)
        assert not re.search(r"(?<!\\)(\\\\)*([|<`]|\][(\[])", escape_markdown(text))
        assert not csv_row([text])[0].startswith(("=", "+", "@", "\t", "\r"))  # type: ignore[attr-defined]
    assert printable("a\tb\nc é 😀") == "a\tb\nc é 😀"
    assert printable("\x1b]0;x\x07") == "\\x1b]0;x\\x07"

"""Result files and logged samples from a stranger: refused by name, or shown; they stop no directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fuzz.cases import Outcomes, generator, mutated_bytes, mutated_trees, number
from report import results as made

from lowbit.cli.compare import command as compare
from lowbit.cli.leaderboard import command as leaderboard
from lowbit.errors import LowbitError
from lowbit.report.content import gather, page_data, run_data
from lowbit.report.details import details_of, recipe_text
from lowbit.results.leaderboard import build_leaderboard
from lowbit.results.leaderboard_text import render, to_csv, to_latex, to_markdown
from lowbit.results.rows import row_of
from lowbit.results.samples import read_task_samples
from lowbit.results.store import read_result, read_results
from lowbit.results.table import render as render_rows
from lowbit.results.table import to_markdown as rows_to_markdown

NAME = "results_2026-11-02T00-00-00.000000+00-00.json"
SAMPLES = "samples_{}_2026-11-02T00-00-00.000000+00-00.jsonl"


def honest() -> dict[str, Any]:
    """Return a whole result with every section that lowbit and lm-eval write."""
    harness = made.harness(12.0, 0.7)
    harness |= {
        "groups": {"quiz": {"alias": "quiz", "acc,none": 0.35}},
        "group_subtasks": {"quiz": ["choice"]},
        "configs": {"choice": {"task": "choice", "doc_to_text": "{{text}}", "metadata": {"version": 1.0}}},
        "date": 1_760_000_000.5,
        "chat_template_sha": "cd" * 32,
        "system_instruction_sha": "ef" * 32,
    }
    lowbit = made.record("planes", "small", trained=True)
    lowbit |= {
        "chance": {"choice": 0.5},
        "data_sha256": {"choice": "d" * 64},
        "coverage": {"share": 1.0, "quantized_targets": 6, "skipped": [], "other_matrices": ["head"]},
        "calibration": {"source": "c4", "n_samples": 8},
        "in_domain_tasks": ["text"],
        "kernels": ["reference"],
        "speed": {"packed": {"tokens_per_second": 12.5}},
        "packed_against_dense": {"text": 1e-6},
        "checkpoint_recipe": lowbit["recipe"],
        "backend": "packed",
        "device": "cpu",
    }
    lowbit["layers"], lowbit["training"]["distillation"]["losses"] = lowbit["layers"][:2], [3.0, 2.5]
    return {**harness, "lowbit": lowbit}


def shown_everywhere(folder: Path) -> int:
    """Read a directory and make everything of it that the commands print; return the number of results."""
    found = read_results(folder)
    if not found.results:
        raise LowbitError("; ".join(reason for _, reason in found.unreadable) or "nothing there")
    board = build_leaderboard(found.results)
    render(board)
    for text in (to_csv(board), to_latex(board), to_markdown(board)):
        text.encode("utf-8")
    rows = [row_of(result, found.results[0]) for result in found.results]
    render_rows(rows), rows_to_markdown(rows)
    content = gather(found)
    for result in found.results:
        details_of(result), recipe_text(result)
    json.dumps([page_data(content), run_data(content)], allow_nan=False).encode("utf-8")
    return len(found.results)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A directory with a good result, and a folder for a hostile one beside it."""
    made.write(tmp_path, 0, made.harness(10.0, 0.8), made.parent("small"))
    (tmp_path / "hostile").mkdir()
    return tmp_path


def test_a_mutated_result_is_shown_or_named_and_never_stops_its_directory(beside: Path) -> None:
    outcomes = Outcomes("mutated results")
    path = beside / "hostile" / NAME
    for what, tree in mutated_trees(honest(), generator("results"), number(500)):
        path.write_text(json.dumps(tree), encoding="utf-8")

        def action() -> int:
            count = shown_everywhere(beside)
            if count < 2:
                read_result(path)  # Says why it is left out, which is the clear error of this case.
                return -1
            return count

        outcomes.check(what, action, lambda count, what=what: count == 2 or "results" in what)
    outcomes.finish()


def test_damaged_bytes_of_a_result_are_refused_or_still_a_result(beside: Path) -> None:
    outcomes = Outcomes("bytes of results")
    path = beside / "hostile" / NAME
    for what, data in mutated_bytes(json.dumps(honest()).encode(), generator("result bytes"), number(150)):
        path.write_bytes(data)

        def action() -> int:
            count = shown_everywhere(beside)
            return count if count == 2 else (read_result(path), 0)[1]

        outcomes.check(what, action, lambda count: count == 2)
    outcomes.finish(20)


def with_samples(folder: Path, text: str, accuracy: float = 0.75) -> Path:
    """Write a result of one task whose samples are a text."""
    folder.mkdir(exist_ok=True)
    content = {
        "results": {"quiz": {"acc,none": accuracy}},
        "versions": {"quiz": 1.0},
        "higher_is_better": {"quiz": {"acc": True}},
    }
    (folder / NAME).write_text(json.dumps(content), encoding="utf-8")
    (folder / SAMPLES.format("quiz")).write_text(text, encoding="utf-8", newline="\n")
    return folder / NAME


def samples() -> list[dict[str, Any]]:
    """Return four logged samples, three of them right."""
    return [
        {"doc_id": n, "doc_hash": f"d{n}", "prompt_hash": f"p{n}", "filter": "none", "acc": float(n > 0), "doc": {}}
        for n in range(4)
    ]


def lines(logged: Any) -> str:
    """Return samples as lines of JSON."""
    return "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in logged)


def test_mutated_samples_are_refused_or_read_as_numbers(tmp_path: Path) -> None:
    outcomes = Outcomes("samples")
    for what, tree in mutated_trees(samples(), generator("samples"), number(300)):
        result = read_result(with_samples(tmp_path, lines(tree) if all(map(encodable, tree)) else json.dumps(tree)))
        assert result is not None
        outcomes.check(what, lambda result=result: read_task_samples(result, "quiz"))
    for what, data in mutated_bytes(lines(samples()).encode(), generator("sample bytes"), number(150)):
        (tmp_path / SAMPLES.format("quiz")).write_bytes(data)
        outcomes.check(what, lambda result=result: read_task_samples(result, "quiz"))
    outcomes.finish(100)


def encodable(value: Any) -> bool:
    """Say whether a value can be written as a line."""
    return "\ud800" not in str(value)


def test_a_line_separator_inside_a_sample_does_not_end_it(tmp_path: Path) -> None:
    logged = [{**sample, "doc": "a\u2028b\u0085c"} for sample in samples()]
    result = read_result(with_samples(tmp_path, lines(logged)))
    assert result is not None
    assert read_task_samples(result, "quiz")["none"].metrics["acc"].total == 0.75


@pytest.mark.parametrize(
    "task", ["../../secret", "/etc/passwd", "..", "a/../../b", "x\x00y", "n" * 400, "-", "\x1b[2J"]
)
def test_the_name_of_a_task_leads_to_no_other_folder(tmp_path: Path, task: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text(lines(samples()), encoding="utf-8")
    path = with_samples(tmp_path / "run", lines(samples()))
    content = {"results": {task: {"acc,none": 0.75}}}
    path.write_text(json.dumps(content), encoding="utf-8")
    result = read_result(path)
    assert result is not None
    assert all(found.parent == path.parent for found in result.samples.values())
    with pytest.raises(LowbitError, match="has no logged samples"):
        read_task_samples(result, task)


def links() -> Iterator[tuple[str, str]]:
    """Yield what a hostile link points to, and what is said of it."""
    yield "../../outside.json", "outside the directory"
    yield "/etc/hostname", "outside the directory"
    yield "/dev/zero", "outside the directory"
    yield NAME, "cannot be read|outside the directory"  # To itself.
    yield "nowhere", "cannot be read"


@pytest.mark.parametrize(("target", "reason"), links())
def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path, target: str, reason: str) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(honest()), encoding="utf-8")
    folder = tmp_path / "results" / "run"
    folder.mkdir(parents=True)
    made.write(tmp_path / "results", 0, made.harness(10.0, 0.8), made.parent("small"))
    (folder / NAME).symlink_to(target)
    found = read_results(tmp_path / "results")
    assert len(found.results) == 1
    [(path, told)] = found.unreadable
    assert path == folder / NAME
    assert any(part in told for part in reason.split("|")), told


def test_samples_behind_a_link_are_not_read(tmp_path: Path) -> None:
    path = with_samples(tmp_path / "run", "")
    samples_path = path.with_name(SAMPLES.format("quiz"))
    samples_path.unlink()
    (tmp_path / "outside.jsonl").write_text(lines(samples()), encoding="utf-8")
    samples_path.symlink_to("../outside.jsonl")
    result = read_result(path)
    assert result is not None
    with pytest.raises(LowbitError, match="outside its folder"):
        read_task_samples(result, "quiz")


def test_pipes_and_huge_files_are_named_at_once(beside: Path) -> None:
    outcomes = Outcomes("special files", seconds=3)
    os.mkfifo(beside / "hostile" / NAME)
    with (beside / "hostile" / NAME.replace("02T", "03T")).open("wb") as file:
        file.truncate(2**30)
    with (beside / "hostile" / NAME.replace("02T", "04T")).open("wb") as file:
        file.truncate(32 * 2**20)  # As large as is read.
    outcomes.check("read", lambda: read_results(beside), lambda found: len(found.results) == 1)
    told = " ".join(reason for _, reason in read_results(beside).unreadable)
    outcomes.check("fifo", lambda: _refuse(told), None)
    outcomes.finish()
    assert "it is a pipe" in told
    assert "1073741824 bytes; the limit is 33554432" in told


def _refuse(told: str) -> None:
    raise LowbitError(told)


def test_a_sparse_file_of_samples_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    result = read_result(with_samples(tmp_path, ""))
    assert result is not None
    for size, reason in ((2**31, "the limit is"), (2**26, "the limit of a line")):
        with (tmp_path / SAMPLES.format("quiz")).open("wb") as file:
            file.truncate(size)
        outcomes = Outcomes("sparse samples", seconds=3)
        outcomes.check(str(size), lambda: read_task_samples(result, "quiz"))
        outcomes.finish()
        with pytest.raises(LowbitError, match=reason):
            read_task_samples(result, "quiz")


def test_thousands_of_files_and_of_tasks_are_read_within_seconds(tmp_path: Path) -> None:
    text = json.dumps(made.harness(10.0, 0.8))
    for place in range(2000):
        (tmp_path / f"results_2026-11-02T00-00-00.{place:06d}+00-00.json").write_text(text if place % 2 else "{")
    outcomes = Outcomes("thousands", seconds=10)
    outcomes.check("files", lambda: read_results(tmp_path), lambda f: len(f.results) == len(f.unreadable) == 1000)
    assert outcomes.failures == []
    many = {**made.harness(10.0, 0.8), "results": {f"task{n}": {"acc,none": 0.5} for n in range(20_000)}}
    (tmp_path / NAME).write_text(json.dumps(many), encoding="utf-8")
    with pytest.raises(LowbitError, match="more than"):
        read_result(tmp_path / NAME)


def test_the_commands_name_what_they_left_out_and_go_on(beside: Path) -> None:
    (beside / "hostile" / NAME).write_text("{", encoding="utf-8")
    for form in ("table", "markdown", "csv", "latex"):
        done = CliRunner().invoke(leaderboard, [str(beside), "--format", form])
        assert done.exit_code == 0, done.output
        assert NAME in done.stderr.replace("\n", "")
        assert "small" in done.stdout
    refused = CliRunner().invoke(compare, [str(beside / "hostile" / NAME), str(beside)])
    assert isinstance(refused.exception, LowbitError)

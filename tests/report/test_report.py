"""What a report is built from: columns, layers, curves, safe text, files; without a browser."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from report import results

from lowbit.cli.report import command
from lowbit.errors import LowbitError
from lowbit.report import requirements
from lowbit.report.content import Content, gather, item_rows
from lowbit.report.layers import cells_of, layer_data, place_of
from lowbit.report.numbers import thinned
from lowbit.report.page import json_for_script, render_page
from lowbit.report.training import training_data
from lowbit.results.store import read_results


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    results.write_mixed(folder)
    return folder


@pytest.fixture(scope="module")
def content(mixed: Path) -> Content:
    return gather(read_results(mixed))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.up_proj", (3, "mlp.up_proj")),
        ("transformer.h.11.attn.c_attn", (11, "attn.c_attn")),
        ("model.layers.0.block_sparse_moe.experts.7.w1", (0, "block_sparse_moe.experts.*.w1")),
        ("lm_head", (-1, "lm_head")),
    ],
)
def test_a_layer_s_name_gives_its_block_and_kind(name: str, place: tuple[int, str]) -> None:
    assert place_of(name) == place


def test_experts_that_share_a_cell_are_averaged_by_their_weights(tmp_path: Path) -> None:
    record = results.record("round", "small")
    record["layers"] = [
        {"name": "layers.0.experts.0.w", "relative_error": 0.1, "weights": 300},
        {"name": "layers.0.experts.1.w", "relative_error": 0.5, "weights": 100},
    ]
    results.write(tmp_path, 0, results.harness(1.0, 0.5), record)
    data = layer_data(read_results(tmp_path).results[0])
    assert data is not None
    assert cells_of(data, "relative_error") == [{"kind": "experts.*.w", "block": "0", "value": 0.2, "layers": 2}]


def test_a_number_that_all_layers_share_is_kept_once(content: Content) -> None:
    trained = next(row for row in content.table.rows if row.result.method == "planes")
    data = layer_data(trained.result)
    assert data is not None
    assert data["values"]["sparsity"] == 0.5
    assert data["values"]["plane1_density before training"] == 0.4
    assert data["values"]["relative_error"] == [0.1, 0.101, 0.102, 0.11, 0.111, 0.112]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000), st.integers(1, 300))
def test_a_thinned_curve_is_short_ends_at_the_last_step_and_keeps_its_range(losses: list[float], most: int) -> None:
    points = thinned(losses, most)
    assert len(points) <= most
    assert points[-1][0] == len(losses)
    assert min(losses) - 1e-6 <= min(y for _, y in points) <= max(y for _, y in points) <= max(losses) + 1e-6


def test_the_curves_of_a_trained_run_are_thinned_and_others_have_none(content: Content) -> None:
    curves = {row.result.method: training_data(row.result) for row in content.table.rows}
    trained = curves["planes"]
    assert trained is not None
    assert 0 < len(trained["losses"]) <= 300
    assert trained["held_out"] == [[0, 3.0], [700, 2.4]]
    assert [len(block) for block in trained["blocks"]] == [3, 2]
    assert curves["round"] is None


def test_a_task_asked_in_two_ways_has_two_columns_and_no_run_is_in_both(content: Content) -> None:
    table = content.table
    columns = [column for column in table.metrics if column.key.startswith("text.word_perplexity")]
    assert [column.note for column in columns] == ["documents all 500", "documents 20 of 500"]
    for row in table.rows:
        assert sum(table.value(row, column) is not None for column in columns) == 1


def test_a_run_with_another_context_length_is_marked(content: Content) -> None:
    assert {(row.result.seed, row.run_with) for row in content.table.rows if row.result.method == "round"} == {
        (0, "context 256"),
        (1, "context 128"),
    }


def test_the_mean_accuracy_is_of_tasks_under_one_protocol(content: Content) -> None:
    table = content.table
    means = [column for column in table.metrics if column.title == "mean accuracy"]
    planes = next(row for row in table.rows if row.result.method == "planes")
    assert [column.note for column in means] == ["of choice [a], quiz [a]", "of choice [b], quiz [b]"]
    assert table.value(planes, means[0]) == pytest.approx((0.7 + 0.35) / 2)
    assert table.value(planes, means[1]) is None


def test_the_items_of_a_file_are_in_bits_of_all_weights_largest_first(content: Content) -> None:
    planes = next(row for row in content.table.rows if row.result.method == "planes")
    items = item_rows(planes)
    assert [item["item"] for item in items] == ["planes", "scales", "unquantized: embeddings and head"]
    assert items[0]["bits"] == pytest.approx(8 * 590_000 / 2_750_000, rel=1e-5)


def test_parents_that_say_the_same_are_shown_once(tmp_path: Path) -> None:
    for number in range(3):
        results.write(tmp_path, number, results.harness(10.0, 0.8), results.parent("small"))
    results.write(tmp_path, 3, results.harness(10.5, 0.8), results.parent("small"))
    found = gather(read_results(tmp_path))
    assert (len(found.table.rows), found.repeated_parents) == (2, 2)


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_no_text_ends_a_script_element_and_json_comes_back_as_it_was(value: object) -> None:
    text = str(json_for_script(value))
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == value


def test_the_page_links_to_nothing_outside_and_names_what_is_missing(content: Content) -> None:
    page = render_page(content)
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", own)
    assert "http" not in re.sub(r"http-equiv", "", own)
    assert "written by lm-eval alone" in page
    assert "1 file could not be read" in page
    assert page.count("sha256-") >= 4


def test_a_folder_without_results_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match=r"there is no result in .*lowbit bench -o"):
        gather(read_results(tmp_path))


def test_missing_packages_are_named_with_the_extra_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "altair" else find(name))
    with pytest.raises(LowbitError, match=r"altair, which is not installed: pip install 'lowbit\[report\]'"):
        requirements.require_packages()


def test_the_command_writes_the_page_and_its_plots_in_both_themes(mixed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "report.html"
    done = CliRunner().invoke(command, [str(mixed), "-o", str(output)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "5 runs" in done.output
    plots = output.with_name("report_files")
    names = {path.name for path in plots.iterdir()}
    stems = {"pareto", "bits", "layers-relative_error", "layers-plane1_density", "training", "training-blocks"}
    assert names == {f"{stem}{dark}.{form}" for stem in stems for dark in ("", "-dark") for form in ("svg", "png")}
    assert (plots / "pareto.png").read_bytes().startswith(b"\x89PNG")
    drawn = (plots / "pareto.svg").read_text(encoding="utf-8")
    assert "parent small" in drawn
    assert "planes" in drawn
    assert drawn != (plots / "pareto-dark.svg").read_text(encoding="utf-8")


def test_an_unknown_run_is_refused(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(LowbitError, match=r"no result in .* has the identity 'zzz'"):
        CliRunner().invoke(
            command, [str(mixed), "-o", str(tmp_path / "r.html"), "--run", "zzz"], catch_exceptions=False
        )

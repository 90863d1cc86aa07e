"""What a run shows: a live view in a terminal, plain lines elsewhere, and as much as it is asked for."""

from __future__ import annotations

import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from lowbit import LayerReport, QuantizationWarning, QuantizedBlock, TrainingStep
from lowbit.cli.main import main
from lowbit.cli.verbosity import Verbosity, choose, logged_to
from lowbit.contracts import EvaluationStep, QuantizedLayer
from lowbit.progress.lines import RunLines
from lowbit.progress.state import Counter, RunState, duration, short_name

QUANTIZE = ("quantize", "--method", "rtn")
SLOW_PLUGIN = """
import time
from lowbit import hookimpl
@hookimpl
def lowbit_layer_quantized(layer):
    time.sleep(0.05)
"""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    printed = capsys.readouterr()
    return int(stopped.value.code or 0), printed.out, printed.err


def block(index: int, errors: tuple[float, ...] = (0.25, 0.5), notes: tuple[str, ...] = ()) -> QuantizedBlock:
    reports = tuple(
        LayerReport(f"model.layers.{index}.mlp.p{number}", 10, 2.0, error, None, notes=notes)
        for number, error in enumerate(errors)
    )
    return QuantizedBlock(index, {}, frozenset(), {}, reports, 4.0)


def test_the_rest_is_told_from_the_pace_of_this_run_alone() -> None:
    clock = Clock()
    counter = Counter("blocks", total=10, done=6, clock=clock)
    assert counter.remaining is None
    clock.now, counter.done = 20.0, 8
    assert counter.remaining == 20.0
    counter.done = 10
    assert counter.remaining is None
    assert Counter("windows", None, 3).count == "3"


@pytest.mark.parametrize(("seconds", "text"), [(4.25, "4.2 s"), (59.9, "59.9 s"), (185, "3:05"), (7385.0, "2:03:05")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "short"),
    [("model.layers.3.mlp.experts.4.up", "mlp.experts.4.up"), ("transformer.h.0.attn", "attn"), ("odd", "odd")],
)
def test_a_layer_is_called_by_its_name_within_the_block(name: str, short: str) -> None:
    assert short_name(name) == short


def test_each_block_is_one_line_with_errors_time_and_rest() -> None:
    lines: list[str] = []
    clock = Clock()
    recipes = [{"method": "rtn", "model": {"path": None}}, {"method": "gptq", "model": {"path": "/models/tiny/"}}]
    view = RunLines(RunState(recipes), lines.append, clock=clock)
    view.lowbit_run_started(recipes[1], blocks=3, finished=1)
    view.lowbit_layer_quantized(QuantizedLayer("model.layers.1.mlp.p0", 1, 1, 2, 0.1))
    clock.now = 4.0
    view.lowbit_block_quantized(block(1, notes=("no data",)), 3)
    assert lines[0] == "gptq (2 of 2): continuing: 1 of 3 blocks were finished before"
    memory = r"memory \d+(\.\d+)? [MG]B \(peak \d+(\.\d+)? [MG]B\)"
    said = rf"gptq \(2 of 2\): block 2 of 3: error 0\.3750 \(largest 0\.5000, mlp\.p1\), 4\.0 s, {memory}, 4\.0 s left"
    assert re.fullmatch(said, lines[1])
    assert lines[2:] == [f"gptq (2 of 2): warning: model.layers.1.mlp.p{number}: no data" for number in (0, 1)]


def test_steps_are_said_every_few_seconds_and_the_last_one_always() -> None:
    lines: list[str] = []
    clock = Clock()
    view = RunLines(RunState(), lines.append, clock=clock)
    for number in range(1, 101):
        clock.now += 0.25
        held_out = 2.0 if number == 100 else None
        view.lowbit_distillation_step(TrainingStep("distillation", None, number, 100, 1.5, held_out, 1.0))
    assert re.findall(r"step (\d+) of 100", "\n".join(lines)) == ["20", "40", "60", "80", "100"]
    assert "loss 1.5, held out 2: step 100 of 100" in lines[-1]


def test_an_evaluation_says_its_requests_now_and_then_and_its_metrics() -> None:
    lines: list[str] = []
    clock = Clock()
    view = RunLines(RunState(), lines.append, clock=clock)
    recipe = {"method": "rtn", "model": {}}
    view.lowbit_evaluation_started(recipe, "parent", ("a", "b"))
    for done in range(0, 41):
        clock.now += 0.25
        view.lowbit_evaluation_step(EvaluationStep(("a", "b", "c", "d"), "requests", done, 40))
    view.lowbit_evaluation_finished(recipe, "parent", {"results": {"a": {"acc,none": 0.5, "acc_stderr,none": 0.1}}})
    assert len(lines) == 3
    assert lines[0].startswith("parent: requests of a, b, c and 1 more: 19 of 40, memory")
    assert lines[-1] == "parent: a acc 0.5, 10.2 s"


def test_a_piped_run_says_each_block_and_no_control_character(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, error = run(capsys, *QUANTIZE, "-o", str(tmp_path / "checkpoint"))
    assert code == 0
    assert not CONTROL.search(error)
    assert [line.split(":")[1] for line in error.splitlines() if "block" in line] == [
        f" block {number} of 4" for number in (1, 2, 3, 4)
    ]
    assert "100.00 % of the decoder's weights quantized" in out


def test_quiet_prints_the_result_alone_and_verbose_each_layer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, error = run(capsys, *QUANTIZE, "-q", "-o", str(tmp_path / "quiet"))
    assert (code, error) == (0, "")
    assert "100.00 % of the decoder's weights quantized" in out
    code, _, error = run(capsys, *QUANTIZE, "-v", "-o", str(tmp_path / "verbose"))
    assert code == 0
    assert len(re.findall(r"^rtn: layer model\.layers\.\d\.\S+ quantized, ", error, re.MULTILINE)) == 28
    assert len(re.findall(r"^rtn: model\.layers\.\d\.\S+ error 0\.\d{5}, 2 bits", error, re.MULTILINE)) == 28
    assert "rtn: checkpoint made in " in error


def test_an_error_is_printed_when_quiet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    code, out, error = run(capsys, *QUANTIZE, "-q", "-o", str(tmp_path / "taken"))
    assert (code, out) == (1, "")
    assert error.startswith("lowbit: error: ")


def test_quiet_and_verbose_together_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, error = run(capsys, *QUANTIZE, "-q", "-v", "-o", str(tmp_path / "checkpoint"))
    assert code == 2
    assert "--quiet and --verbose contradict each other" in error


@pytest.mark.parametrize("command", ["bench", "quantize", "eval", "generate", "reproduce"])
def test_every_long_command_has_the_options(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "-q, --quiet" in out
    assert "-v, --verbose" in out


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        (Verbosity.QUIET, ["own error", "library error"]),
        (Verbosity.NORMAL, ["own note", "own warning", "own error", "library error"]),
        (Verbosity.VERBOSE, ["own note", "own warning", "own error", "library warning", "library error"]),
    ],
)
def test_lowbit_speaks_and_libraries_only_when_asked(verbosity: Verbosity, shown: list[str]) -> None:
    console = Console(record=True, quiet=False, file=open(os.devnull, "w"), width=200)  # noqa: PTH123, SIM115
    own, library = logging.getLogger("lowbit.test"), logging.getLogger("transformers.test")
    before = logging.getLogger("transformers").level, warnings.showwarning
    with logged_to(console, verbosity):
        for speaker, name in ((own, "own"), (library, "library")):
            speaker.debug("%s detail", name)
            speaker.info("%s note", name)
            speaker.warning("%s warning", name)
            speaker.error("%s error", name)
    said = [line.split(": ")[-1] for line in console.export_text().splitlines()]
    assert said == shown
    assert before == (logging.getLogger("transformers").level, warnings.showwarning)


def test_warnings_of_lowbit_are_shown_and_others_only_when_verbose() -> None:
    for verbosity, others in ((Verbosity.NORMAL, 0), (Verbosity.VERBOSE, 1)):
        console = Console(record=True, file=open(os.devnull, "w"), width=200)  # noqa: PTH123, SIM115
        with warnings.catch_warnings(), logged_to(console, verbosity):
            warnings.simplefilter("always")
            warnings.warn("of a quantizer", QuantizationWarning, stacklevel=1)
            warnings.warn("of a library", UserWarning, stacklevel=1)
        text = console.export_text()
        assert text.count("lowbit: warning: of a quantizer") == 1
        assert text.count("lowbit: warning: UserWarning: of a library") == others


def test_more_than_two_v_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert choose(False, 5) is Verbosity.DEBUG
    assert "TQDM_DISABLE" not in os.environ


def test_a_terminal_shows_one_view_that_is_drawn_again_and_again(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW_PLUGIN)
    command = [sys.executable, "-m", "lowbit.cli.main", *QUANTIZE, "--plugin", str(plugin)]
    command += ["-o", str(tmp_path / "checkpoint")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # How Linux says that the other side has closed.
        pass
    assert process.communicate()[0].startswith(str(tmp_path).encode())
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "\x1b[2K" in shown.decode()
    assert re.search(r"rtn on embedded  memory \d+ MB \(peak \d+ MB\)  elapsed ", text)
    assert re.search(r"blocks\s+\S+ [123] of 4", text)
    assert re.search(r"layers of block \d\s+\S+ \d of 7", text)
    assert re.search(r"block 1: error 0\.\d{4} \(largest 0\.\d{4}, ", text)
    assert "block 1 of 4:" not in text

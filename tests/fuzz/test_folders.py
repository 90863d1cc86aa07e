"""The command line over a stranger's folder: one clear line, exit code 1 or 2, soon, and within bounded memory."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz.cases import EVIL, generator, mutated_trees, number

from lowbit.cli.main import main

SECONDS = 20.0
MEMORY = 6 * 2**30
"""Address space of a child: torch and transformers alone name some gigabytes of it."""
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
QUANTIZED = {
    **CONFIG,
    "quantization_config": {"quant_method": "lowbit", "version": 1, "modules": {}, "formats": [], "lowbit": "0.1.0"},
}


def commands(folder: Path, target: Path) -> list[list[str]]:
    """Return every command that reads a folder, pointed at one."""
    place, out = str(folder), str(target)
    return [
        ["inspect", place],
        ["eval", "--model", place, "--tasks", "perplexity", "--output_path", out],
        ["repack", place, "-o", out, "--packer", "dense"],
        ["compare", place, place],
        ["leaderboard", place],
        ["report", place, "-o", f"{out}.html"],
        ["recipe", "check", f"{place}/config.json"],
        ["quantize", "--model", place, "--method", "rtn", "-o", out],
        ["bench", "--model", place, "--method", "rtn", "-o", out, "--limit", "2"],
        ["generate", "--model", place, "-o", f"{out}.npz"],
    ]


def text_as_weights(folder: Path) -> None:
    """A configuration beside text that is named as weights."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_text("These are no weights. " * 10)


def huge_header(folder: Path) -> None:
    """Weights whose header says that it is larger than the memory."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def fifos(folder: Path) -> None:
    """Pipes without a writer where files are expected."""
    for name in ("config.json", "model.safetensors", "results_2026-11-02T00-00-00.000000+00-00.json"):
        os.mkfifo(folder / name)


def devices(folder: Path) -> None:
    """Links to a device that never ends."""
    for name in ("config.json", "model.safetensors", "results_2026-11-02T00-00-00.000000+00-00.json"):
        (folder / name).symlink_to("/dev/zero")


def loops(folder: Path) -> None:
    """Links in a circle, and many deep."""
    (folder / "config.json").symlink_to("model.safetensors")
    (folder / "model.safetensors").symlink_to("config.json")
    (folder / "again").symlink_to(".")
    (folder / "link0").symlink_to("config.json")
    for place in range(60):
        (folder / f"link{place + 1}").symlink_to(f"link{place}")


def folders_as_files(folder: Path) -> None:
    """Directories with the names of files."""
    for name in ("config.json", "model.safetensors", "results_2026-11-02T00-00-00.000000+00-00.json"):
        (folder / name).mkdir()


def sparse(folder: Path) -> None:
    """Files of many gigabytes that take no place on the disk."""
    for name in ("config.json", "model.safetensors", "results_2026-11-02T00-00-00.000000+00-00.json"):
        with (folder / name).open("wb") as file:
            file.truncate(2**36)


def deep(folder: Path) -> None:
    """JSON nested beyond what a parser can take."""
    for name in ("config.json", "results_2026-11-02T00-00-00.000000+00-00.json"):
        (folder / name).write_text("[" * 100_000)


def other_bytes(folder: Path) -> None:
    """Files that are no UTF-8."""
    for name in ("config.json", "model.safetensors", "results_2026-11-02T00-00-00.000000+00-00.json"):
        (folder / name).write_bytes(bytes(range(256)))


def damaged_lowbit(folder: Path) -> None:
    """What says that it is a checkpoint of lowbit, and holds nothing of one."""
    (folder / "config.json").write_text(json.dumps(QUANTIZED))
    (folder / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")


def odd_small_files(folder: Path) -> None:
    """A sound configuration beside pipes and endless devices where transformers looks for more."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        os.mkfifo(folder / name)
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "model.safetensors.index.json"):
        (folder / name).symlink_to("/dev/zero")


def huge_tokenizer(folder: Path) -> None:
    """A tokenizer of many gigabytes that takes no place on the disk."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**36)


def empty(folder: Path) -> None:
    """Nothing."""


FOLDERS: tuple[Callable[[Path], None], ...] = (
    *(empty, text_as_weights, huge_header, fifos, devices, loops, folders_as_files, sparse, deep, other_bytes),
    *(damaged_lowbit, odd_small_files, huge_tokenizer),
)


def told(arguments: list[str]) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code
    return code if isinstance(code, int) else -1, out.getvalue(), err.getvalue()


def _child(cases: list[list[str]], answers: Any, working: str) -> None:
    os.chdir(working)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for arguments in cases:
        answers.send((arguments, *told(arguments)))
    answers.close()


def in_child(cases: list[list[str]], working: Path) -> Iterator[tuple[list[str], int, str, str]]:
    """Run commands one after another in a child of bounded memory, each within bounded time."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(cases, send, str(working)))
    child.start()
    send.close()
    try:
        for arguments in cases:
            start = time.monotonic()
            assert receive.poll(SECONDS), f"{arguments} did not end within {SECONDS} seconds"
            try:
                yield receive.recv()
            except EOFError:
                pytest.fail(f"{arguments} ended the process after {time.monotonic() - start:.1f} seconds")
    finally:
        child.kill()
        child.join()


def problem(code: int, out: str, err: str) -> str:
    """Return what is wrong with how a command ended; empty where it was one clear refusal."""
    complaints = [line for line in err.splitlines() if line.startswith(("lowbit: error:", "Error:"))]
    if code not in (1, 2):
        return f"exit code {code}: {out[-200:]} {err[-300:]}"
    if len(complaints) != 1:
        return f"{len(complaints)} lines of error: {err[-500:]}"
    if "Traceback" in err + out:
        return f"a traceback: {err[-500:]}"
    if "Missing option" in err or "No such option" in err:
        return f"the test's own command is wrong: {err}"
    if "LOWBIT_DEBUG" in err:
        return f"an error that nobody expected: {complaints[0][:400]}"
    if len(err) > 20_000:
        return f"{len(err)} characters of errors: {err[:200]}"
    return ""


@pytest.mark.parametrize("make", FOLDERS, ids=lambda make: make.__name__)
def test_every_command_refuses_a_hostile_folder_in_one_line(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder)
    before = sorted(path.name for path in folder.iterdir())
    failures = [
        f"{' '.join(arguments[:1])}: {wrong}"
        for arguments, code, out, err in in_child(commands(folder, tmp_path / "out"), tmp_path)
        if (wrong := problem(code, out, err))
    ]
    assert failures == []
    assert sorted(path.name for path in folder.iterdir()) == before


def test_no_value_of_a_configuration_ends_in_anything_but_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    failures = []
    evil = [value for value in EVIL if value != "a" * 10**6]
    trees = [
        *mutated_trees(CONFIG, generator("configurations"), number(15), evil),
        *mutated_trees(QUANTIZED, generator("checkpoints"), number(15), evil),
    ]
    cases, names = [], {}
    for place, (what, tree) in enumerate(trees):
        one = folder / str(place)
        one.mkdir()
        (one / "config.json").write_text(json.dumps(tree), encoding="utf-8")
        (one / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
        for arguments in (["inspect", str(one)], ["quantize", "--model", str(one), "--method", "rtn", "-o", f"{one}o"]):
            cases.append(arguments)
            names[tuple(arguments)] = what
    for arguments, code, out, err in in_child(cases, tmp_path):
        if wrong := problem(code, out, err):
            failures.append(f"{names[tuple(arguments)]}: {arguments[0]}: {wrong}")
    shutil.rmtree(folder)
    assert failures == []

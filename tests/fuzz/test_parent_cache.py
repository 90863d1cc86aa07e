"""Kept results of parents that somebody changed: made again with a warning, never shown."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from fuzz.cases import Outcomes, generator, mutated_bytes, mutated_trees, number

from lowbit.evaluation.parent_cache import ParentCache

KEY = "ab" * 32
HONEST = {
    "results": {"quiz": {"acc,none": 0.75}},
    "versions": {"quiz": 1.0},
    "config": {"limit": None},
    "samples": {"quiz": [{"doc_id": 0, "acc": 1.0}, {"doc_id": 1, "acc": 0.5}]},
}


def test_a_changed_result_of_a_parent_is_never_taken_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "lowbit")
    cache = ParentCache(tmp_path)
    path = cache.save(KEY, HONEST)
    text = path.read_text(encoding="utf-8")
    outcomes = Outcomes("kept parents")
    outcomes.check("honest", lambda: cache.load(KEY), lambda found: found == HONEST)
    for what, tree in mutated_trees(json.loads(text), generator("kept trees"), number(300)):
        path.write_text(json.dumps(tree), encoding="utf-8")
        outcomes.check(what, lambda: cache.load(KEY), lambda found: found is None or found == HONEST)
    for what, data in mutated_bytes(text.encode(), generator("kept bytes"), number(200)):
        path.write_bytes(data)
        outcomes.check(what, lambda: cache.load(KEY), lambda found: found is None or found == HONEST)
    path.write_text(text, encoding="utf-8")
    samples = cache.samples_path(KEY)
    for what, data in mutated_bytes(samples.read_bytes(), generator("kept samples"), number(200)):
        samples.write_bytes(data)
        outcomes.check(what, lambda: cache.load(KEY), lambda found: found is None or found == HONEST)
    outcomes.finish(0)


@pytest.mark.parametrize("which", ["result", "samples"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "sparse"])
def test_what_is_no_file_is_no_kept_result(tmp_path: Path, kind: str, which: str) -> None:
    cache = ParentCache(tmp_path)
    cache.save(KEY, HONEST)
    path = cache.path(KEY) if which == "result" else cache.samples_path(KEY)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**36)
    outcomes = Outcomes(kind, seconds=3)
    outcomes.check(kind, lambda: cache.load(KEY), lambda found: found is None)
    outcomes.finish(0)

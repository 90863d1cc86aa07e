"""Hostile recipes, grids and overrides: one clear error each, or a recipe that holds what it says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz.cases import EVIL, Outcomes, generator, mutated_bytes, mutated_trees, nested, number, watching_opens

from lowbit.documents import MOST_YAML_BYTES
from lowbit.errors import LowbitError
from lowbit.pipeline.grid_file import read_grid
from lowbit.recipe import Recipe, parse_override, read_recipe_file, resolve_recipe
from lowbit.recipe.resolve import RUNS_CODE
from lowbit.registry import registry

RECIPE: dict[str, Any] = {
    "version": 1,
    "method": "rtn",
    "seed": 3,
    "model": {"path": "somewhere", "dtype": "float32"},
    "calibration": {"n_samples": 8, "seq_len": 64},
    "quantizer": {"name": "rtn", "bits": 2, "group_size": 64},
    "packer": {"name": "plain"},
    "rules": [{"match": "re:down_proj$", "skip": True}, {"match": "*.0.*", "quantizer": {"bits": 4}}],
    "modules_to_not_convert": ["lm_head"],
    "eval": {
        "tasks": ["piqa"], "limit": 10, "gen_kwargs": {"temperature": 0.5}, "samples": None, "seed": [0, 1, 2, 3],
        "metadata": "a=1,b=[1,2]",
    },
    "distillation": {"weight_rate": 0.0001},
    "resources": {"num_cpus": 1},
}  # fmt: skip
GRID: dict[str, Any] = {
    "version": 1,
    "models": ["one", "two"],
    "methods": ["rtn", {"method": "dbllm-ptq", "quantizer": {"group_size": 32}}],
    "seeds": [0, 1],
    "recipe": {"eval": {"tasks": ["piqa"]}},
    "exclude": [{"model": "one", "seed": 1}],
}


def as_yaml(tree: Any) -> str:
    """Write a tree as YAML; JSON is YAML, but for numbers that are none in JSON."""
    return json.dumps(tree).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def resolve(path: Path) -> Recipe:
    """Read a recipe file as the commands do, up to the hash that names its results."""
    recipe = resolve_recipe(registry(), None, read_recipe_file(path))
    recipe.sha256()
    yaml.safe_dump(recipe.to_dict())
    return recipe


def comes_back(recipe: Recipe) -> bool:
    """Say whether a recipe that was accepted is the same once it was written and read again."""
    written = json.loads(json.dumps(recipe.to_dict()))
    # What runs code is said on the command line, too.
    flags = {section: {key: written[section][key]} for section, key in RUNS_CODE if written[section][key]}
    return resolve_recipe(registry(), None, written, flags).sha256() == recipe.sha256()


def test_mutated_recipes_are_refused_or_hold_what_they_say(tmp_path: Path) -> None:
    outcomes, file = Outcomes("mutated recipes"), tmp_path / "recipe.yaml"
    file.write_text(as_yaml(RECIPE), encoding="utf-8")
    assert comes_back(resolve(file))
    for description, tree in mutated_trees(RECIPE, generator("recipes"), number(900)):
        file.write_text(as_yaml(tree), encoding="utf-8")
        outcomes.check(description, lambda: resolve(file), comes_back)
    outcomes.finish(refusals=number(400))


def test_mutated_grids_are_refused_or_give_recipes(tmp_path: Path) -> None:
    outcomes, file = Outcomes("mutated grids"), tmp_path / "grid.yaml"
    file.write_text(as_yaml(GRID), encoding="utf-8")
    assert len(read_grid(file, {})) == 6
    for description, tree in mutated_trees(GRID, generator("grids"), number(300)):
        file.write_text(as_yaml(tree), encoding="utf-8")
        outcomes.check(description, lambda: read_grid(file, {}), all)
    outcomes.finish(refusals=number(150))


@pytest.mark.parametrize("tree", [RECIPE, GRID], ids=["recipe", "grid"])
def test_damaged_bytes_of_yaml_are_refused_or_read(tree: dict[str, Any], tmp_path: Path) -> None:
    outcomes, file = Outcomes("damaged YAML"), tmp_path / "file.yaml"
    honest = yaml.safe_dump(tree).encode()
    for description, data in mutated_bytes(honest, generator("YAML bytes"), number(400)):
        file.write_bytes(data)
        outcomes.check(description, lambda: read_recipe_file(file), lambda found: isinstance(found, dict))
    outcomes.finish(refusals=number(100))


def bombs() -> Iterator[tuple[str, str]]:
    """Yield texts that are small and mean something enormous, or something that a reader must not do."""
    laughs = "a: &a [1,2,3,4,5,6,7,8,9]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghij")
    )  # fmt: skip
    yield "a billion laughs", laughs
    merging = laughs.replace("[1,2,3,4,5,6,7,8,9]", "{x: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n")
    yield "a billion laughs by merging", merging
    yield "an alias inside itself", "a: &a [*a]"
    yield "lists, 100 000 deep", "a: " + "[" * 100_000
    yield "mappings, 5000 deep", "a: " + "{a: " * 5000
    yield "lists by dashes", "- " * 100_000
    yield "keys by question marks", "? " * 100_000
    yield "a number of a million digits", "seed: " + "9" * 900_000
    yield "a hexadecimal number of a million digits", "seed: 0x" + "f" * 900_000
    yield "a number in base 60", "seed: 1" + ":59" * 300_000
    yield "an integer of 31 digits", f"method: rtn\nquantizer: {{group_size: {10**30}}}"
    yield "a duplicate key", "method: rtn\nmethod: billm\n"
    yield "a duplicate key inside", "method: rtn\nquantizer: {name: rtn, bits: 2, bits: 4}\n"
    yield "two merges", "a: &a {b: 1}\nc: {<<: *a, <<: *a}"
    yield "a list as a key", "? [a]\n: 1"
    yield "a number as a key", "1: 2"
    yield "two documents", "method: rtn\n---\nmethod: rtn\n"
    yield "a null character", "method: 'rtn\x00'"
    yield "half a character", 'method: "\\ud800"'
    yield "a character beyond Unicode", 'method: "\\UFFFFFFFF"'
    yield "a bell", "method: rtn\a"
    for tag in ("python/object:os.system", "python/object/apply:os.getcwd", "python/name:os.system", "binary", "set"):
        yield f"the tag !!{tag}", f"method: !!{tag} {{}}"
    for tag in ("bool", "int", "float", "null", "timestamp", "omap", "pairs", "merge", "value"):
        yield f"the tag !!{tag} of a text", f"method: !!{tag} x"
        yield f"the tag !!{tag} of a list", f"method: !!{tag} [x]"
    yield "no number", "seed: .nan"
    yield "infinity", "eval: {limit: .inf}"
    yield "a file of over a megabyte", "#" * (MOST_YAML_BYTES + 1)
    yield "100 000 values", "\n".join(f"- {number}" for number in range(100_000))


def test_bombs_are_refused_in_a_moment(tmp_path: Path) -> None:
    outcomes, file = Outcomes("bombs"), tmp_path / "recipe.yaml"
    count = 0
    for description, text in bombs():
        file.write_text(text, encoding="utf-8")
        count += 1
        outcomes.check(description, lambda: resolve(file), lambda _: False)
    outcomes.finish(refusals=count)


@pytest.mark.parametrize(
    "data", [b"\xff\xfem\x00e\x00", b"method: \xff", b"method: caf\xe9", b"\x00" * 100, b"\xef\xbb\xbf\xef\xbb\xbfa: 1"]
)
def test_files_that_are_no_utf8_text_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(data)
    with pytest.raises(LowbitError):
        resolve(tmp_path / "recipe.yaml")


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbfmethod: rtn\n")
    assert resolve(tmp_path / "recipe.yaml").method == "rtn"


def test_a_pipe_and_a_directory_are_no_recipes(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    outcomes = Outcomes("files that are none")
    for path in (tmp_path / "pipe.yaml", tmp_path, Path("/dev/zero"), tmp_path / "absent", tmp_path / "x\x00y"):
        outcomes.check(repr(path), lambda path=path: read_recipe_file(path), lambda _: False)
    outcomes.finish(refusals=5)


def hostile_overrides(rng: random.Random, count: int) -> Iterator[str]:
    """Yield texts for `--set`: keys of a recipe and others, and values of every kind."""
    keys = [
        "quantizer.group_size",
        "seed",
        "eval.tasks",
        "rules",
        "model.path",
        "quantizer",
        "eval.samples",
        "eval.seed",
    ]
    keys += [
        "eval.gen_kwargs",
        "a.b.c",
        ".",
        "",
        "x:seed",
        "rtn:quantizer.bits",
        ".".join("a" * 1000),
        "\x00",
        "method",
    ]
    values = [as_yaml(value) for value in EVIL] + [text for _, text in bombs()] + [as_yaml(nested(30)), "=", "'", "{"]
    for _ in range(count):
        separator = rng.choice(("=", "=", "=", "=", "==", ":", ""))
        yield rng.choice(keys) + separator + rng.choice(values)


def test_hostile_overrides_are_refused_or_hold_what_they_say() -> None:
    outcomes = Outcomes("overrides")

    def resolved(text: str) -> Recipe:
        recipe = resolve_recipe(registry(), "rtn", overrides=[parse_override(text)])
        recipe.sha256()
        return recipe

    for text in hostile_overrides(generator("overrides"), number(400)):
        outcomes.check(f"--set {text}", lambda text=text: resolved(text), comes_back)
    outcomes.finish(refusals=number(200))


def test_reading_a_recipe_opens_no_other_file_but_one_of_samples(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(as_yaml({**RECIPE, "model": {"path": "/etc/passwd"}}), encoding="utf-8")
    registry()
    resolve(file)
    with watching_opens() as seen:
        resolve(file)
    assert {path for path in seen if not path.startswith("import ")} == {str(file)}

"""Hostile checkpoints: configurations, safetensors files, indexes, links and pickles of a stranger."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fuzz.cases import Outcomes, at, generator, mutated_bytes, mutated_trees, number, watching_opens
from small_models import ModelFolder, logits

import lowbit
from lowbit.errors import LowbitError
from lowbit.models.checkpoint import ParentCheckpoint, read_header
from lowbit.pipeline.inspection import inspect_checkpoint
from lowbit.pipeline.repack import repack

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def quantized(packed: ModelFolder, tmp_path: Path) -> Path:
    """A copy of a packed checkpoint, to be damaged."""
    return Path(shutil.copytree(packed("llama"), tmp_path / "quantized"))


@pytest.fixture
def plain(parent: ModelFolder, tmp_path: Path) -> Path:
    """A copy of an unquantized model, to be damaged."""
    return Path(shutil.copytree(parent("llama"), tmp_path / "plain"))


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, tree: Any) -> None:
    file.write_text(json.dumps(tree), encoding="utf-8")


def same_answers(folder: Path) -> Callable[[Any], bool]:
    """Return a check that a model answers as the undamaged one does."""
    expected = logits(lowbit.load(folder, dtype="float32"))
    return lambda model: torch.equal(logits(model), expected)


def runs(model: Any) -> bool:
    """Say whether a model gives finite answers; what a configuration may choose freely changes them."""
    return bool(torch.isfinite(logits(model)).all())


def test_mutated_quantization_configs_are_refused_or_load_to_the_same_answers(quantized: Path) -> None:
    outcomes, file = Outcomes("quantization_config, loading"), quantized / "config.json"
    honest, same = read(file), same_answers(quantized)
    section = honest["quantization_config"]
    section["modules"] = dict(section["modules"].items())
    for description, tree in mutated_trees(section, generator("section"), number(100)):
        write(file, {**honest, "quantization_config": tree})
        outcomes.check(description, lambda: lowbit.load(quantized, dtype="float32"), same)
    outcomes.finish(refusals=number(35))


def test_mutated_quantization_configs_are_refused_or_inspected(quantized: Path) -> None:
    outcomes, file = Outcomes("quantization_config, inspecting"), quantized / "config.json"
    honest = read(file)
    bits = inspect_checkpoint(quantized).bits
    for description, tree in mutated_trees(honest["quantization_config"], generator("inspected"), number(250)):
        write(file, {**honest, "quantization_config": tree})
        outcomes.check(description, lambda: inspect_checkpoint(quantized), lambda found: _same_count(found.bits, bits))
    outcomes.finish(refusals=number(90))


def _same_count(found: Any, expected: Any) -> bool:
    return bool(found.file_bytes == expected.file_bytes and found.quantized_bytes <= expected.file_bytes)


@pytest.mark.parametrize("name", ["lowbit_provenance.json", "lowbit_recipe.yaml"])
def test_damaged_descriptions_are_refused_or_inspected(name: str, quantized: Path) -> None:
    outcomes, file = Outcomes(f"damaged {name}"), quantized / name
    honest = file.read_bytes()
    inspect_checkpoint(quantized)
    for description, data in mutated_bytes(honest, generator(name), number(100)):
        file.write_bytes(data)
        outcomes.check(description, lambda: inspect_checkpoint(quantized))
    if name.endswith(".json"):
        for description, tree in mutated_trees(json.loads(honest), generator(f"{name} tree"), number(100)):
            write(file, tree)
            outcomes.check(description, lambda: inspect_checkpoint(quantized))
    outcomes.finish(refusals=number(30))


GIANT: dict[str, Any] = {
    "num_hidden_layers": 10**9, "vocab_size": 10**12, "hidden_size": 2**40, "intermediate_size": 10**9,
    "num_attention_heads": 10**8, "max_position_embeddings": 2**31, "num_key_value_heads": 10**9, "head_dim": 10**9,
    "model_type": "nonesuch", "architectures": ["os.system"], "auto_map": {"AutoConfig": "evil.Evil"},
    "quantization_config": {"quant_method": "lowbit"}, "rope_scaling": [[[]]], "torch_dtype": "os", "dtype": {"a": 1},
}  # fmt: skip


def parent_configs(honest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield configurations of giants, and mutations of an honest one."""
    for key, value in GIANT.items():
        yield f"{key} = {value}", {**honest, key: value}
        yield f"{key} = -1", {**honest, key: -1}
    for model_type in ("gpt2", "mixtral", "gpt_neox", "opt", "bert", "t5", "gptj", "falcon", "mamba", "whisper"):
        giants = {"n_positions": 10**6, "num_local_experts": 10**8, "n_layer": 10**9, "num_layers": 10**9}
        yield f"model_type = {model_type}", {**honest, "model_type": model_type}
        yield f"a giant {model_type}", {**honest, **giants, "model_type": model_type}
    yield from mutated_trees(honest, generator("parent config"), number(250))


def test_mutated_parent_configs_are_refused_or_give_a_model_that_runs(plain: Path) -> None:
    outcomes, file = Outcomes("config.json of a parent"), plain / "config.json"
    honest = read(file)
    for description, tree in parent_configs(honest):
        write(file, tree)
        outcomes.check(description, lambda: lowbit.load(plain, dtype="float32"))
    outcomes.finish(refusals=number(80))


def test_mutated_configs_of_a_checkpoint_are_refused_or_inspected(quantized: Path) -> None:
    outcomes, file = Outcomes("config.json of a checkpoint"), quantized / "config.json"
    inspect_checkpoint(quantized)
    honest = read(file)
    model = {key: value for key, value in honest.items() if key != "quantization_config"}
    for description, tree in mutated_trees(model, generator("checkpoint config"), number(100)):
        write(file, {**tree, "quantization_config": honest["quantization_config"]})
        outcomes.check(description, lambda: inspect_checkpoint(quantized))
    outcomes.finish(refusals=number(20))


def test_damaged_bytes_of_config_json_are_refused_or_inspected(quantized: Path) -> None:
    outcomes, file = Outcomes("bytes of config.json"), quantized / "config.json"
    honest = file.read_bytes()
    for description, data in mutated_bytes(honest, generator("config bytes"), number(150)):
        file.write_bytes(data)
        outcomes.check(description, lambda: inspect_checkpoint(quantized))
    outcomes.finish(refusals=number(60))


def test_from_pretrained_refuses_our_mutated_modules_with_our_errors(quantized: Path) -> None:
    outcomes, file = Outcomes("from_pretrained"), quantized / "config.json"
    honest = read(file)
    modules = honest["quantization_config"]["modules"]
    for description, tree in mutated_trees(modules, generator("modules"), number(60)):
        write(file, at(honest, ("quantization_config", "modules"), tree))
        outcomes.check(description, lambda: from_pretrained(quantized))
    outcomes.finish(refusals=number(30))


def from_pretrained(folder: Path) -> Any:
    """Load as transformers' users do; what transformers itself refuses counts as refused."""
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" in str(error):
            raise LowbitError(str(error)) from error
        raise


def headers(file: Path) -> tuple[dict[str, Any], bytes]:
    """Return a safetensors file's header and its data."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: Any, payload: bytes, length: int | None = None) -> bytes:
    """Return a safetensors file of any header, its length told truly or not."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def damaged_safetensors(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield files with wrong lengths, offsets, shapes, dtypes and names."""
    header, payload = headers(file)
    text = json.dumps(header)
    for length in (0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63, 2**64 - 1, len(text) + len(payload)):
        yield f"a header of {length} bytes", with_header(header, payload, length)
    first = next(name for name in header if name != "__metadata__")
    tensor = header[first]
    offsets = tensor["data_offsets"]
    for changed in (
        [0, 0],
        [-1, 8],
        [offsets[1], offsets[0]],
        [0, 2**63],
        [0, len(payload) + 1],
        [1, offsets[1] + 1],
        [],
    ):
        yield f"offsets {changed}", with_header(at(header, (first, "data_offsets"), changed), payload)
    for shape in ([2**40, 2**40], [2**62], [-1], [0], [10**30], "3", [[3]], [1.5], []):
        yield f"shape {shape}", with_header(at(header, (first, "shape"), shape), payload)
    for dtype in ("F4", "F8_E4M3", "I64", "BOOL", "", 3, None, "object"):
        yield f"dtype {dtype}", with_header(at(header, (first, "dtype"), dtype), payload)
    twice = text[:-1] + f", {json.dumps(first)}: {json.dumps(tensor)}}}"
    yield "a duplicate name", with_header(twice, payload)
    yield "an overlap", with_header({**header, "another": tensor}, payload)
    yield "a missing tensor", with_header({key: value for key, value in header.items() if key != first}, payload)
    yield (
        "a name that moves the cursor",
        with_header({f"\x1b[2J{key}": value for key, value in header.items()}, payload),
    )
    yield "an empty file", b""
    yield "only a header", with_header(header, b"")
    yield "more data", with_header(header, payload + b"\0")
    yield "a nested header", with_header("[" * 10**5, payload)
    yield "a pickle", pickle.dumps({"a": 1})
    yield from (
        (what, with_header(tree, payload)) for what, tree in mutated_trees(header, generator("header"), number(200))
    )


def test_damaged_headers_are_refused_or_describe_the_file(plain: Path) -> None:
    outcomes, file = Outcomes("safetensors headers"), plain / WEIGHTS
    size = file.stat().st_size
    for description, data in damaged_safetensors(file):
        target = plain / "other.safetensors"
        target.write_bytes(data)
        outcomes.check(description, lambda target=target: read_header(target))
    assert size == file.stat().st_size
    outcomes.finish(refusals=number(100))


@pytest.mark.parametrize("kind", ["plain", "quantized"])
def test_checkpoints_with_damaged_headers_never_load_to_other_shapes(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    outcomes, file = Outcomes(f"damaged {kind} weights"), folder / WEIGHTS
    honest = file.read_bytes()
    cases = [*damaged_safetensors(file)]
    for description, data in generator(kind).sample(cases, min(len(cases), number(70))):
        file.write_bytes(data)
        outcomes.check(description, lambda: lowbit.load(folder, dtype="float32"), lambda model: model is not None)
    for description, data in mutated_bytes(honest[:20_000], generator(f"{kind} bytes"), number(40)):
        file.write_bytes(data + honest[20_000:])
        outcomes.check(description, lambda: lowbit.load(folder, dtype="float32"), lambda _: kind == "plain")
    outcomes.finish(refusals=number(30))


def test_no_changed_byte_of_a_checkpoints_weights_is_loaded_or_inspected(quantized: Path) -> None:
    outcomes, file = Outcomes("bytes of packed weights"), quantized / WEIGHTS
    honest, random = file.read_bytes(), generator("payload")
    readers: tuple[Callable[[Path], Any], ...] = (lowbit.load, inspect_checkpoint, from_pretrained)
    for case in range(number(45)):
        place, bit = random.randrange(len(honest)), 1 << random.randrange(8)
        file.write_bytes(honest[:place] + bytes([honest[place] ^ bit]) + honest[place + 1 :])
        reader = readers[case % len(readers)]
        outcomes.check(f"byte {place}, bit {bit}", lambda reader=reader: reader(quantized), lambda _: False)
    outcomes.finish(refusals=number(45))


def test_hostile_indexes_are_refused(plain: Path, parent: ModelFolder) -> None:
    outcomes = Outcomes("indexes")
    names = list(ParentCheckpoint(plain).keys())
    shutil.copytree(plain, plain.parent / "x")
    targets: list[Any] = ["../x/model.safetensors", str(plain.parent / "x" / WEIGHTS), "absent.safetensors", "", "."]
    targets += ["..", "/", "model.safetensors/", "./model.safetensors", "config.json", "x\x00.safetensors", "a" * 10**6]
    targets += [3, None, [], {}, True, "\ud800.safetensors", "\x1b[2J.safetensors", "pytorch_model.bin"]
    for target in targets:
        write(plain / INDEX, {"weight_map": dict.fromkeys(names, target)})
        outcomes.check(f"shard {target!r}"[:60], lambda: lowbit.load(plain), lambda _: False)
    for tree in ([], None, 3, {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}, "x"):
        write(plain / INDEX, tree)
        outcomes.check(f"index {tree}", lambda: lowbit.load(plain), lambda _: False)
    write(plain / INDEX, {"weight_map": {**dict.fromkeys(names, WEIGHTS), "extra": WEIGHTS}})
    outcomes.check("a tensor that is nowhere", lambda: lowbit.load(plain), lambda _: False)
    (plain / INDEX).write_text('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}')
    outcomes.check("a duplicate name", lambda: lowbit.load(plain), lambda _: False)
    (plain / INDEX).write_text('{"weight_map": ' + "[" * 10**5)
    outcomes.check("a nested index", lambda: lowbit.load(plain), lambda _: False)
    outcomes.finish(refusals=31)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_links_that_leave_the_folder_are_refused(name: str, plain: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(plain / name, outside)
    (plain / name).symlink_to(outside)
    with pytest.raises(LowbitError, match="leads out of its folder"):
        lowbit.load(plain)


def test_links_of_the_hubs_cache_are_followed(plain: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in plain.iterdir():
        shutil.move(file, blobs / file.name)
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / file.name, snapshot))
    assert runs(lowbit.load(snapshot, dtype="float32"))


def test_a_link_among_a_checkpoints_files_is_never_copied(quantized: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (quantized / "tokenizer_extra.json").symlink_to(tmp_path / "secret")
    with pytest.raises(LowbitError, match="leads out of its folder"):
        repack(quantized, tmp_path / "out", "plain")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", INDEX, "lowbit_provenance.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_without_waiting(name: str, quantized: Path) -> None:
    (quantized / name).unlink(missing_ok=True)
    os.mkfifo(quantized / name)
    outcomes = Outcomes(f"a pipe for {name}", seconds=5)
    outcomes.check(name, lambda: inspect_checkpoint(quantized), lambda _: False)
    outcomes.finish()


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("beside", [True, False], ids=["beside safetensors", "instead of safetensors"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt"])
def test_nothing_is_ever_unpickled(name: str, beside: bool, plain: Path, tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    (plain / name).write_bytes(pickle.dumps(Marker(marker)))
    if beside:
        assert runs(lowbit.load(plain, dtype="float32"))
    else:
        (plain / WEIGHTS).unlink()
        with pytest.raises(LowbitError, match="safetensors"):
            lowbit.load(plain)
    assert not marker.exists()


def test_code_in_a_models_folder_is_not_imported(plain: Path, tmp_path: Path) -> None:
    config, marker = read(plain / "config.json"), tmp_path / "imported"
    (plain / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    remote = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    for changes in ({"auto_map": remote}, {"auto_map": remote, "model_type": "evil"}, {"auto_map": {"AutoModel": 3}}):
        write(plain / "config.json", {**config, **changes})
        outcomes = Outcomes("auto_map")
        with watching_opens() as seen:
            outcomes.check(str(changes), lambda: lowbit.load(plain, dtype="float32"))
        outcomes.finish(refusals=0)
        assert not any(path.endswith("evil.py") for path in seen)
    assert not marker.exists()

"""Compiles the Triton kernels ahead of time and lists registers, spills and shared memory; it needs no GPU.

    python benchmarks/kernel_resources.py --markdown
    python benchmarks/kernel_resources.py --capability 90 --activations float16 --group_size 64,128 -o resources.json

Every configuration that tuning tries is compiled for a 4096 x 4096 weight (or --shape), as it would be on a GPU, and
the machine code is read with the tools that come with Triton. The stack holds spilled registers and nothing else.
Instructions are those of the main loop, and "a weight" divides them by the weights that a lane handles in one pass.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from lowbit_dbllm.triton_configurations import (
    BUCKETS,
    Configuration,
    GemvConfiguration,
    candidate_configurations,
)
from lowbit_dbllm.triton_launch import constants, split_steps
from rich.console import Console
from rich.table import Table

from lowbit import LowbitError, RowTiles, row_tiles_shape

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TYPES}
TITLES = ("kernel", "rows", "activations", "group", "configuration", "sm", "registers", "stack", "shared", "a weight")


@dataclass(frozen=True)
class Variant:
    """One kernel with one configuration for one kind of workload and one GPU.

    Args:
        bucket: Rows of activations, at most.
        activations: Name of the dtype.
        group_size: Columns a group.
        configuration: Blocks, warps and stages.
        capability: 80 for A100, 90 for H100.
    """

    bucket: int
    activations: str
    group_size: int
    configuration: Configuration
    capability: int

    @property
    def kernel(self) -> str:
        """`gemv` or `gemm`."""
        return "gemv" if isinstance(self.configuration, GemvConfiguration) else "gemm"


@dataclass(frozen=True)
class Resources:
    """What the machine code of a kernel takes.

    Args:
        registers: A lane.
        stack_bytes: A lane; spilled registers.
        shared_bytes: A program.
        loop_instructions: Of the longest loop, a pass.
        instructions_a_weight: Those over the weights that a lane handles in a pass.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    loop_instructions: int
    instructions_a_weight: float


def variants(
    shape: tuple[int, int],
    activations: list[str],
    group_sizes: list[int],
    capabilities: list[int],
    defaults_only: bool,
) -> Iterator[Variant]:
    """Yield every configuration that tuning would try, each code once; one row and eight share theirs."""
    seen = set()
    for name in activations:
        for size in group_sizes:
            for bucket in BUCKETS[1:]:
                candidates = candidate_configurations(meta_tiles(shape, size), bucket, name == "float32")
                for configuration in candidates[:1] if defaults_only else candidates:
                    if (code := (name, size, *_code(bucket, configuration))) not in seen:
                        seen.add(code)
                        yield from (Variant(bucket, name, size, configuration, number) for number in capabilities)


def _code(bucket: int, configuration: Configuration) -> tuple[Any, ...]:
    """Return what tells two compiled kernels apart: more than one part is all the same to the code."""
    if isinstance(configuration, GemvConfiguration):
        return bucket, replace(configuration, parts=min(configuration.parts, 2))
    return (configuration,)


def meta_tiles(shape: tuple[int, int], group_size: int) -> RowTiles:
    """Return row tiles with float16 scales that hold no data."""
    words = torch.empty(row_tiles_shape(*shape, group_size, 2, False, torch.float16), device="meta", dtype=torch.int32)
    return RowTiles(words, *shape, group_size, 2, False, torch.float16)


def measure(variant: Variant, shape: tuple[int, int]) -> Resources:
    """Compile a variant and read its machine code."""
    compiled, known = _compile(variant, meta_tiles(shape, variant.group_size))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(path))
        code = _tool("nvdisasm", "-c", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise LowbitError(f"cuobjdump printed no resource usage: {usage[:200]!r}")
    registers, stack, local = (int(text) for text in found.groups())
    loop = longest_loop(code)
    weights = 16 * variant.configuration.tiles * 32 * known["STEP_WORDS"] * known.get("SEGMENTS", 1)
    each = loop / (weights / (32 * variant.configuration.warps))
    return Resources(registers, stack + local, compiled.metadata.shared, loop, round(each, 2))


def _compile(variant: Variant, tiles: RowTiles) -> tuple[Any, dict[str, Any]]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = _kernel(variant)
    known = _constants(variant, tiles)
    # As the launcher does, pointers and integers are declared as multiples of 16 where they are.
    aligned = {name for name in ("rows", "columns") if getattr(tiles, name) % 16 == 0}
    if "columns" in aligned:
        aligned.add("x_stride")
    kinds = {"words_ptr": "*i32", "scales_ptr": "*fp16"}
    dtype = TYPES[DTYPES[variant.activations]]
    signature, attributes = {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = "constexpr" if name in known else kinds.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
        signature[name] = "*fp32" if name == "y_ptr" and known.get("PARTIAL") else kind
        if kind.startswith("*") or name in aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in known.items()}
    source = ASTSource(kernel, signature=signature, constexprs=places, attrs=attributes)
    target = GPUTarget("cuda", variant.capability, 32)
    return triton.compile(source, target=target, options={"num_warps": variant.configuration.warps}), known


def _kernel(variant: Variant) -> Any:
    if variant.kernel == "gemv":
        from lowbit_dbllm.triton_gemv import gemv_kernel as kernel
    else:
        from lowbit_dbllm.triton_gemm import gemm_kernel as kernel
    return kernel


def _constants(variant: Variant, tiles: RowTiles) -> dict[str, Any]:
    configuration = variant.configuration
    known = {
        **constants(tiles, variant.bucket, variant.activations == "float32"),
        "TILES": configuration.tiles,
        "STAGES": configuration.stages,
        "HAS_BIAS": True,
        "INTERPRET": False,
    }
    if not isinstance(configuration, GemvConfiguration):
        return {**known, "N": configuration.x_rows}
    split = split_steps(tiles, known["STEP_WORDS"], configuration)
    partial = split.parts > 1
    known |= {"SEGMENTS": configuration.segments, "N": variant.bucket, "WHOLE_STEPS": split.whole}
    return known | {"PARTIAL": partial, "HAS_BIAS": not partial}


def longest_loop(code: str) -> int:
    """Return the instructions of the longest loop that holds no other one, from a disassembly."""
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    count = 0
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            branch = re.search(r"\bBRA\b.*?(\.L\w+)", instruction[1])
            if branch and branch[1] in labels:
                loops.append((labels[branch[1]], count))
            count += 1
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    return max((b - a + 1 for a, b in inner), default=0)


def _tool(name: str, *arguments: str) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


def row_of(variant: Variant, resources: Resources) -> tuple[str, ...]:
    """Return a line of the table."""
    settings = " ".join(f"{name}={value}" for name, value in asdict(variant.configuration).items())
    return (
        variant.kernel,
        f"{variant.bucket}",
        variant.activations,
        f"{variant.group_size}",
        settings,
        f"{variant.capability}",
        f"{resources.registers}",
        f"{resources.stack_bytes}",
        f"{resources.shared_bytes / 1024:.1f} KiB",
        f"{resources.instructions_a_weight:.2f}",
    )


def show(rows: list[tuple[str, ...]], markdown: bool) -> None:
    """Print the table."""
    if markdown:
        click.echo("| " + " | ".join(TITLES) + " |\n|" + " --- |" * len(TITLES))
        for row in rows:
            click.echo("| " + " | ".join(row) + " |")
        return
    table = Table(*TITLES)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@click.command(help=__doc__)
@click.option("--shape", default="4096x4096", show_default=True, help="Weight, out x in.")
@click.option("--activations", default=",".join(DTYPES), show_default=True, help="Dtypes of activations.")
@click.option("--group_size", default="64", show_default=True, help="Columns a group, several by commas.")
@click.option("--capability", default="80,90", show_default=True, help="GPU generations.")
@click.option("--defaults", is_flag=True, help="Only the configurations that run without tuning.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write JSON.")
def main(
    shape: str, activations: str, group_size: str, capability: str, defaults: bool, markdown: bool, output: Path | None
) -> None:
    out, length = (int(part) for part in shape.split("x"))
    names = activations.split(",")
    if unknown := set(names) - DTYPES.keys():
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(DTYPES)}")
    sizes, capabilities = ([int(part) for part in text.split(",")] for text in (group_size, capability))
    rows, records = [], []
    for variant in variants((out, length), names, sizes, capabilities, defaults):
        resources = measure(variant, (out, length))
        rows.append(row_of(variant, resources))
        records.append({"kernel": variant.kernel, **asdict(variant), **asdict(resources)})
    show(rows, markdown)
    if output is not None:
        output.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

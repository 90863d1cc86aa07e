"""What was measured, as data, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernels_timing import Bandwidth, Times
from layer_cost import parse_shape
from rich.table import Table

from lowbit.durable import make_directory, write_whole
from lowbit.errors import LowbitError

TITLES = (
    *("out x in", "rows", "product", "weights", "dtype", "microseconds", "fastest", "GB/s", "of copy", "of read"),
    *("x fp32", "x bf16", "x fp16", "error"),
)
LEFT = ("out x in", "product", "weights", "dtype")
RATIOS = ("float32", "bfloat16", "float16")
MARKS = {"kernel": "o", "torch": "s", "peer": "^"}
COLORS = 20
WIDTH_INCHES, HEIGHT_INCHES = 9.0, 5.5


@dataclass(frozen=True)
class Line:
    """One contender in one cell.

    Args:
        name: What multiplies.
        kind: `kernel`, `torch` or `peer`.
        weights: What the weight is stored as.
        dtype: Of the activations.
        bytes: Of one copy of the weight.
        copies: Copies of the weight that calls rotate through.
        error: Largest difference from float64, over the norms of the weight's row and of the activations.
        times: Seconds a call; `None` where the results were wrong.
        problem: Why there are no times.
    """

    name: str
    kind: str
    weights: str
    dtype: str
    bytes: int
    copies: int
    error: float
    times: Times | None
    problem: str = ""


@dataclass(frozen=True)
class Cell:
    """All contenders on one layer with one number of rows, timed in turn.

    Args:
        shape: `OUTxIN`.
        rows: Of the activations.
        method: What quantized the layer.
        bandwidth: Of the same minutes.
        lines: What was measured.
        absent: Contenders that took no part, with the reason.
        load: The machine's load when the cell ended, mean of the last minute.
    """

    shape: str
    rows: int
    method: str
    bandwidth: Bandwidth
    lines: tuple[Line, ...]
    absent: dict[str, str]
    load: float

    @classmethod
    def read(cls, data: dict[str, Any]) -> Cell:
        """Return a cell from its JSON form."""
        lines = [Line(**{**line, "times": line["times"] and Times(**line["times"])}) for line in data["lines"]]
        return cls(**{**data, "bandwidth": Bandwidth(**data["bandwidth"]), "lines": tuple(lines)})

    def to_json(self) -> dict[str, Any]:
        """Return the cell's JSON form."""
        return asdict(self)

    def ratio(self, line: Line, dtype: str) -> float | None:
        """Return how many times faster a line is than torch's linear layer; `None` where there are no times."""
        for other in self.lines:
            if other.kind == "torch" and other.dtype == dtype and other.times and line.times:
                return other.times.median / line.times.median
        return None

    @property
    def operations(self) -> int:
        """Floating-point operations of the product with a dense weight."""
        out, length = parse_shape(self.shape)
        return 2 * self.rows * out * length


def texts(cell: Cell, line: Line) -> list[str]:
    """Return a line as a row of the table."""
    head = [cell.shape, str(cell.rows), line.name, line.weights, line.dtype]
    if line.times is None:
        return [*head, line.problem, *[""] * 7, f"{line.error:.1e}"]
    rate = line.bytes / line.times.median
    ratios = [cell.ratio(line, dtype) for dtype in RATIOS]
    return [
        *head,
        f"{line.times.median * 1e6:.0f} [{line.times.lower * 1e6:.0f}, {line.times.upper * 1e6:.0f}]",
        f"{line.times.fastest * 1e6:.0f}",
        f"{rate / 1e9:.2f}",
        f"{rate / cell.bandwidth.copy:.0%}",
        f"{rate / cell.bandwidth.read:.0%}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        f"{line.error:.1e}",
    ]


def describe(conditions: dict[str, Any], date: str) -> str:
    """Say how was measured."""
    host = conditions["host"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(conditions["versions"].items()))
    where = host.get("gpu") or f"{host['cpu']}, {host['instructions']}, {host['cpu_count']} cores"
    return (
        f"{where}; {conditions['threads']} threads, seed {conditions['seed']}, {date}; {versions}. Median, "
        f"quartiles and fastest of calls in {conditions['rounds']} rounds of bursts of up to {conditions['calls']}, "
        "all products in turn; what follows is from the medians. "
        'GB/s are stored bytes of the weight; "of copy" counts what a large copy reads and writes, "of read" what '
        "a large sum reads. x fp32, x bf16, x fp16: times faster than torch's linear layer. Error: largest difference "
        "from float64, over the norms of the row and of the activations."
    )


def to_markdown(cells: Sequence[Cell]) -> str:
    """Return the table as Markdown, with the bandwidths and what took no part below."""
    rows = [list(TITLES), ["---" if title in LEFT else "---:" for title in TITLES]]
    rows += [texts(cell, line) for cell in cells for line in cell.lines]
    table = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows)
    return "\n\n".join([table, *footnotes(cells)])


def footnotes(cells: Sequence[Cell]) -> list[str]:
    """Return the bandwidth of each cell and each contender that took no part."""
    notes = [
        f"{cell.shape}, {cell.rows} rows: copy {cell.bandwidth.copy / 1e9:.1f} GB/s, "
        f"read {cell.bandwidth.read / 1e9:.1f} GB/s, load {cell.load:.1f}."
        for cell in cells
    ]
    absent = {f"Not measured: {name}: {reason}." for cell in cells for name, reason in cell.absent.items()}
    return notes + sorted(absent)


def to_table(cells: Sequence[Cell]) -> Table:
    """Return the table for a terminal."""
    table = Table()
    for title in TITLES:
        table.add_column(title, justify="left" if title in LEFT else "right")
    for cell in cells:
        for line in cell.lines:
            table.add_row(*texts(cell, line))
        table.add_section()
    return table


def draw(cells: Sequence[Cell], file: Path) -> None:
    """Draw the roofline: operations a second against operations a stored byte, under the measured bandwidth.

    Raises:
        LowbitError: matplotlib is absent, the suffix is no picture's, or there is nothing to draw.
    """
    if file.suffix not in (".svg", ".png", ".pdf"):
        raise LowbitError(f"--plot {file}: the name must end in .svg, .png or .pdf")
    points = roofline_points(cells)
    if not points:
        raise LowbitError("there is nothing to plot: no product was timed")
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LowbitError("--plot needs matplotlib; install it with: pip install 'lowbit[report]'") from error
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kernels", "font.size": 8}):
        picture = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), facecolor="white", layout="constrained")
        _fill(picture.add_subplot(), cells, points)
        picture.legend(loc="outside right upper", fontsize=7)
        make_directory(file.absolute().parent)
        metadata = {"Date": None} if file.suffix == ".svg" else None
        kind = file.suffix.removeprefix(".")
        write_whole(file, lambda path: picture.savefig(path, format=kind, dpi=120, metadata=metadata))


def roofline_points(cells: Sequence[Cell]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return operations a byte and operations a second of each kind and product."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells:
        for line in cell.lines:
            if line.times is not None:
                point = cell.operations / line.bytes, cell.operations / line.times.median
                points.setdefault((line.kind, f"{line.name} ({line.dtype})"), []).append(point)
    return points


def _fill(axes: Any, cells: Sequence[Cell], points: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    intensities = [x for places in points.values() for x, _ in places]
    from matplotlib import colormaps

    map_of = colormaps["tab20"]
    edges = min(intensities) / 1.5, max(intensities) * 1.5
    top = max(y for places in points.values() for _, y in places)
    for name, style in (("copy", "-"), ("read", "--")):
        rates = sorted(getattr(cell.bandwidth, name) for cell in cells)
        rate = rates[len(rates) // 2]
        line = [min(edge * rate, 2 * top) / 1e9 for edge in (edges[0], 2 * top / rate, max(edges[1], 2 * top / rate))]
        places = (edges[0], 2 * top / rate, max(edges[1], 2 * top / rate))
        axes.plot(places[:2], line[:2], style, color="#555555", label=f"{name} bandwidth, {rate / 1e9:.1f} GB/s")
    for number, ((kind, name), places) in enumerate(sorted(points.items())):
        axes.plot(
            *zip(*((x, y / 1e9) for x, y in places), strict=True),
            MARKS[kind],
            label=name,
            color=map_of(number % COLORS),
        )
    axes.set(xscale="log", yscale="log", xlim=edges)
    axes.set_xlabel("operations a stored byte of the weight")
    axes.set_ylabel("GFLOP/s (2 x rows x out x in)")
    axes.grid(True, which="both", alpha=0.2)

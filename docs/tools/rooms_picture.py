"""Draws docs/rooms.svg: which room of the core imports which, from the plan that the tests enforce.

python docs/tools/rooms_picture.py
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = REPOSITORY / "tests" / "test_architecture.py"
PICTURE = REPOSITORY / "docs" / "rooms.svg"
EVERYWHERE = "errors"
"""Any room may import it; its arrows are not drawn."""

BOX = (142, 34)
GAP = (26, 52)
MARGIN = 16

STYLE = """
  text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #1f2933; text-anchor: middle; }
  rect { fill: #eef2ff; stroke: #5b6abf; }
  path { fill: none; stroke: #8a94b8; stroke-width: 1.2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9f5; } rect { fill: #272c44; stroke: #8f9bdc; } path { stroke: #6f7aa8; }
  }
"""


def read_plan() -> dict[str, set[str]]:
    """Return `ROOMS` of tests/test_architecture.py: what each room may import, itself left out."""
    module = ast.parse(PLAN.read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for node in module.body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if _assigns(node) else None
        if isinstance(target, ast.Name) and target.id in ("BASE", "ROOMS") and node.value is not None:
            code = compile(ast.Expression(node.value), str(PLAN), "eval")
            names[target.id] = eval(code, {"set": set}, names)
    rooms = names["ROOMS"]
    assert isinstance(rooms, dict)
    return rooms


def _assigns(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign)


def direct(rooms: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Leave out what follows from other arrows: a room that is reached through another one."""
    reached: dict[str, set[str]] = {}
    for room, allowed in rooms.items():  # every room stands behind those that it imports
        reached[room] = set(allowed).union(*(reached[other] for other in allowed))
    return {
        room: {other for other in allowed if not any(other in reached[between] for between in allowed - {other})}
        for room, allowed in rooms.items()
    }


def levels(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Return each room's row from below, a room standing just below the lowest of those that import it."""
    depth = dict.fromkeys(arrows, 0)
    for room, below in reversed(arrows.items()):
        for other in below:
            depth[other] = max(depth[other], depth[room] + 1)
    return {room: max(depth.values()) - found for room, found in depth.items()}


def picture(rooms: Mapping[str, set[str]]) -> str:
    """Return the drawing: rooms in rows, each above what it imports."""
    arrows = {room: below - {EVERYWHERE} for room, below in direct(rooms).items() if room != EVERYWHERE}
    level = levels(arrows)
    rows = [[room for room in arrows if level[room] == row] for row in range(max(level.values()) + 1)]
    _untangle(rows, arrows)
    width = max(len(row) for row in rows) * (BOX[0] + GAP[0]) - GAP[0] + 2 * MARGIN
    height = len(rows) * (BOX[1] + GAP[1]) - GAP[1] + 2 * MARGIN
    places = {}
    for number, row in enumerate(rows):
        left = (width - len(row) * (BOX[0] + GAP[0]) + GAP[0]) / 2
        top = height - MARGIN - BOX[1] - number * (BOX[1] + GAP[1])
        places |= {room: (left + index * (BOX[0] + GAP[0]), top) for index, room in enumerate(row)}
    lines = [_arrow(places[room], places[other]) for room, below in arrows.items() for other in sorted(below)]
    boxes = [_box(room, *place) for room, place in places.items()]
    said = "; ".join(f"{room} imports {', '.join(sorted(below))}" for room, below in arrows.items() if below)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">'
    title = f"<title>Rooms of lowbit</title><desc>{escape(said)}</desc>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *lines, *boxes, "</svg>"]) + "\n"


def _untangle(rows: list[list[str]], arrows: Mapping[str, set[str]]) -> None:
    """Put each room over the middle of what it imports, so that few arrows cross; of equals, far arrows outside."""
    for number, row in enumerate(rows):
        place = {room: (index + 0.5) / len(below) for below in rows[:number] for index, room in enumerate(below)}
        keys = {}
        for room in row:
            middles = [place[other] for other in sorted(arrows[room])] or [0.0]
            reach = max((number - _row_of(rows, other) for other in arrows[room]), default=0)
            keys[room] = (sum(middles) / len(middles), reach)
        row.sort(key=keys.__getitem__)


def _row_of(rows: list[list[str]], room: str) -> int:
    return next(number for number, row in enumerate(rows) if room in row)


def _box(room: str, left: float, top: float) -> str:
    middle = f'x="{left + BOX[0] / 2:g}" y="{top + BOX[1] / 2 + 4.5:g}"'
    rect = f'<rect x="{left:g}" y="{top:g}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
    return f"{rect}<text {middle}>{escape(room)}</text>"


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + BOX[0] / 2, start[1] + BOX[1]
    x2, y2 = end[0] + BOX[0] / 2, end[1]
    bend = (y2 - y1) / 2
    return f'<path d="M{x1:g} {y1:g} C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"/>'


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(picture(read_plan()), encoding="utf-8")


if __name__ == "__main__":
    main()

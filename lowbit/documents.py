"""YAML and JSON from strangers: plain values, read within limits of bytes, depth and number, or one clear error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lowbit import untrusted
from lowbit.errors import LowbitError

MOST_YAML_BYTES = 1_000_000
MOST_DEPTH = 64
MOST_YAML_NODES = 50_000
"""Values of a YAML text once every alias stands for what it names."""
MOST_INTEGER = 2**64 - 1
LONGEST_NUMBER = 64
"""Characters of a number in YAML; Python takes minutes to read some longer ones."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_PLAIN = (*_NUMBERS, *(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "str", "seq", "map")))


def read_text(path: Path, what: str, most_bytes: int = untrusted.LARGEST_JSON) -> str:
    """Read a text file of UTF-8.

    Args:
        path: The file.
        what: What it should be, for messages: `recipe`.
        most_bytes: A larger file is refused unread.

    Raises:
        LowbitError: It is absent, no ordinary file, too large, or no UTF-8.
    """
    try:
        return untrusted.read_text(path, most_bytes).removeprefix("\ufeff")
    except (OSError, ValueError) as error:
        raise LowbitError(untrusted.printable(f"{what} {path} cannot be read: {error}")) from error


def read_json(path: Path, what: str, most_bytes: int = untrusted.LARGEST_JSON) -> Any:
    """Read a JSON file; arguments as of `read_text`.

    Raises:
        LowbitError: The file cannot be read, or `parse_json` refuses it.
    """
    return parse_json(read_text(path, what, most_bytes), f"{what} {path}")


def parse_json(text: str, what: str) -> Any:
    """Parse JSON of finite numbers, integers of at most 64 bits and objects without duplicate keys.

    Args:
        text: The text.
        what: What it is, for messages.

    Raises:
        LowbitError: It is no such JSON, or nested too deeply.
    """
    if text.count("[") + text.count("{") > untrusted.MOST_CONTAINERS:
        raise LowbitError(f"{what} has more than {untrusted.MOST_CONTAINERS} lists and objects")
    try:
        value = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_int=_integer,
            parse_float=_finite,
        )  # fmt: skip
    except RecursionError as error:
        raise LowbitError(f"{what} is nested more than {MOST_DEPTH} levels deep") from error
    except ValueError as error:
        raise LowbitError(f"{what} is no JSON: {error}") from error
    require_plain(value, what)
    return value


def parse_yaml(text: str, what: str) -> Any:
    """Parse YAML of plain values: text, finite numbers, booleans, null, lists, and mappings with text as keys.

    Args:
        text: The text; a date in it stays text.
        what: What it is, for messages.

    Raises:
        LowbitError: It is no such YAML, has a duplicate key, or exceeds a limit.
    """
    if len(text) > MOST_YAML_BYTES:
        raise LowbitError(f"{what} has {len(text)} characters, over the {MOST_YAML_BYTES} that one may have")
    try:
        value = yaml.load(text, Loader=_PlainLoader)
    except RecursionError as error:
        raise LowbitError(f"{what} is nested more than {MOST_DEPTH} levels deep") from error
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # PyYAML answers some texts, such as `!!bool x`, with errors that are none of its own.
        told = " ".join(str(error).split())[:400]
        raise LowbitError(f"{what} is no YAML that can be used: {told}") from error
    require_plain(value, what)
    return value


def require_plain(value: Any, what: str, most_depth: int = MOST_DEPTH) -> None:
    """Refuse values that are nested too deeply, and text and integers that cannot be written again.

    Raises:
        LowbitError: It holds such a value.
    """
    level: list[Any] = [value]
    for _ in range(most_depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                below += item
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, str):
                _require_text(item, what)
        if not below:
            return
        level = below
    raise LowbitError(f"{what} is nested more than {most_depth} levels deep")


def _require_text(text: str, what: str) -> None:
    # Half of a surrogate pair can be escaped in JSON and YAML, but no file can hold it.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise LowbitError(f"{what} holds half of a character (a lone surrogate)")
    if "\x00" in text:
        raise LowbitError(f"{what} holds text with a null character")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


def _integer(text: str) -> int:
    value = int(text) if len(text) <= LONGEST_NUMBER else MOST_INTEGER + 1
    if abs(value) > MOST_INTEGER:
        raise ValueError(f"the integer {text[:30]} has over 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:30]} is no finite number")
    return value


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader with limits; what no JSON could say is refused."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._nodes = 0
        self._nodes_of: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Count nodes and levels while they are composed, an alias as what it names."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._nodes_of:
                _refuse(f"the alias *{anchor} stands inside what it names", event.start_mark)
            self._nodes += self._nodes_of.get(str(anchor), 0)
        before = self._nodes
        self._nodes += 1
        self._depth += 1
        if self._nodes > MOST_YAML_NODES:
            _refuse(f"it has more than {MOST_YAML_NODES} values, aliases expanded", event.start_mark)
        if self._depth > MOST_DEPTH:
            _refuse(f"it is nested more than {MOST_DEPTH} levels deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._nodes_of[str(anchor)] = self._nodes - before
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Build a value of a plain kind."""
        if node.tag not in _PLAIN:
            _refuse(f"the tag {node.tag[:60]!r} is none of plain data", node.start_mark)
        if node.tag in _NUMBERS and isinstance(node, yaml.ScalarNode) and len(node.value) > LONGEST_NUMBER:
            _refuse(f"a number of {len(node.value)} digits is too long", node.start_mark)
        value = super().construct_object(node, deep)
        if isinstance(value, float) and not math.isfinite(value):
            _refuse(f"{node.value[:30]} is no finite number", node.start_mark)
        if isinstance(value, int) and abs(value) > MOST_INTEGER:
            _refuse(f"the integer {node.value[:30]} has over 64 bits", node.start_mark)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Build a mapping whose keys are text and differ."""
        if not isinstance(node, yaml.MappingNode):
            _refuse("expected a mapping", node.start_mark)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                name = "<<"
            elif not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                _refuse("a key is no text; put it in quotation marks", key.start_mark)
            else:
                name = key.value
            if name in seen:
                _refuse(f"the key {name[:80]!r} stands twice in one mapping", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, mark)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

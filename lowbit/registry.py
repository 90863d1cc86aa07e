"""The plugin manager: who brings which quantizer, format, packer, kernel, method, calibration source and paper."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from lowbit.errors import LowbitError, UnknownNameError
from lowbit.hookspecs import HOOK_GROUPS
from lowbit.observers import Observers, trace, trace_hook_calls
from lowbit.untrusted import printable, read_bytes

if TYPE_CHECKING:
    from lowbit.contracts import (
        CalibrationSource,
        DistillationLoss,
        Kernel,
        Method,
        Packer,
        PublishedFile,
        QuantizedWeight,
        WeightQuantizer,
    )

ENTRY_POINT_GROUP = "lowbit"
PLUGINS_VARIABLE = "LOWBIT_PLUGINS"
MOST_PLUGIN_BYTES = 2**24
LONGEST_MODULE = 255
TRACE_VARIABLE = "LOWBIT_TRACE_PLUGINS"


@dataclass(frozen=True)
class PluginSource:
    """Where a plugin came from.

    Args:
        plugin: Name of the entry point, module or file.
        distribution: Name of the installed distribution, or the file or module that was asked for.
        version: Version of the distribution; the beginning of the content's sha256 for a file; empty for a module.
        content: The beginning of the sha256 of its source files, so that an edited plugin is another plugin.
    """

    plugin: str
    distribution: str
    version: str = ""
    content: str = field(default="", compare=False)

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        return f"{self.plugin!r} of {self.distribution}{version}"


@dataclass(frozen=True)
class Registered:
    """Something a plugin registered, and the plugin."""

    item: Any
    source: PluginSource


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that could not be used, and why."""

    source: PluginSource
    reason: str


class Registry:
    """Looks up by name what plugins registered.

    Every kind of thing has one table of unique names; a clash, a misspelled hook and an unknown name are errors that
    name the distributions involved.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("lowbit")
        for group in HOOK_GROUPS:
            self._manager.add_hookspecs(group)
        self._sources: dict[str, PluginSource] = {}
        self._tables: dict[str, dict[str, Registered]] | None = None
        self._observers = Observers(self._manager, lambda name: str(self._sources.get(name, name)))
        self._traced = False
        self.broken: list[BrokenPlugin] = []

    @property
    def hook(self) -> Any:
        """The callable hooks (`registry.hook.lowbit_diagnostics(quantized=...)`)."""
        return self._manager.hook

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call an event hook of every plugin and observer; one that fails is a warning, and the others still hear."""
        self._observers.notify(hook, **arguments)

    def observing(self, observer: object) -> AbstractContextManager[None]:
        """Let an object with event hooks hear events while the context is open; it is not listed among the plugins."""
        return self._observers.observing(observer)

    def trace(self) -> None:
        """Print every call of a hook to stderr from now on."""
        if not self._traced:
            self._traced = True
            trace_hook_calls(self._manager)

    @property
    def plugins(self) -> tuple[PluginSource, ...]:
        """Every plugin that is in use, in the order of registration."""
        return tuple(self._sources.values())

    def load_entry_points(self) -> None:
        """Register every installed plugin; one that cannot be used is left out with a warning that names it."""
        found = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        for entry in sorted(found, key=lambda e: (e.dist.name if e.dist else "", e.name)):
            distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "")
            source = PluginSource(entry.name, distribution, version)
            if source in self._sources.values():
                continue
            try:
                self.register(entry.load(), source)
            except Exception as error:
                broken = BrokenPlugin(source, f"{type(error).__name__}: {error}")
                self.broken.append(broken)
                warnings.warn(f"plugin {source} is not used: {broken.reason}", stacklevel=2)

    def load(self, target: str) -> None:
        """Register an un-packaged plugin: a Python file or the name of an importable module; once.

        Raises:
            LowbitError: The file or module is absent, fails to import, or has a misspelled hook.
        """
        is_file = target.endswith(".py") or os.sep in target
        if not is_file:
            _require_module_name(target)
        source = _file_source(Path(target)) if is_file else PluginSource(target, target)
        try:
            module = _module_from_file(Path(target)) if is_file else importlib.import_module(target)
        except LowbitError:
            raise
        except (Exception, SystemExit) as error:
            told = printable(" ".join(str(error).split()))[:500]
            raise LowbitError(f"plugin {target} cannot be imported: {type(error).__name__}: {told}") from error
        self.register(module, source)

    def register(self, plugin: object, source: PluginSource) -> None:
        """Register a module or object with hook implementations; one that is registered already stays as it is.

        Raises:
            LowbitError: A hook name is misspelled, takes unknown arguments or fails, or a name is missing or taken.
        """
        if self._manager.is_registered(plugin):
            return
        key = f"{source.distribution}:{source.plugin}"
        source = replace(source, content=content_of(plugin))
        try:
            self._manager.register(plugin, name=key)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            self._forget(plugin)
            raise LowbitError(f"plugin {source}: {_hook_problem(error, self._hook_names())}") from error
        self._sources[key] = source
        self._tables = None
        try:
            self._build_tables()
        except LowbitError:
            self._forget(plugin)
            del self._sources[key]
            self._tables = None
            raise

    def _forget(self, plugin: object) -> None:
        if self._manager.is_registered(plugin):
            self._manager.unregister(plugin)

    def unregister(self, plugin: object) -> None:
        """Take a plugin out again, with everything it registered."""
        self._forget(plugin)
        self._sources = {key: source for key, source in self._sources.items() if self._manager.has_plugin(key)}
        self._tables = None

    def _hook_names(self) -> list[str]:
        return [name for group in HOOK_GROUPS for name in vars(group) if name.startswith("lowbit_")]

    def quantizer(self, name: str) -> type[WeightQuantizer]:
        """Return the weight quantizer of that name."""
        found: type[WeightQuantizer] = self._look_up("weight quantizer", name)
        return found

    def format(self, name: str) -> type[QuantizedWeight]:
        """Return the format class of that name."""
        found: type[QuantizedWeight] = self._look_up("format", name)
        return found

    def packer(self, name: str) -> type[Packer]:
        """Return the packer class of that name."""
        found: type[Packer] = self._look_up("packer", name)
        return found

    def method(self, name: str) -> Method:
        """Return the method of that name."""
        found: Method = self._look_up("method", name)
        return found

    def calibration_source(self, name: str) -> type[CalibrationSource]:
        """Return the calibration source of that name."""
        found: type[CalibrationSource] = self._look_up("calibration source", name)
        return found

    def distillation_loss(self, name: str) -> type[DistillationLoss]:
        """Return the distillation loss of that name."""
        found: type[DistillationLoss] = self._look_up("distillation loss", name)
        return found

    def published_file(self, paper: str) -> PublishedFile:
        """Return the file of the results that were published under a paper's name."""
        found: PublishedFile = self._look_up("paper", paper)
        return found

    def kernels(self) -> list[type[Kernel]]:
        """Return every kernel class, highest priority first."""
        found = [entry.item for entry in self.table("kernel").values()]
        return sorted(found, key=lambda kernel: (-kernel.priority, kernel.name))

    def methods(self) -> list[Method]:
        """Return every method, by name."""
        return [entry.item for _, entry in sorted(self.table("method").items())]

    def source(self, kind: str, name: str) -> PluginSource:
        """Return the plugin that registered a name."""
        return self.table(kind)[name].source

    def table(self, kind: str) -> Mapping[str, Registered]:
        """Return everything of one kind by name; the kinds are the keys of `KINDS`."""
        if self._tables is None:
            self._build_tables()
        assert self._tables is not None
        return self._tables[kind]

    def _look_up(self, kind: str, name: str) -> Any:
        known = self.table(kind)
        if name in known:
            return known[name].item
        raise UnknownNameError(unknown_name(kind, name, known) + self._broken_hint())

    def _broken_hint(self) -> str:
        if not self.broken:
            return ""
        return " Plugins that could not be used: " + "; ".join(f"{b.source} ({b.reason})" for b in self.broken) + "."

    def _build_tables(self) -> None:
        tables: dict[str, dict[str, Registered]] = {}
        for kind, (hook, attribute) in KINDS.items():
            table = tables.setdefault(kind, {})
            for implementation in getattr(self.hook, hook).get_hookimpls():
                source = self._sources[implementation.plugin_name]
                if self._traced:
                    trace(f"{hook}(): {implementation.plugin_name}")
                for item in _items(implementation.function, hook, source):
                    _add(table, kind, _require_name(item, attribute, source), Registered(item, source))
        self._tables = tables


def _add(table: dict[str, Registered], kind: str, name: str, entry: Registered) -> None:
    if name in table:
        raise LowbitError(
            f"two plugins register a {kind} named {name!r}: {table[name].source} and {entry.source}; "
            "uninstall one of them or rename it there"
        )
    table[name] = entry


def _items(hook_function: Any, hook: str, source: PluginSource) -> list[Any]:
    try:
        return list(hook_function() or ())
    except Exception as error:
        raise LowbitError(
            f"plugin {source}: {hook} must yield its items, but failed: {type(error).__name__}: {error}"
        ) from error


def _require_name(item: Any, attribute: str, source: PluginSource) -> str:
    name = getattr(item, attribute, None)
    if not isinstance(name, str) or not name:
        shown = getattr(item, "__name__", item)
        raise LowbitError(f"plugin {source}: {shown!r} carries no {attribute!r}: set it to a non-empty string")
    return name


KINDS: Mapping[str, tuple[str, str]] = {
    "weight quantizer": ("lowbit_weight_quantizers", "name"),
    "distillation loss": ("lowbit_distillation_losses", "name"),
    "format": ("lowbit_formats", "format"),
    "packer": ("lowbit_packers", "name"),
    "kernel": ("lowbit_kernels", "name"),
    "method": ("lowbit_methods", "name"),
    "calibration source": ("lowbit_calibration_sources", "name"),
    "paper": ("lowbit_published_results", "name"),
}
"""What can be registered: by which hook, and which attribute of an item is its name."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown and which known ones are nearest."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known: {', '.join(names) or 'none'}."
    return f"there is no {kind} named {name!r}; {hint}"


def _hook_problem(error: pluggy.PluginValidationError, hooks: Iterable[str]) -> str:
    text = str(error)
    unknown = next((word.strip("'\"") for word in text.split() if word.strip("'\"").startswith("lowbit_")), "")
    if "unknown hook" not in text:
        return " ".join(text.split())
    return unknown_name("hook", unknown, hooks)


def _require_module_name(target: str) -> None:
    if len(target) <= LONGEST_MODULE and all(part.isidentifier() for part in target.split(".")):
        return
    raise LowbitError(
        f"plugin {printable(target)[:200]!r} is neither a .py file nor the name of an importable module; archives, "
        "folders and addresses are none: install a package, or give one of its files"
    )


def _file_source(path: Path) -> PluginSource:
    shown = printable(path)[:300]
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for names that no file can have
        raise LowbitError(f"plugin file {shown} does not exist; give a .py file or the name of an importable module")
    if path.suffix != ".py":
        raise LowbitError(f"plugin file {shown} is no Python file; its name must end in .py")
    try:
        content = read_bytes(path, MOST_PLUGIN_BYTES)
    except OSError as error:
        raise LowbitError(f"plugin file {shown} cannot be read: {printable(error)}") from error
    return PluginSource(path.stem, str(path), f"sha256:{hashlib.sha256(content).hexdigest()[:12]}")


def content_of(module: object) -> str:
    """Return the beginning of the sha256 of a module's file, or of every Python file of a package."""
    location = getattr(module, "__file__", None)
    if not isinstance(location, str):
        return ""
    file = Path(location)
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    digest = hashlib.sha256()
    for part in files:
        digest.update(part.name.encode() + part.read_bytes())
    return digest.hexdigest()[:12]


def _module_from_file(path: Path) -> ModuleType:
    """Import a file once, under a name that tells files of the same name apart."""
    location = path.resolve()
    name = f"lowbit_plugin_{location.stem}_{hashlib.sha256(str(location).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LowbitError(f"plugin file {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@cache
def registry() -> Registry:
    """Return the process's registry, with installed plugins and those of `LOWBIT_PLUGINS` (comma-separated) loaded.

    With `LOWBIT_TRACE_PLUGINS=1` every hook call is printed to stderr.
    """
    made = Registry()
    if os.environ.get(TRACE_VARIABLE, "0") not in ("", "0"):
        made.trace()
    made.load_entry_points()
    for target in filter(None, (part.strip() for part in os.environ.get(PLUGINS_VARIABLE, "").split(","))):
        made.load(target)
    return made

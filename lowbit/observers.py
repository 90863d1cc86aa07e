"""Tells observers of events one by one, so that one that fails ends nothing; and a trace of every hook call."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pluggy

from lowbit.errors import LowbitError
from lowbit.hookspecs import EventHooks

LONGEST_VALUE = 40

logger = logging.getLogger(__name__)


class Observers:
    """Tells plugins and other observers of events.

    Args:
        manager: Where plugins are registered.
        shown: Says of a plugin's registered name what users call it.
    """

    def __init__(self, manager: pluggy.PluginManager, shown: Callable[[str], str]) -> None:
        self._manager = manager
        self._shown = shown
        self._complained: set[tuple[str, str]] = set()

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call an event hook of everybody who has it; an exception is a warning, and the others still hear.

        Args:
            hook: Name of an event hook.
            arguments: What it is told.
        """
        found = reversed(getattr(self._manager.hook, hook).get_hookimpls())
        listening = {implementation.plugin_name: implementation.plugin for implementation in found}
        if not listening:
            getattr(self._manager.hook, hook)(**arguments)  # For the trace.
        for name, plugin in listening.items():
            others = [other for other in listening.values() if other is not plugin]
            try:
                self._manager.subset_hook_caller(hook, others)(**arguments)
            except Exception as error:
                self._complain(name, hook, error)

    def _complain(self, name: str, hook: str, error: Exception) -> None:
        """Warn of an observer that failed; of the same one in the same hook once."""
        level = logging.DEBUG if (name, hook) in self._complained else logging.WARNING
        self._complained.add((name, hook))
        reason = f"{type(error).__name__}: {error}"
        logger.log(level, "plugin %s failed in %s; the run goes on: %s", self._shown(name), hook, reason)
        logger.debug("plugin %s failed in %s here:", self._shown(name), hook, exc_info=error)

    @contextmanager
    def observing(self, observer: object) -> Iterator[None]:
        """Let an object hear events while the context is open.

        Args:
            observer: Has methods that implement event hooks, marked `@hookimpl`.

        Raises:
            LowbitError: One of its hooks is misspelled, takes unknown arguments, or is no event.
        """
        name = f"observer {type(observer).__name__} {id(observer):x}"
        try:
            self._manager.register(observer, name=name)
            self._manager.check_pending()
            self._require_only_events(observer)
        except (pluggy.PluginValidationError, LowbitError) as error:
            self._manager.unregister(observer)
            raise LowbitError(f"observer {type(observer).__name__}: {' '.join(str(error).split())}") from error
        try:
            yield
        finally:
            self._manager.unregister(observer)

    def _require_only_events(self, observer: object) -> None:
        for caller in self._manager.get_hookcallers(observer) or ():
            if not hasattr(EventHooks, caller.name):
                raise LowbitError(f"{caller.name} is no event; register the object as a plugin instead")


def trace_hook_calls(manager: pluggy.PluginManager) -> None:
    """Print to stderr, from now on, every call of a hook: its arguments, and who is called in which order."""

    def before(hook: str, called: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        who = ", ".join(implementation.plugin_name for implementation in reversed(called)) or "nobody"
        given = ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())
        trace(f"{hook}({given}): {who}")

    def after(outcome: pluggy.Result[Any], hook: str, *_: object) -> None:
        if outcome.exception is not None:
            trace(f"{hook} raised {type(outcome.exception).__name__}: {outcome.exception}")

    manager.add_hookcall_monitoring(before, after)


def trace(text: str) -> None:
    """Print one line of the trace to stderr."""
    print(f"lowbit hook: {text}", file=sys.stderr)


def _short(value: object) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        shown = repr(value)
        return shown if len(shown) <= LONGEST_VALUE else shown[: LONGEST_VALUE - 3] + "..."
    size = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
    return f"<{type(value).__name__}{size}>"

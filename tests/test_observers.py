"""Observers hear events, and one that fails ends nothing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from lowbit import LowbitError, hookimpl
from lowbit.registry import PluginSource, Registry

STEP = "lowbit_distillation_step"


class Witness:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def lowbit_distillation_step(self, step: Any) -> None:
        self.seen.append(step)


class Failing:
    @hookimpl
    def lowbit_distillation_step(self, step: Any) -> None:
        raise OSError("the tracker's server is gone")


class Interrupted:
    @hookimpl
    def lowbit_distillation_step(self, step: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("order", [(Witness, Failing), (Failing, Witness)])
def test_one_that_fails_is_a_single_warning_that_names_it_and_the_others_still_hear(
    order: tuple[type, type], caplog: pytest.LogCaptureFixture
) -> None:
    made = Registry()
    plugins = [kind() for kind in order]
    for plugin in plugins:
        made.register(plugin, PluginSource(type(plugin).__name__, "mine"))
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            made.notify(STEP, step=step)
    [witness] = [plugin for plugin in plugins if isinstance(plugin, Witness)]
    assert witness.seen == [0, 1, 2]
    [record] = caplog.records
    assert record.getMessage() == (
        "plugin 'Failing' of mine failed in lowbit_distillation_step; the run goes on: "
        "OSError: the tracker's server is gone"
    )


def test_an_interrupt_passes() -> None:
    made = Registry()
    made.register(Interrupted(), PluginSource("mine", "mine"))
    with pytest.raises(KeyboardInterrupt):
        made.notify(STEP, step=1)


def test_an_observer_hears_while_it_observes_and_is_no_plugin() -> None:
    made, witness = Registry(), Witness()
    with made.observing(witness):
        made.notify(STEP, step=1)
        assert made.plugins == ()
    made.notify(STEP, step=2)
    assert witness.seen == [1]


class Misspelled:
    @hookimpl
    def lowbit_block_quantised(self, block: Any) -> None: ...


class Decides:
    @hookimpl
    def lowbit_methods(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Misspelled, "lowbit_block_quantised"), (Decides, "lowbit_methods is no event")],
)
def test_an_observer_that_is_none_is_refused_and_forgotten(kind: type, reason: str) -> None:
    made = Registry()
    with pytest.raises(LowbitError, match=f"observer {kind.__name__}: .*{reason}"), made.observing(kind()):
        pass
    with made.observing(Witness()):
        made.notify(STEP, step=1)


def test_the_trace_shows_each_call_its_arguments_and_who_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    made = Registry()
    made.trace()
    made.register(Witness(), PluginSource("mine", "here"))
    made.notify(STEP, step=7)
    made.notify("lowbit_evaluation_started", recipe={"method": "x"}, role="parent", tasks=("piqa",))
    assert capsys.readouterr().err.splitlines() == [
        "lowbit hook: lowbit_distillation_step(step=7): here:mine",
        "lowbit hook: lowbit_evaluation_started(recipe=<dict of 1>, role='parent', tasks=<tuple of 1>): nobody",
    ]


def test_the_variable_turns_the_trace_on() -> None:
    code = "from lowbit.registry import registry; registry().notify('lowbit_distillation_step', step=1)"
    environment = {**os.environ, "LOWBIT_TRACE_PLUGINS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "lowbit hook: lowbit_methods(): lowbit:" in done.stderr
    assert "lowbit hook: lowbit_distillation_step(step=1): nobody" in done.stderr
    assert done.stdout == ""

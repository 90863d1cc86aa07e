"""Of several processes that fail together, the main one alone says why."""

from __future__ import annotations

from typing import Any

import pytest

from lowbit.cli import main
from lowbit.errors import FailedTogetherError, LowbitError


@pytest.mark.parametrize(("rank", "error", "told"), [
    (0, FailedTogetherError, True), (1, FailedTogetherError, False), (1, LowbitError, True),
])  # fmt: skip
def test_a_failure_of_all_processes_is_told_once(
    rank: int, error: type[LowbitError], told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("process 1 of 2 failed")

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(main, "cli", fail)
    with pytest.raises(SystemExit) as ended:
        main.main(["bench"])
    assert ended.value.code == 1
    assert ("lowbit: error: process 1 of 2 failed" in capsys.readouterr().err) == told

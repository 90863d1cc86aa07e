"""The tutorial, followed to the letter: its commands in one shell, its edits in the files that it names."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from docs.code_blocks import CodeBlock, code_blocks
from fresh_environment import NAME, REPOSITORY, PluginEnvironment, plugin_environment, ruff

TUTORIAL = REPOSITORY / "docs" / "tutorial.md"
FIRST_MARK, LAST_MARK = "# --- your idea begins here ---\n", "        # --- your idea ends here ---"
INSTALLATION = "pip install -e '.[test]'\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> PluginEnvironment:
    return plugin_environment(tmp_path_factory)


def edit(quantizer: Path, block: CodeBlock) -> None:
    """Do what the marker above a block of Python says."""
    assert block.reason is not None
    text = quantizer.read_text(encoding="utf-8")
    if "between the two marks" in block.reason:
        before, rest = text.split(FIRST_MARK)
        text = before + FIRST_MARK + block.text + LAST_MARK + rest.split(LAST_MARK)[1]
    elif "added to Config" in block.reason:
        head, rest = text.split("    def quantize(")
        text = f"{head.rstrip()}\n{block.text}\n    def quantize({rest}"
    else:
        assert "end of quantizer.py" in block.reason
        text += f"\n\n{block.text}"
    quantizer.write_text(text, encoding="utf-8")


def test_its_steps_lead_to_a_plugin_that_passes_and_stands_in_the_table(
    environment: PluginEnvironment, tmp_path: Path
) -> None:
    plugin = tmp_path / NAME
    # The installed plugin lends its entry point; this path lets the code that is being edited stand before it.
    lines = ["set -euo pipefail", f"export PYTHONPATH={plugin}"]
    blocks = code_blocks(TUTORIAL)
    assert [block.text for block in blocks if block.text == INSTALLATION], "the tutorial installs the plugin"
    first = next(at for at, block in enumerate(blocks) if block.language == "py")
    last = max(at for at, block in enumerate(blocks) if block.language == "py")
    runs = [[block for block in part if block.reason is None] for part in (blocks[:first], blocks[last:])]
    shell(environment, tmp_path, [*lines, *(block.text for block in runs[0])])
    for block in blocks[first : last + 1]:
        edit(plugin / "lowbit_my_quantizer" / "quantizer.py", block)
    printed = shell(environment, plugin, [*lines, *(block.text for block in runs[1])])
    assert re.search(r"\b\d+ passed", printed)
    assert not re.search(r"\b[1-9]\d* failed", printed)
    leaderboard = printed[printed.rindex("parent") :]
    assert NAME in leaderboard and "rtn" in leaderboard
    assert ruff(plugin) == ""


def shell(environment: PluginEnvironment, cwd: Path, lines: list[str]) -> str:
    """Run lines in one shell of the environment, and return what they printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LOWBIT_", "PYTEST"))}
    variables = {
        **kept,
        "PATH": f"{environment.scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lowbit.cli.plugins_check import check
from lowbit.registry import Registry, registry

REPOSITORY = Path(__file__).resolve().parents[2]
BROKEN = REPOSITORY / "tests" / "testing" / "broken_plugins.py"
EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what a test loads out of the registry again."""
    registry()  # what is installed stays
    loaded: list[object] = []
    register = Registry.register

    def remember(self: Registry, plugin: object, source: object) -> None:
        loaded.append(plugin)
        register(self, plugin, source)  # type: ignore[arg-type]

    monkeypatch.setattr(Registry, "register", remember)
    yield
    for plugin in loaded:
        registry().unregister(plugin)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, list(arguments), standalone_mode=False)


@pytest.mark.parametrize(
    ("name", "file"), [("sign", "sign_quantizer"), ("packed-sign", "sign_format"), ("agreement", "agreement_loss")]
)
def test_the_examples_of_the_documentation_pass(name: str, file: str) -> None:
    result = run(name, "--plugin", str(EXAMPLES / f"{file}.py"))
    assert result.exception is None
    assert result.return_value == 0, result.output
    assert "FAIL" not in result.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken-random", "the same weight from the same seed"),
        ("broken-bits", "claims 1; count them"),
        ("broken-options", "none of secret"),
        ("broken-gradient", "gradients that agree with differences"),
    ],
)
def test_a_broken_plugin_is_refused_with_a_note_that_names_the_fault(name: str, words: str) -> None:
    result = run(name, "--plugin", str(BROKEN))
    assert result.exception is None
    assert result.return_value == 1
    assert words in result.output
    assert "reproduce:" in result.output


def test_a_claim_is_noted_as_one() -> None:
    result = run("sign", "--plugin", str(EXAMPLES / "sign_quantizer.py"))
    assert "note: its 1.125 bits a weight are a claim" in result.output


def test_an_unknown_name_is_one_clear_error() -> None:
    result = run("packed-sing", "--plugin", str(EXAMPLES / "sign_format.py"))
    assert "did you mean packed-sign" in str(result.exception)


def test_a_plugin_that_leaves_the_process_fails_its_checks(tmp_path: Path) -> None:
    leaves = "        raise SystemExit(0)\n        return DenseWeight("
    text = (EXAMPLES / "sign_quantizer.py").read_text().replace("        return DenseWeight(", leaves)
    file = tmp_path / "leaves.py"
    file.write_text(text.replace('"sign"', '"leaves"'))
    result = run("leaves", "--plugin", str(file))
    assert result.exception is None
    assert result.return_value == 1
    assert "got: SystemExit: 0" in result.output

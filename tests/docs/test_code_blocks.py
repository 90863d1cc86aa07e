"""The code blocks of README run, and every command line anywhere in the documentation is one that lowbit takes.

`tests/scaffold/test_tutorial.py` follows the tutorial in an environment of its own.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
import transformers
from docs.code_blocks import CodeBlock, code_blocks
from docs.reader import Reader, lowbit_commands

from lowbit.cli.main import cli
from lowbit.registry import registry

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
RUN = [page for page in (README, TUTORIAL) if page.is_file()]
SHORTEST_REASON = 10


def identify(value: object) -> str:
    if isinstance(value, Path):
        return str(value.relative_to(REPOSITORY))
    return f"line-{value.line}" if isinstance(value, CodeBlock) else str(value)


def blocks(pages: list[Path]) -> list[tuple[Path, CodeBlock]]:
    return [(page, block) for page in pages for block in code_blocks(page)]


def require_accepted(arguments: list[str]) -> None:
    """Let click parse a command line without carrying it out."""
    command: click.Command = cli
    context = click.Context(cli, info_name="lowbit")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        found = command.get_command(context, arguments[0])
        assert found is not None, f"there is no command {arguments[0]!r}"
        command, arguments = found, arguments[1:]
    if not isinstance(command, click.Group) and "--help" not in arguments:
        command.make_context(command.name, list(arguments), resilient_parsing=False)


@pytest.mark.parametrize(("page", "block"), blocks(PAGES), ids=identify)
def test_a_block_that_is_not_run_says_why(page: Path, block: CodeBlock) -> None:
    assert block.reason is None or len(block.reason) >= SHORTEST_REASON
    if page in RUN:
        assert block.language, f"{page.name}, line {block.line}: name the block's language"


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_lowbit_takes_every_command_line_of_a_page(page: Path) -> None:
    for block in code_blocks(page):
        for arguments in lowbit_commands(block):
            try:
                require_accepted(arguments)
            except click.UsageError as error:
                pytest.fail(f"{page.name}, line {block.line}: lowbit {' '.join(arguments)}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_the_recipes_of_a_page_resolve(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in code_blocks(page):
        for arguments in lowbit_commands(block):
            ours = arguments and arguments[0] in ("bench", "quantize") and "--plugin" not in arguments
            if not ours or any("$" in word for word in arguments) or not _known_methods(arguments):
                continue
            if "--grid" in arguments:
                (tmp_path / "grid.yaml").write_text(_grid_of_the_documentation())
                monkeypatch.chdir(tmp_path)
            with pytest.raises(SystemExit) as ended:
                _main([*arguments, "--show_config"])
            shown = capsys.readouterr()
            assert not ended.value.code, f"{page.name}, line {block.line}: {shown.err}"


def _grid_of_the_documentation() -> str:
    return next(block.text for block in code_blocks(DOCS / "grids.md") if block.text.startswith("# grid.yaml"))


def _known_methods(arguments: list[str]) -> bool:
    """Say whether every method is one that is registered here, and not one that the page makes."""
    named = [value for option, value in pairwise(arguments) if option == "--method"]
    return {name for value in named for name in value.split(",")} <= registry().table("method").keys()


def _main(arguments: list[str]) -> None:
    from lowbit.cli.main import main

    main(arguments)


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_python_blocks_are_python(page: Path) -> None:
    for block in code_blocks(page):
        # Signatures of hooks, sketches of classes and lines for the middle of a function are no whole programs.
        whole = "..." not in block.text and "->" not in block.text.split("\n")[0] and not block.text.startswith(" ")
        if block.language == "python" and whole:
            ast.parse(block.text)


@pytest.fixture(scope="module")
def reader(english: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """Runs blocks in a folder that has the models which README speaks of: the first block of a real one."""
    folder = tmp_path_factory.mktemp("reader")
    config = transformers.AutoConfig.from_pretrained(english)
    config.num_hidden_layers = 1
    model = transformers.AutoModelForCausalLM.from_pretrained(english, config=config, dtype="float16")
    for name in ("my-model", "a", "b"):
        model.save_pretrained(folder / name)
        for file in english.glob("*token*"):
            shutil.copy(file, folder / name)
    shutil.copytree(folder / "my-model", folder / "Llama-2-7b-hf")
    substitutions = {"meta-llama/Llama-2-7b-hf": "./Llama-2-7b-hf", "--calibration c4": "--calibration wikitext2"}
    before = registry().plugins
    yield Reader(folder, substitutions, {"LOWBIT_DATA_DIR": str(mirror), "HF_HUB_OFFLINE": "1"})
    for plugin in registry()._manager.get_plugins():
        name = registry()._manager.get_name(plugin)
        if name not in {f"{source.distribution}:{source.plugin}" for source in before}:
            registry().unregister(plugin)


def test_the_blocks_of_the_readme_run_in_their_order(reader: Reader) -> None:
    run = [block for block in code_blocks(README) if block.reason is None]
    assert {block.language for block in run} >= {"bash", "python"}
    for block in run:
        reader.run(block)

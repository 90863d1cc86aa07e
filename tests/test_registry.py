"""Finding plugins and looking things up: what works, and what the messages say when it does not."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit import LowbitError
from lowbit.recipe import build_quantizer, resolve_recipe
from lowbit.registry import KINDS, PLUGINS_VARIABLE, PluginSource, Registry, registry

PLUGIN = '''
"""A first plugin."""

from __future__ import annotations

from lowbit import DenseWeight, Method, WeightQuantizer, hookimpl
from pydantic import BaseModel


class SignQuantizer(WeightQuantizer):
    """One sign a weight and one scale a row."""

    name = "{name}"

    class Config(BaseModel):
        """No options."""

    def quantize(self, weight, statistics, generator):
        return DenseWeight(weight.abs().mean(1, keepdim=True) * weight.sign(), nominal_bits=1.0)


@hookimpl
def lowbit_weight_quantizers():
    yield SignQuantizer


@hookimpl
def lowbit_methods():
    yield Method("{name}", quantizer="{name}")
'''

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make an installed distribution of one module, as package metadata shows it."""
    modules: list[str] = []

    def run(distribution: str, version: str, source: str) -> None:
        module = distribution.replace("-", "_")
        folder = tmp_path / "site"
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[lowbit]\n{module} = {module}\n")
        (folder / f"{module}.py").write_text(source)
        modules.append(module)
        monkeypatch.syspath_prepend(folder)

    yield run
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def plugin_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="sign"))
    return path


def loaded() -> tuple[Registry, list[str]]:
    """A registry with every installed plugin, and the warnings of plugins that are not used."""
    made = Registry()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.load_entry_points()
    return made, [str(warning.message) for warning in caught]


def source_of(text: str) -> str:
    return f"from lowbit import Method, hookimpl\n{text}"


def write_plugin(folder: Path, text: str) -> str:
    path = folder / "broken_plugin.py"
    path.write_text(source_of(text))
    return str(path)


def test_installed_plugins_come_with_their_distribution_and_version() -> None:
    made, _ = loaded()
    source = made.source("method", "rtn")
    assert (source.plugin, source.distribution) == ("baselines", "lowbit")
    assert source.version
    assert source in made.plugins
    assert str(source) == f"'baselines' of lowbit {source.version}"


def test_loading_installed_plugins_twice_changes_nothing() -> None:
    made, _ = loaded()
    plugins = made.plugins
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.load_entry_points()
    assert made.plugins == plugins


def test_a_plugin_file_brings_a_method_that_runs(plugin_file: Path) -> None:
    made, _ = loaded()
    made.load(str(plugin_file))
    recipe = resolve_recipe(made, "sign")
    assert recipe.quantizer is not None
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    quantized = build_quantizer(made, recipe.quantizer.model_dump()).quantize(weight, None, torch.Generator())
    assert quantized.nominal_bits == 1
    assert torch.equal(quantized.dequantize().sign(), weight.sign())
    assert made.format(quantized.format) is type(quantized)


def test_a_plugin_file_is_known_by_its_path_and_content(plugin_file: Path) -> None:
    made = Registry()
    made.load(str(plugin_file))
    source = made.source("method", "sign")
    assert (source.plugin, source.distribution) == ("mine", str(plugin_file))
    assert source.version.startswith("sha256:")
    plugin_file.write_text(PLUGIN.format(name="sign") + "\n# changed\n")
    other = Registry()
    other.load(str(plugin_file))
    assert other.source("method", "sign").version != source.version


def test_a_plugin_file_may_be_named_twice_in_two_ways(plugin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Registry()
    made.load(str(plugin_file))
    monkeypatch.chdir(plugin_file.parent)
    made.load("mine.py")
    made.load("./mine.py")
    assert len(made.plugins) == 1


def test_two_plugin_files_of_the_same_name_keep_apart(tmp_path: Path) -> None:
    made = Registry()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(PLUGIN.format(name=name))
        made.load(str(tmp_path / name / "mine.py"))
    assert [made.quantizer(name).name for name in ("first", "second")] == ["first", "second"]
    modules = {made.quantizer(name).__module__ for name in ("first", "second")}
    assert len(modules) == 2
    assert modules <= sys.modules.keys()


def test_a_module_name_works_like_a_file(plugin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin_file.parent)
    plugin_file.rename(plugin_file.with_name("importable_plugin.py"))
    made = Registry()
    made.load("importable_plugin")
    assert made.method("sign").quantizer == "sign"
    assert made.source("method", "sign") == PluginSource("importable_plugin", "importable_plugin")


def test_naming_an_installed_plugin_again_changes_nothing() -> None:
    made, _ = loaded()
    before = made.plugins
    made.load("lowbit_baselines")
    assert made.plugins == before


def test_the_variable_lists_files_and_modules(plugin_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUGINS_VARIABLE, f" {plugin_file} , lowbit_baselines,")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = registry.__wrapped__()
    assert made.method("sign")
    assert made.method("rtn")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("absent.py", "plugin file absent.py does not exist"),
        ("folder/absent", "plugin file folder/absent does not exist"),
        ("no_such_module_anywhere", "plugin no_such_module_anywhere cannot be imported: ModuleNotFoundError"),
    ],
)
def test_an_absent_plugin_is_refused(target: str, message: str) -> None:
    with pytest.raises(LowbitError, match=message):
        Registry().load(target)


def test_a_file_that_is_no_python_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plugin.txt"
    path.write_text("x = 1")
    with pytest.raises(LowbitError, match=r"must end in .py"):
        Registry().load(str(path))


def test_a_plugin_that_fails_to_import_leaves_nothing_behind(tmp_path: Path) -> None:
    target = write_plugin(tmp_path, "import no_such_module_anywhere")
    before = set(sys.modules)
    made = Registry()
    with pytest.raises(LowbitError, match=r"broken_plugin.py cannot be imported: ModuleNotFoundError"):
        made.load(target)
    assert made.plugins == ()
    assert {name for name in set(sys.modules) - before if "broken_plugin" in name} == set()


BROKEN_PLUGINS = {
    "misspelled hook": (
        "@hookimpl\ndef lowbit_weight_quantizer():\n    yield 1\n",
        "no hook named 'lowbit_weight_quantizer'; did you mean lowbit_weight_quantizers",
    ),
    "unknown argument": (
        "@hookimpl\ndef lowbit_diagnostics(quantised):\n    return {}\n",
        "quantised.*can not be found in the hookspec",
    ),
    "item without a name": (
        "class Nameless:\n    pass\n@hookimpl\ndef lowbit_weight_quantizers():\n    yield Nameless\n",
        "'Nameless' carries no 'name': set it to a non-empty string",
    ),
    "format without a name": (
        "class Nameless:\n    name = 'x'\n@hookimpl\ndef lowbit_formats():\n    yield Nameless\n",
        "'Nameless' carries no 'format'",
    ),
    "empty name": ("@hookimpl\ndef lowbit_methods():\n    yield Method('', quantizer=None)\n", "carries no 'name'"),
    "a hook that fails": (
        "@hookimpl\ndef lowbit_methods():\n    import no_such_module_anywhere\n    yield Method('x', None)\n",
        "lowbit_methods must yield its items, but failed: ModuleNotFoundError",
    ),
    "a hook that returns one class": (
        "@hookimpl\ndef lowbit_weight_quantizers():\n    return Method\n",
        "lowbit_weight_quantizers must yield its items, but failed: TypeError",
    ),
    "a name twice": (
        "@hookimpl\ndef lowbit_methods():\n    yield Method('x', None)\n    yield Method('x', None)\n",
        "two plugins register a method named 'x'",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN_PLUGINS))
def test_a_broken_plugin_is_refused_by_name_and_the_registry_stays_usable(tmp_path: Path, case: str) -> None:
    text, message = BROKEN_PLUGINS[case]
    made, _ = loaded()
    before = {kind: set(made.table(kind)) for kind in KINDS}
    plugins = made.plugins
    with pytest.raises(LowbitError, match=message) as caught:
        made.load(write_plugin(tmp_path, text))
    assert "broken_plugin" in str(caught.value)
    assert made.plugins == plugins
    assert {kind: set(made.table(kind)) for kind in KINDS} == before
    made.load(str(mended(tmp_path)))
    assert made.method("mended")


def mended(folder: Path) -> Path:
    path = folder / "mended.py"
    path.write_text(source_of("@hookimpl\ndef lowbit_methods():\n    yield Method('mended', None)\n"))
    return path


def test_a_clash_of_names_names_both_sides(tmp_path: Path) -> None:
    made, _ = loaded()
    target = write_plugin(tmp_path, "@hookimpl\ndef lowbit_methods():\n    yield Method('rtn', None)\n")
    with pytest.raises(LowbitError, match="two plugins register a method named 'rtn'") as caught:
        made.load(target)
    assert str(made.source("method", "rtn")) in str(caught.value)
    assert target in str(caught.value)
    assert made.method("rtn").quantizer == "rtn"


def test_a_clash_between_installed_distributions_names_both(install: Install) -> None:
    install("lowbit-alpha", "1.0", PLUGIN.format(name="sign"))
    install("lowbit-beta", "2.0", PLUGIN.format(name="sign"))
    made, messages = loaded()
    assert made.source("weight quantizer", "sign").distribution == "lowbit-alpha"
    [message] = [text for text in messages if "'sign'" in text]
    assert "lowbit-alpha 1.0" in message
    assert "lowbit-beta 2.0" in message
    assert [broken.source.distribution for broken in made.broken if "sign" in broken.reason] == ["lowbit-beta"]


def test_an_entry_point_that_cannot_be_imported_is_left_out_with_a_warning(install: Install) -> None:
    install("lowbit-gone", "3.1", "import no_such_module_anywhere")
    made, messages = loaded()
    [message] = [text for text in messages if "lowbit-gone" in text]
    assert "'lowbit_gone' of lowbit-gone 3.1 is not used: ModuleNotFoundError" in message
    assert made.method("rtn")
    with pytest.raises(LowbitError, match=r"Plugins that could not be used: .*lowbit-gone 3.1.*no_such_module"):
        made.method("gone")


def test_an_entry_point_with_a_misspelled_hook_is_left_out_with_the_nearest_hook(install: Install) -> None:
    install("lowbit-typo", "1.0", source_of("@hookimpl\ndef lowbit_packer():\n    yield 1\n"))
    made, messages = loaded()
    assert [text for text in messages if "lowbit-typo" in text and "did you mean lowbit_packers" in text]
    assert made.method("rtn")


def test_an_entry_point_whose_hook_fails_does_not_take_the_others_with_it(install: Install) -> None:
    install(
        "lowbit-aaa", "1.0", source_of("@hookimpl\ndef lowbit_kernels():\n    import no_such_module\n    yield 1\n")
    )
    made, messages = loaded()
    assert [text for text in messages if "lowbit-aaa" in text and "lowbit_kernels must yield" in text]
    assert made.method("rtn")
    assert made.kernels()


def test_without_one_plugin_only_its_methods_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = loaded()
    gone = {m.name for m in whole.methods() if whole.source("method", m.name).plugin == "dbllm"}
    assert gone
    monkeypatch.setitem(sys.modules, "lowbit_dbllm", None)
    rest, _ = loaded()
    assert {m.name for m in rest.methods()} == {m.name for m in whole.methods()} - gone
    for method in rest.methods():
        assert resolve_recipe(rest, method.name).method == method.name
    for name in gone:
        with pytest.raises(LowbitError, match="'dbllm' of lowbit"):
            rest.method(name)


@pytest.mark.parametrize(
    ("look_up", "name", "message"),
    [
        (Registry.method, "rtm", "there is no method named 'rtm'; did you mean rtn"),
        (Registry.quantizer, "rtnn", "there is no weight quantizer named 'rtnn'; did you mean rtn"),
        (Registry.format, "unifrom", "there is no format named 'unifrom'; did you mean uniform"),
        (Registry.packer, "zzzz", "there is no packer named 'zzzz'; known: "),
        (Registry.calibration_source, "zzzz", "there is no calibration source named 'zzzz'; known: "),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(look_up: Any, name: str, message: str) -> None:
    made, _ = loaded()
    with pytest.raises(LowbitError, match=message):
        look_up(made, name)


def test_kernels_come_in_the_order_of_priority(tmp_path: Path) -> None:
    made = Registry()
    classes = "".join(f"class K{p}:\n    name = 'k{p}'\n    priority = {p}\n" for p in (1, 3, 2))
    path = tmp_path / "kernels.py"
    path.write_text(
        f"from lowbit import hookimpl\n{classes}@hookimpl\ndef lowbit_kernels():\n    yield from (K1, K3, K2)\n"
    )
    made.load(str(path))
    assert [kernel.name for kernel in made.kernels()] == ["k3", "k2", "k1"]

import importlib.metadata
import sys

import pytest

from embedloss import plugins
from embedloss.errors import EmbedlossError
from embedloss.plugins import PluginManager

GOOD = """
from embedloss import LossSpec, hookimpl

@hookimpl
def embedloss_register_losses():
    return [LossSpec(name="from-a-file", target="embedloss_local_{stem}:X", summary="s", family="f", formats=["pairs"])]
"""


class Point:
    """An entry point whose module is made by a function."""

    def __init__(self, name, load, distribution="some-dist"):
        self.name, self.module = name, name
        self.load = load
        self.dist = type("D", (), {"name": distribution, "version": "1.2"})()


def module(**functions):
    found = type(sys)("some_plugin")
    for name, function in functions.items():
        setattr(found, name, function)
    return found


@pytest.fixture
def load(monkeypatch):
    def run(*points):
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: list(points))
        manager = PluginManager()
        manager.load_installed()
        return manager

    return run


def losses(*names):
    from embedloss import LossSpec, hookimpl

    @hookimpl
    def embedloss_register_losses():
        return [LossSpec(name=n, target="a:b", summary="s", family="f", formats=["pairs"]) for n in names]

    return embedloss_register_losses


def test_a_good_plugin(load):
    manager = load(Point("good", lambda: module(embedloss_register_losses=losses("one", "two"))))
    [plugin] = manager.plugins
    assert plugin.to_json() == {
        "distribution": "some-dist",
        "version": "1.2",
        "name": "good",
        "status": "loaded",
        "reason": "",
        "warnings": [],
        "losses": ["one", "two"],
    }
    assert [s.distribution for s in plugin.losses] == ["some-dist", "some-dist"]


def boom(exception):
    def load():
        raise exception

    return load


@pytest.mark.parametrize(
    ("exception", "reason"),
    [
        (ImportError("no module named x"), "ImportError: no module named x"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError(), "ValueError"),
        (RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_a_plugin_that_fails_stops_no_other(load, exception, reason):
    manager = load(
        Point("bad", boom(exception), "bad-dist"), Point("good", lambda: module(embedloss_register_losses=losses("one")))
    )
    bad, good = manager.plugins
    assert (bad.status, bad.reason, bad.losses) == ("failed", reason, [])
    assert (good.status, len(good.losses)) == ("loaded", 1)


def test_ctrl_c_is_not_swallowed(load):
    with pytest.raises(KeyboardInterrupt):
        load(Point("bad", boom(KeyboardInterrupt())))


def test_an_unknown_hook_is_a_failure_that_names_the_hooks(load):
    from embedloss import hookimpl

    @hookimpl
    def embedloss_register_loses():
        return []

    [plugin] = load(Point("typo", lambda: module(embedloss_register_loses=embedloss_register_loses))).plugins
    assert plugin.status == "failed"
    assert "embedloss_register_loses" in plugin.reason
    assert "embedloss_register_losses" in plugin.reason


def test_a_wrong_return_value_is_a_failure(load):
    from embedloss import hookimpl

    @hookimpl
    def embedloss_register_losses():
        return ["mnrl"]

    [plugin] = load(Point("wrong", lambda: module(embedloss_register_losses=embedloss_register_losses))).plugins
    assert plugin.status == "failed"
    assert "returned str, not LossSpec" in plugin.reason


def test_output_of_a_plugin_does_not_reach_stdout(load, capsys):
    def noisy():
        print("hello")
        return module(embedloss_register_losses=losses("one"))

    [plugin] = load(Point("noisy", noisy)).plugins
    assert capsys.readouterr().out == ""
    assert "printed" in plugin.warnings[0]


def test_a_slow_plugin_is_named(load, monkeypatch):
    monkeypatch.setattr(plugins, "SLOW_SECONDS", -1.0)
    [plugin] = load(Point("slow", lambda: module(embedloss_register_losses=losses("one")))).plugins
    assert "import torch?" in plugin.warnings[0]


@pytest.mark.parametrize("value", ["some-dist", "Some_Dist", "other, some-dist", "*"])
def test_disabled_by_name_of_the_distribution(load, monkeypatch, value):
    monkeypatch.setenv("EMBEDLOSS_DISABLE_PLUGINS", value)
    [plugin] = load(Point("good", boom(AssertionError("must not be loaded")))).plugins
    assert plugin.status == "disabled"


def test_a_local_file(tmp_path):
    file = tmp_path / "my_loss.py"
    file.write_text(GOOD.replace("{stem}", "my_loss"), encoding="utf-8")
    manager = PluginManager()
    plugin = manager.load_file(file)
    assert [s.name for s in plugin.losses] == ["from-a-file"]
    assert manager.load_file(file) is plugin  # twice is once


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "does not exist"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_local_file_must_work(tmp_path, content, part):
    file = tmp_path / "broken_loss.py"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(EmbedlossError) as caught:
        PluginManager().load_file(file)
    assert caught.value.code == "E205"
    assert part in caught.value.message
    assert "embedloss_local_broken_loss" not in sys.modules

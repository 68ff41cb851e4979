import subprocess
import sys

import pytest

from embedloss.plugins import plugin_manager
from embedloss_cli.app import COMMANDS, build_app, command_name

PLUGIN = """
from embedloss import LossSpec, hookimpl
from embedloss.loss import Loss

SPEC = LossSpec(name="my-own", target="embedloss_local_{stem}:MyOwn", summary="mine", family="mine", formats=["pairs"])

class MyOwn(Loss):
    spec = SPEC
    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = margin
    def compute(self, emb, labels):
        return emb.own("anchor").mean()

@hookimpl
def embedloss_register_losses():
    return [SPEC]

@hookimpl
def embedloss_register_commands(app):
    {body}
"""
COMMAND = """
    @app.command()
    def hello(name: str) -> None:
        "Greet."
        print("hello", name)
"""


@pytest.fixture(autouse=True)
def forget():
    manager = plugin_manager()
    before = list(manager.plugins)
    yield
    for plugin in [p for p in manager.plugins if p not in before]:
        manager.unregister(plugin)


@pytest.fixture
def plugin(write):
    return lambda body=COMMAND, name="my_plugin.py": write(name, PLUGIN.replace("{body}", body).replace("{stem}", name[:-3]))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--plugin", "my_plugin.py", "show", "my-own"],
        ["show", "my-own", "--plugin", "my_plugin.py"],
        ["show", "--plugin=my_plugin.py", "my-own"],
    ],
)
def test_a_file_before_or_after_the_command(run, plugin, arguments):
    plugin()
    result = run(*arguments)
    assert (result.status, result.err) == (0, "")
    assert "margin  default 0.5" in result.out


def test_its_losses_are_listed_and_checked(run, plugin, write):
    plugin()
    write("a.jsonl", [{"anchor": f"a {i}", "positive": f"b {i}"} for i in range(3)])
    assert "my-own" in run("list", "--plugin", "my_plugin.py").out
    result = run("check", "a.jsonl", "--loss", "my-own(margin=2)", "--plugin", "my_plugin.py")
    assert (result.status, result.err) == (0, "")


def test_its_commands(run, plugin):
    plugin()
    assert run("--plugin", "my_plugin.py", "hello", "you").out == "hello you\n"
    assert "Greet." in run("--plugin", "my_plugin.py", "--help").out


@pytest.mark.parametrize("body", ["    raise ValueError('no')\n", "    raise SystemExit(3)\n", "    app.no_such_method()\n"])
def test_commands_that_cannot_be_added_are_reported_and_stop_nothing(run, plugin, body):
    plugin(body)
    assert "my-own" in run("--plugin", "my_plugin.py", "list").out
    result = run("--plugin", "my_plugin.py", "--help")
    assert result.status == 0
    assert "its commands cannot be added" in result.err
    assert "its commands cannot be added" in run("--plugin", "my_plugin.py", "plugins").out


def test_a_command_of_this_package_needs_no_other_module():
    for name, module in COMMANDS.items():
        (command,) = build_app(name).registered_commands
        assert command_name(command) == name
        assert command.callback.__module__ == f"embedloss_cli.{module}"
    assert [command_name(c) for c in build_app(with_plugins=False).registered_commands] == list(COMMANDS)
    script = "import sys; from embedloss_cli.__main__ import run; run(['formats']); print('embedloss_cli.new' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_command_added_before_the_failure_is_taken_back(run, plugin):
    plugin(COMMAND + "\n    raise ValueError('no')\n")
    assert run("--plugin", "my_plugin.py", "hello", "you").status == 2


@pytest.mark.parametrize(
    ("content", "part"), [(None, "does not exist"), ("def (", "SyntaxError"), ("import nothing_like_it", "ModuleNotFoundError")]
)
def test_a_file_that_cannot_be_used(run, write, content, part):
    if content is not None:
        write("broken_plugin.py", content)
    result = run("list", "--plugin", "broken_plugin.py")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("E205: ")
    assert part in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("command", ["train", "list", "init-static"])
def test_help_of_a_command_is_what_the_parser_says(run, command):
    short = run(command, "--help")
    assert short.status == 0
    assert "Usage: embedloss " + command in short.out
    assert "-h" in short.out
    assert short.out == run(command, "--help", "--help").out == run(command, "-h").out

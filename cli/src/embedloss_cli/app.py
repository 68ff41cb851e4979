"""The typer application: commands of this package, then those of plugins."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core

from embedloss_cli.output import note

# Each command and the module of this package that registers it, in the order of the help. The module of the command that is
# asked for is the only one imported.
COMMANDS = {
    "list": "list_commands",
    "show": "list_commands",
    "formats": "list_commands",
    "plugins": "list_commands",
    "explain": "list_commands",
    "check": "data_commands",
    "demo-data": "data_commands",
    "suggest": "suggest",
    "convert": "convert",
    "mine": "mine",
    "train": "train_command",
    "compare": "compare",
    "evaluate": "evaluate",
    "tune": "tune",
    "encode": "model_commands",
    "search": "model_commands",
    "replay": "model_commands",
    "init-static": "model_commands",
    "rank": "rank",
    "report": "report",
    "new": "new",
    "conformance": "conformance",
}


class Group(typer.core.TyperGroup):
    """Commands in the order in which they are registered."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in order of registration."""
        return list(self.commands)


def _version(value: bool) -> None:
    if value:
        import embedloss

        print(f"embedloss {embedloss.__version__}")
        raise typer.Exit()


def _root(
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", metavar="FILE", help="Load a Python file as a plugin; before or after the command, repeatable."
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Train text-embedding models and rerankers; losses are plugins.

    A first session: embedloss demo-data demo, then embedloss list, then
    embedloss train --help.
    """


def build_app(asked: str | None = None, with_plugins: bool = True) -> typer.Typer:
    """The application; with a command of this package as `asked`, that command alone: each takes milliseconds to build.

    A plugin whose commands cannot be added is reported on stderr and stops nothing.
    """
    app = typer.Typer(
        name="embedloss",
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    modules = dict.fromkeys(COMMANDS.values()) if asked not in COMMANDS else [COMMANDS[asked]]
    for module in modules:
        import_module(f"embedloss_cli.{module}").register(app)
    if asked in COMMANDS:
        app.registered_commands = [c for c in app.registered_commands if command_name(c) == asked]
    # `plugins` tells what is wrong with a plugin, so it has to try.
    if with_plugins and (asked not in COMMANDS or asked == "plugins"):
        _register_plugin_commands(app)
    return app


def command_name(command: Any) -> str:
    """What a user types for a registered command."""
    return str(command.name or getattr(command.callback, "__name__", ""))


def _register_plugin_commands(app: typer.Typer) -> None:
    from embedloss.plugins import plugin_manager

    manager = plugin_manager()
    for implementation in manager.hook.embedloss_register_commands.get_hookimpls():
        before = list(app.registered_commands), list(app.registered_groups)
        try:
            implementation.function(*([app] if implementation.argnames else []))
        except KeyboardInterrupt:
            raise
        except BaseException as exception:  # a stranger's plugin may raise anything, also SystemExit
            app.registered_commands, app.registered_groups = before
            owner = next((p for p in manager.plugins if p.module is implementation.plugin), None)
            name = owner.distribution if owner else str(implementation.plugin_name)
            note(f"plugin '{name}': its commands cannot be added: {type(exception).__name__}: {exception}")
            if owner is not None:
                owner.warnings.append(f"its commands cannot be added: {type(exception).__name__}: {exception}")
    sys.stderr.flush()

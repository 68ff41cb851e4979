"""The typer application: commands of this package, then those of plugins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core

from embedloss_cli import (
    compare,
    conformance,
    convert,
    data_commands,
    evaluate,
    list_commands,
    mine,
    model_commands,
    new,
    rank,
    report,
    suggest,
    train_command,
    tune,
)
from embedloss_cli.output import note


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


def build_app(with_plugins: bool = True) -> typer.Typer:
    """The application. A plugin whose commands cannot be added is reported on stderr and stops nothing."""
    app = typer.Typer(
        name="embedloss",
        cls=Group,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    list_commands.register(app)
    data_commands.register(app)
    suggest.register(app)
    convert.register(app)
    mine.register(app)
    train_command.register(app)
    compare.register(app)
    evaluate.register(app)
    tune.register(app)
    model_commands.register(app)
    rank.register(app)
    report.register(app)
    new.register(app)
    conformance.register(app)
    if with_plugins:
        _register_plugin_commands(app)
    return app


def keep_named(app: typer.Typer, arguments: Sequence[str]) -> None:
    """Leave only the command that the arguments begin with, if they do: each takes milliseconds to build."""
    asked = next(iter(arguments), "")
    named = [c for c in app.registered_commands if (c.name or getattr(c.callback, "__name__", "")) == asked]
    if named:
        app.registered_commands, app.registered_groups = named, []


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

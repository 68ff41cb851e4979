"""Entry point: `embedloss` and `python -m embedloss_cli`."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer.main

from embedloss.errors import EmbedlossError
from embedloss_cli.output import note, print_error

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def plugin_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take every `--plugin FILE` out of the arguments, wherever it stands; returns the rest and the files."""
    rest: list[str] = []
    files: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            rest += [argument, *waiting]
        elif argument == "--plugin":
            value = next(waiting, None)
            if value is None:
                rest.append(argument)  # the parser says that a value is missing
            else:
                files.append(value)
        elif argument.startswith("--plugin="):
            files.append(argument.removeprefix("--plugin="))
        else:
            rest.append(argument)
    return rest, files


def with_values(arguments: Sequence[str]) -> list[str]:
    """`--recompute auto` as `--set recompute=auto`: a switch that may have a value is more than the parser knows."""
    made: list[str] = []
    for argument in arguments:
        if made and made[-1] == "--recompute" and argument in ("auto", "true", "false"):
            made[-1:] = ["--set", f"recompute={argument}"]
        elif argument.startswith("--recompute="):
            made += ["--set", argument[2:]]
        else:
            made.append(argument)
    return made


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    from embedloss_cli import app, options

    try:
        rest, files = plugin_files(arguments)
        if files:
            from embedloss.plugins import plugin_manager

            for file in files:
                plugin_manager().load_file(file)
        options.PLUGIN_FILES[:] = files
        application = app.build_app(next(iter(rest), None))
        command: Any = typer.main.get_command(application)
        if len(rest) == 2 and rest[0] in app.COMMANDS and rest[1] in ("-h", "--help"):
            # The parser would say the same, but needs a tenth of a second for the types of the options.
            named = command.commands[rest[0]]
            root = command.context_class(command, info_name="embedloss", **command.context_settings)
            print(named.get_help(command.context_class(named, info_name=rest[0], parent=root, **named.context_settings)))
            return 0
        result = command.main(args=with_values(rest), prog_name="embedloss", standalone_mode=True)
        return result if isinstance(result, int) else 0
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    except EmbedlossError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has closed it; Python must not complain about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        where = f" '{error.filename}'" if error.filename else ""
        print_error(EmbedlossError("E402", f"cannot write{where}: {error.strerror}."))
        return 1


def main() -> None:
    """Run the command of `sys.argv`."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 141
    if status == 130:
        note("interrupted")
    sys.exit(status)


if __name__ == "__main__":
    main()

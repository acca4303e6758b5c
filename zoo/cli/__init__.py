"""The command ``zoo``: ``zoo VERB MODEL [inputs] [-o OUT] [-O key=value]``.

Each verb's module is imported when the verb runs, so that ``zoo --help`` and ``zoo list`` start at
once. Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import builtins
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

import click

from ..errors import ZooError

VERBS = {
    # verb: (module, one line for --help)
    "list": ("catalogue", "List the known models."),
    "info": ("catalogue", "Show a model's description, licence, options and files."),
    "plugins": ("catalogue", "List the installed plugins and their faults."),
    "upscale": ("upscale", "Enlarge images."),
    "align": ("align", "Fit a model to images and their texts."),
    "classify": ("classify", "Sort photos by the classes of a fitted model, or by your labels."),
    "quantize": ("quantize", "Quantize a language model to a few bits."),
    "select": ("select", "Learn which training examples deserve weight for a target set."),
    "detect": ("detect", "Find objects in images."),
    "qa": ("qa", "Make questions and answers from texts."),
    "eval": ("evaluate", "Measure a model on your own data, and show the worst items."),
    "train": ("work", "Train a model with its method's recipe."),
    "bench": (
        "bench",
        "Run the experiment behind a method's claim, or compare all models of a kind.",
    ),
    "export": ("work", "Write a model in a format for other runtimes."),
    "pull": ("work", "Download a model's weights."),
    "verify": ("work", "Check a model's weights and its output on a known input."),
    "run": ("work", "Run one of a method's own commands."),
    "card": ("cards", "Write or check a model's card."),
    "publish": ("cards", "Upload a model and its card to the Hub, and pin the commit."),
    "install": ("install", "Install a plugin with pip, into this environment."),
    "uninstall": ("install", "Remove a plugin."),
    "cache": ("cache", "Show or free the disk space of downloaded weights."),
    "new": ("new", "Create a plugin project with a working model and its tests."),
    "doctor": ("doctor", "Check this installation for faults."),
    "demo": ("demo", "Upscale a photograph and write a comparison."),
}


def command_of(verb: str) -> click.Command:
    """The command of a verb; its function's name ends in an underscore if Python has that name."""
    name = f"{verb}_" if hasattr(builtins, verb) else verb
    command: click.Command = getattr(import_module(f"zoo.cli.{VERBS[verb][0]}"), name)
    return command


class _Verbs(click.Group):
    """Finds a verb's command by name; ``--help`` lists the table above without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        return command_of(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from ..entry import near

            hint = near(args[0], VERBS)
            ctx.fail(
                f"no such verb: {args[0]!r}." + (f" Did you mean {hint[0]!r}?" if hint else "")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from .. import __version__

        click.echo(f"zoo {__version__}")
        ctx.exit()


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks. Works anywhere.")
def cli() -> None:
    """Published vision and language methods, each an installable plugin.

    `zoo VERB --help` explains a verb. A MODEL is a name from `zoo list`, DIST:NAME, a saved folder
    such as ./my-model, or the Hub id of a published model (ORG/NAME).
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; the entry point of the script ``zoo``."""
    args = list(sys.argv[1:] if argv is None else argv)
    end = args.index("--") if "--" in args else len(args)
    debug = "--debug" in args[:end]
    args = [word for word in args[:end] if word != "--debug"] + args[end:]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character shows a "?" for it
            stream.reconfigure(errors="replace")
    if "_ZOO_COMPLETE" in os.environ:  # click's shell completion
        cli.main(args, prog_name="zoo")
    try:
        # Not cli.main: it treats any EOFError as Ctrl-C, and a closed pipe as a failure.
        with warnings.catch_warnings(), cli.make_context("zoo", args) as context:
            warnings.showwarning = _show_warning
            cli.invoke(context)
        sys.exit(0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:  # training says how to continue
        _say(f"interrupted. {error}" if str(error) else "interrupted; no partial file is left.")
        sys.exit(130)
    except BrokenPipeError:  # `zoo list | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except click.ClickException as error:
        if len(error.format_message().splitlines()) > 1:  # `zoo` alone: the message is the help
            error.show()
        else:
            context_of = getattr(error, "ctx", None)
            path = context_of.command_path if context_of else "zoo"
            _say(f"{error.format_message()} (`{path} --help` explains)")
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        elif isinstance(error, ZooError):
            _say(str(error))
        elif isinstance(error, OSError) and error.filename is not None and error.strerror:
            # A name too long or an unreadable folder: wrong input, not a fault of zoo.
            _say(f"{error.filename}: {error.strerror}. (--debug shows where)")
        elif (extra := _extra_with(error)) is not None:
            _say(f'{error}. Run: pip install "{extra}"')
        else:
            text = " ".join(str(error).split())
            _say(
                f"unexpected {type(error).__name__}: {text} (--debug shows where; please report it"
                f"{_to_whom(error)})"
            )
        sys.exit(error.exit_code if isinstance(error, ZooError) else 1)


def _to_whom(error: Exception) -> str:
    """`` to DIST`` if an error comes from a third-party plugin, else nothing."""
    from traceback import walk_tb

    from ..registry import catalogue

    with suppress(Exception):  # finding plugins may be what failed
        strangers = {p.package: p.distribution for p in catalogue().plugins if not p.first_party}
        for frame, _ in walk_tb(error.__traceback__):
            package = frame.f_globals.get("__name__", "").partition(".")[0]
            if package in strangers:
                return f" to {strangers[package]}"
    return ""


def _extra_with(error: Exception) -> str | None:
    """zoo's extra that provides the missing package, or None."""
    from ..installed import extras_with
    from ..plugins import HOST

    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    found = extras_with(HOST, error.name.split(".")[0])
    return f"{HOST}[{found[0]}]" if found else None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Show a warning for users in plain words, and any other with its source line."""
    if category is UserWarning:
        _say(f"warning: {message}")
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True)


def _say(text: str) -> None:
    click.echo(f"zoo: {text}", err=True)

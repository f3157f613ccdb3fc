"""The `ostler` command: one file for each verb, loaded when that verb is used.

Whatever goes wrong ends with one line that says what and what to do: exit code 2 for what the user
can change, 3 when the guest failed, 4 when we did, 128 + N as if by signal N: 141 where nobody
reads what we print.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import typer

from ostler import __version__
from ostler.errors import GuestError, OstlerError, WaitTimeout

BAD_INPUT, GUEST_FAILED, DEFECT = 2, 3, 4
DEBUG_VARIABLE = "OSTLER_DEBUG"


@dataclass(frozen=True, slots=True)
class Verb:
    """`ostler NAME`: the module and the attribute in it that is the command, and its one-line help.

    The attribute is a function, or a `typer.Typer` where there are verbs below it. If it `builds`,
    it makes that `typer.Typer` for one of them.
    """

    module: str
    attribute: str
    help: str
    builds: bool = False


VERBS = {
    "run": Verb("ostler.cli.run", "run", "Boot a kernel in a virtual machine."),
    "host": Verb("ostler.cli.host", "app", "Look at the machine that guests run on."),
    "net": Verb("ostler.cli.net", "app", "Look at the machines' networks."),
    "image": Verb("ostler.cli.image", "build_app", "Make images for guests.", builds=True),
}


def build_app(verb: str | None, below: str | None = None) -> typer.Typer:
    """The command line, with `verb` loaded and the others by name and help only.

    `below` is the verb that follows it, if one does.
    """
    app = typer.Typer(
        name="ostler",
        help="Ostler: virtual machines, from Python and from here.",
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
    )
    app.callback()(_options)
    for name, known in VERBS.items():
        if name != verb:
            app.command(name, help=known.help)(_not_loaded)
            continue
        loaded = getattr(import_module(known.module), known.attribute)
        loaded = loaded(below) if known.builds else loaded
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=name)
        else:
            app.command(name)(loaded)
    return app


def invoke(arguments: Sequence[str]) -> int:
    """Run the command line `arguments`; the exit code."""
    words = [word for word in arguments if not word.startswith("-")]
    verb, below = (*words, None, None)[:2]
    try:
        result = build_app(verb, below)(list(arguments), prog_name="ostler", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except GuestError as error:
        return _fail(str(error), GUEST_FAILED)
    except WaitTimeout as error:
        return _fail(str(error), GUEST_FAILED)
    except OstlerError as error:
        return _fail(str(error), BAD_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except typer.TyperException as error:
        return _usage(error, verb)
    except SystemExit as ended:
        # That is how typer ends when nobody reads on, `| head` say: ours is the code of SIGPIPE.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        return output_closed()
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return _fail(f"defect: {what}; please report it with {DEBUG_VARIABLE}=1's output", DEFECT)


def output_closed() -> int:
    """The exit code where nobody reads what is printed; what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def main() -> None:
    """The entry point of the `ostler` program."""
    sys.exit(invoke(sys.argv[1:]))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ostler {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False,
        "--version",
        help="Print the version and exit.",
        callback=_print_version,
        is_eager=True,
    ),
) -> None:
    """What stands before the verb."""


def _not_loaded() -> None:
    """Stands for a verb in the list of verbs."""


def _usage(error: typer.TyperException, verb: str | None) -> int:
    """What was typed does not parse; a verb that needs more gets its help text."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return BAD_INPUT
    from ostler.cli.usage import explain

    return _fail(explain(error, f"ostler {verb}" if verb in VERBS else "ostler"), BAD_INPUT)


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"ostler: {' '.join(message.split())}\n")
    return code

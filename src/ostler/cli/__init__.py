"""The `ostler` command: one file for each verb, loaded when that verb is used.

Whatever goes wrong ends with one line that says what and what to do: exit code 2 for what the user
can change, 3 when the guest failed, 4 when we did, 128 + N as if by signal N: 141 where nobody
reads what we print.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ostler import __version__
from ostler.errors import GuestError, OstlerError, WaitTimeout

if TYPE_CHECKING:
    import typer

BAD_INPUT, GUEST_FAILED, DEFECT = 2, 3, 4
CHECK_FAILED = 1
DEBUG_VARIABLE = "OSTLER_DEBUG"
GARBAGE = 50_000
"""New objects after which there may be garbage to collect."""
LOST_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Verb(NamedTuple):
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
    import typer

    from ostler.cli.declare import for_typer

    app = typer.Typer(
        name="ostler",
        help="Ostler: virtual machines, from Python and from here.",
        rich_markup_mode=None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
    )
    app.callback()(_main_options())
    for name, known in VERBS.items():
        if name != verb:
            app.command(name, help=known.help)(_not_loaded)
            continue
        loaded = getattr(import_module(known.module), known.attribute)
        loaded = loaded(below) if known.builds else loaded
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=name)
        else:
            app.command(name)(for_typer(loaded))
    return app


def invoke(arguments: Sequence[str]) -> int:
    """Run the command line `arguments`; the exit code."""
    words = [word for word in arguments if not word.startswith("-")]
    verb, below = (*words, None, None)[:2]
    try:
        result = _run(arguments, verb, below)
        return result if isinstance(result, int) else 0
    except GuestError as error:
        return _fail(str(error), GUEST_FAILED)
    except WaitTimeout as error:
        return _fail(str(error), GUEST_FAILED)
    except OstlerError as error:
        return _fail(str(error), _bad_input(verb, below))
    except KeyboardInterrupt:
        _cancel_jobs()
        return _fail("interrupted", 130)
    except Terminated:
        _cancel_jobs()
        return _fail("terminated", 128 + signal.SIGTERM)
    except BrokenPipeError:
        return output_closed()
    except SystemExit as ended:
        # That is how typer ends when nobody reads on, `| head` say: ours is the code of SIGPIPE.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        return output_closed()
    except OSError as error:
        # What is done to a file is an error of ours with its name.
        if error.errno not in LOST_OUTPUT or error.filename is not None:
            return _unforeseen(error)
        output_closed()
        cure = "make room or send it elsewhere"
        return _fail(f"what is printed cannot be written: {error.strerror}; {cure}", BAD_INPUT)
    except Exception as error:
        if (code := _said_by_typer(error, verb, below, arguments)) is not None:
            return code
        return _unforeseen(error)


def _bad_input(verb: str | None, below: str | None) -> int:
    """The exit code for what the user can change: 2, but that of `image check` is damage."""
    return CHECK_FAILED if (verb, below) == ("image", "check") else BAD_INPUT


def _unforeseen(error: Exception) -> int:
    """The exit code for what nobody thought of."""
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return _fail(f"defect: {what}; please report it with {DEBUG_VARIABLE}=1's output", DEFECT)


def _run(arguments: Sequence[str], verb: str | None, below: str | None) -> Any:
    """What the verb returns; a plain command line is read without typer, which loads slowly."""
    if arguments and (act := _plain(*arguments)) is not None:
        return act()
    app = build_app(verb, below)
    return app(list(arguments), prog_name="ostler", standalone_mode=False)


def _plain(verb: str, *words: str) -> Callable[[], Any] | None:
    """The verb with its arguments; `None` where typer has to read them."""
    if verb == "image":
        from ostler.cli.image import quick

        return quick(words)
    if verb != "run":
        return None
    from ostler.cli.quick import read
    from ostler.cli.run import run

    found = read(run, words)
    return None if found is None else partial(run, **found)


def _said_by_typer(
    error: Exception, verb: str | None, below: str | None, arguments: Sequence[str]
) -> int | None:
    """The exit code for what typer raises; `None` for all else. It is loaded if it raised."""
    typer = sys.modules.get("typer")
    if typer is None:
        return None
    if isinstance(error, typer.Abort):
        return _fail("interrupted", 130)
    if not isinstance(error, typer.TyperException):
        return None
    return _usage(error, verb, arguments, _bad_input(verb, below))


class Terminated(BaseException):
    """SIGTERM came: as with Ctrl-C all is cleared away, but typer has no code of its own for it."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def _cancel_jobs() -> None:
    """End what was being done, if Ctrl-C came before or after anybody waited for it."""
    if jobs := sys.modules.get("ostler.block.jobs.job"):
        jobs.cancel_all()


def output_closed() -> int:
    """The exit code where nobody reads what is printed; what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def main() -> None:
    """The entry point of the `ostler` program."""
    if sys.argv[1:2] != ["image"]:
        sys.exit(invoke(sys.argv[1:]))
    # A machine has its own way to end.
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    # What is imported is no garbage; to look through it takes longer than many a verb.
    gc.set_threshold(GARBAGE)
    _leave(invoke(sys.argv[1:]))


def _leave(code: int) -> NoReturn:
    """End the process at once: the verb has closed what it used, and the interpreter is slow."""
    try:
        # There is none where the descriptor was closed.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except BrokenPipeError:
        code = output_closed()
    os._exit(code)


def _main_options() -> Any:
    """What stands before the verb, as typer takes it."""
    import typer

    def print_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"ostler {__version__}")
            raise typer.Exit

    def options(
        version: bool = typer.Option(
            False,
            "--version",
            help="Print the version and exit.",
            callback=print_version,
            is_eager=True,
        ),
    ) -> None:
        """What stands before the verb."""

    return options


def _not_loaded() -> None:
    """Stands for a verb in the list of verbs."""


def _usage(error: typer.TyperException, verb: str | None, words: Sequence[str], code: int) -> int:
    """What was typed does not parse; a verb that needs more gets its help text."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(error.format_message() + "\n")
        return code
    from ostler.cli.usage import explain

    command = f"ostler {verb}" if verb in VERBS else "ostler"
    return _fail(explain(error, command, words), code)


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"ostler: {' '.join(message.split())}\n")
    return code

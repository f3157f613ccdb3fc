"""What is said of a command line that does not parse: one line with cause and cure, in our words.

typer tells its errors apart by classes that it does not export, so they are known by name here; one
of a later version that has another name is passed on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer

EXTRA = re.compile(r"unexpected extra argument\S* \((.*)\)")
# How like an option (difflib's ratio) what was typed has to be; below it come other words.
SLIP = 0.75
# What other programs call it.
SYNONYMS = {"-m": "memory", "--smp": "cpus", "-smp": "cpus"}
# What qemu-img has and `ostler image` says in another way, or has no use for.
OF_QEMU_IMG = {
    "--image-opts": "name the image by its path or URL, and its format with -f",
    "--target-image-opts": "name the target by its path or URL, and its format with -O",
    "--object": "give an encrypted image's passphrase with --key-file PATH",
    "--force": "leave it out: what is changed here is never lost by that",
    "-i": "leave it out: there is one way in which requests are made",
    "-n": "leave it out: there is one way in which requests are made",
    "--no-drain": "leave it out: a flush waits for no request after it",
    "-C": "leave it out: the kernel copies by itself where it can",
}
# What QEMU has and `ostler run` says in another way, or does by itself.
OF_QEMU = {
    "-nographic": "leave it out: this terminal is the serial console",
    "-display": "leave it out: this terminal is the serial console",
    "-enable-kvm": "give --accel kvm, or leave it out: auto takes it where it is fast",
    "-drive": "give --disk PATH",
    "-hda": "give --disk PATH",
    "-cdrom": "give --disk PATH,media=cdrom",
    "-blockdev": "give --disk PATH",
    "-netdev": "give --net KIND, or leave it out: user mode networking is there by default",
    "-nic": "give --net KIND, or leave it out: user mode networking is there by default",
    "-virtfs": "give --share DIR:TAG",
    "-monitor": "leave it out: Ctrl-A h shows what this terminal can ask for",
    "-daemonize": "leave it out: run it in the background as any other process",
}
NO_COMMAND = re.compile(r"No such command '([^']*)'")


def explain(error: typer.TyperException, command: str, words: Sequence[str] = ()) -> str:
    """The line; `command` is where the command line, `words`, is known to have got to, `ostler run`
    say.
    """
    context = getattr(error, "ctx", None)
    said = _cause(error, context, words) or _plain(error)
    return f"{said}; see {context.command_path if context else command} --help"


def _cause(error: Any, context: Any, words: Sequence[str]) -> str | None:
    match type(error).__name__:
        case "MissingParameter" if error.param is not None:
            option, usage = _option(error.param), _usage(error.param, context)
            return f"{option} is missing" + (f": give {usage}" if usage != option else "")
        case "NoSuchOption":
            typed = _whole(error.option_name, words)
            is_image = context is not None and " image " in f"{context.command_path} "
            if is_image and typed in OF_QEMU_IMG:
                return f"there is no option {typed}; {OF_QEMU_IMG[typed]}"
            if not is_image and (cure := OF_QEMU.get(typed.replace("--", "-", 1))):
                return f"there is no option {typed}; {cure}"
            near = _nearest(typed, context)
            return f"there is no option {typed}" + (near and f": did you mean {near}?")
        case "BadOptionUsage" if "not take" in error.message:
            return f"{error.option_name} takes no value: leave out the ="
        case "BadOptionUsage":
            return f"{error.option_name} needs a value: give one behind it"
        case "BadParameter" if error.param is not None:
            return f"{_option(error.param)}: {error.message.rstrip('.')}"
        case "UsageError":
            return _words(error.message, context)
    return None


def _whole(option: str, words: Sequence[str]) -> str:
    """`-smp` where that was typed: letters behind one dash are taken for an option each."""
    if len(option) != 2:
        return option
    typed = [word for word in words if word.startswith(option)]
    within = [word for word in words if re.match(r"-\w{2}", word) and option[1] in word]
    return next(iter(typed + within), option)


def _nearest(typed: str, context: Any) -> str:
    """The option that was meant: a slip of the fingers away, or longer or shorter than `typed`."""
    options = [name for known in context.command.params for name in known.opts] if context else []
    words = [name.removeprefix("--") for name in options if name.startswith("--")]
    if SYNONYMS.get(typed) in words:
        return f"--{SYNONYMS[typed]}"
    word = typed.lstrip("-")
    same_start = [known for known in words if known.startswith(word) or word.startswith(known)]
    near = get_close_matches(word, words, n=1, cutoff=SLIP)
    return f"--{(near or same_start)[0]}" if near or (same_start and len(word) > 2) else ""


def _words(message: str, context: Any) -> str | None:
    """Of what begins with no dash: verbs and arguments."""
    if found := EXTRA.search(message):
        return (
            f"{found[1]!r} is more than this command takes: leave it out, or quote what has blanks"
        )
    if (found := NO_COMMAND.search(message)) and context:
        there_is = ", ".join(context.command.list_commands(context))
        return f"{context.command_path} has no verb {found[1]!r}: there is {there_is}"
    return None


def _option(parameter: Any) -> str:
    """`--kernel`, or `IMAGE` where it is no option."""
    option = parameter.param_type_name == "option"
    return str(parameter.opts[-1] if option else parameter.human_readable_name)


def _usage(parameter: Any, context: Any) -> str:
    metavar = parameter.make_metavar(context)
    option = parameter.param_type_name == "option"
    return f"{parameter.opts[-1]} {metavar}" if option else metavar


def _plain(error: Any) -> str:
    return " ".join(error.format_message().split()).rstrip(".")

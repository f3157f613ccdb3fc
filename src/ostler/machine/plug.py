"""Devices of one's own: functions that add them to a board. See docs/write-a-device.md."""

from __future__ import annotations

import importlib.util
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from ostler.errors import ConfigError, OstlerError
from ostler.machine.virt import VirtBoard

Plug = Callable[[VirtBoard], object]
"""Adds devices to a board; called for each boot, since each has a board of its own."""


OURS = Path(__file__).parents[1]


def plug_in(plugs: Iterable[Plug], board: VirtBoard) -> None:
    """Let all add their devices.

    Raises:
        ConfigError: the place of a device is taken, or a plug fails: its file, line and error.
    """
    for plug in plugs:
        try:
            plug(board)
        except OstlerError:
            raise
        except Exception as error:
            raise ConfigError(_refusal(plug, error)) from error


def load_plug(text: str) -> Plug:
    """The function that `FILE.py` or `FILE.py:FUNCTION` names; without a name it is `plug`."""
    file, _, name = text.partition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(f"--plug {text}: there is no Python file {file}; give its path")
    plug = getattr(_module(path), name or "plug", None)
    if not callable(plug):
        raise ConfigError(f"--plug {text}: {file} has no function {name or 'plug'}(board)")
    return plug  # type: ignore[no-any-return]  # what a user's file holds has no type


def _refusal(plug: Plug, error: Exception) -> str:
    """What is said of a plug that raised `error` when it was called."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    if isinstance(error, ValueError) and frames and Path(frames[-1].filename).is_relative_to(OURS):
        names = (getattr(plug, name, "plug") for name in ("__module__", "__qualname__"))
        return f"{'.'.join(names)}: {error}; move it"
    code = getattr(plug, "__code__", None)
    if frames:
        return _mistake(error, frames[0].filename)
    return _mistake(error, *((code.co_filename, code.co_firstlineno) if code else (repr(plug),)))


def _mistake(error: Exception, file: str, line: int | None = None) -> str:
    """One line with the place of a mistake in `file` (at `line`, if nothing else is known)."""
    if isinstance(error, SyntaxError):
        file, line, what = error.filename or file, error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((at.lineno for at in reversed(frames) if at.filename == file), line)
        what = str(error)
    place = file if line is None else f"{file}:{line}"
    return f"{place}: {type(error).__name__}: {what or 'no reason given'}; correct it there"


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--plug {_mistake(error, os.path.abspath(path))}") from error
    return module

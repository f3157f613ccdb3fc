"""Devices of one's own: functions that add them to a board. See docs/write-a-device.md."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from ostler.errors import ConfigError
from ostler.machine.virt import VirtBoard

Plug = Callable[[VirtBoard], object]
"""Adds devices to a board; called for each boot, since each has a board of its own."""


def plug_in(plugs: Iterable[Plug], board: VirtBoard) -> None:
    """Let all add their devices; `ConfigError` when the place of one is taken."""
    for plug in plugs:
        try:
            plug(board)
        except ValueError as error:
            raise ConfigError(f"{plug.__module__}.{plug.__qualname__}: {error}; move it") from error


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


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""`HEAD,key=value,...` as options are written on a command line, checked against a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ostler.errors import ConfigError

if TYPE_CHECKING:
    import msgspec

M = TypeVar("M", bound="msgspec.Struct")

SWITCH = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def split_options(text: str, option: str) -> tuple[str, dict[str, str]]:
    """The part before the first comma and the `key=value` pairs after it.

    A comma that belongs to a value is doubled. `option` names the option in errors.
    """
    head, *pairs = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} {text!r}: {pair!r} is not key=value; double a plain comma")
        if key in values:
            raise ConfigError(f"{option} {text!r}: {key} is given twice; give it once")
        values[key] = value
    return head, values


def build(model: type[M], values: dict[str, str], context: str, **first: Any) -> M:
    """A `model` from option texts; `context` starts the message of a `ConfigError`.

    `first` are fields that come from what stands before the options, and so are none of them.
    """
    import msgspec

    known = {field.name: field for field in msgspec.structs.fields(model)}
    for key in values:
        if key in first:
            raise ConfigError(f"{context}: {key} comes first and once; drop {key}=")
        if key not in known:
            names = ", ".join(name for name in known if name not in first) or "none"
            raise ConfigError(f"{context}: there is no option {key!r}; there is: {names}")
    plain: dict[str, Any] = {}
    for key, value in {**first, **values}.items():
        plain[key] = _parse(value, known[key].type, f"{context}: {key}")
    try:
        return model(**plain)
    except TypeError as error:
        missing = [name for name, field in known.items() if field.required and name not in plain]
        raise ConfigError(f"{context}: give {', '.join(missing)}") from error


def _parse(value: Any, kind: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    if kind in (bool, bool | None):
        if value not in SWITCH:
            raise ConfigError(f"{what}={value}: say on or off")
        return SWITCH[value]
    if kind is int:
        try:
            return int(value, 0)
        except ValueError as error:
            raise ConfigError(f"{what}={value}: give a number, 244 or 0xf4 say") from error
    # Loads slowly, and is not needed to split options.
    from pathlib import Path

    return Path(value) if kind is Path else value

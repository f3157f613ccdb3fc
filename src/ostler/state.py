"""State: a device's whole guest-visible state as named, validated fields.

Saving is writing the fields, loading is parse, validate, replace. A saved state is data from
outside: an unknown field, a missing one, a wrong type or a value out of range is a `StateError`
that names it, and leaves the device as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import msgspec

from ostler.errors import StateError


@dataclass(slots=True)
class State:
    """Base of every device state. Subclasses are `@dataclass(slots=True)`; plain field types."""

    version: ClassVar[int] = 1

    def validate(self) -> None:
        """Raise `StateError` when a field holds what the device cannot hold."""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as plain data, and the version."""
        plain: dict[str, Any] = msgspec.to_builtins(self, builtin_types=(bytes, bytearray))
        return {"version": self.version, **plain}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Parse and validate what `to_dict` wrote."""
        data = dict(data)
        version = data.pop("version", None)
        if version != cls.version:
            raise StateError(f"{cls.__name__}: version {version!r}, this build reads {cls.version}")
        names = {field.name for field in fields(cls)}
        if data.keys() != names:
            odd = ", ".join(sorted(data.keys() ^ names))
            raise StateError(f"{cls.__name__}: fields unknown or missing: {odd}")
        try:
            state = msgspec.convert(data, cls, builtin_types=(bytes, bytearray))
        except msgspec.ValidationError as error:
            raise StateError(f"{cls.__name__}: {error}") from error
        state.validate()
        return state

"""What can be chosen of an image, as a class with a default for each choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

if TYPE_CHECKING:
    import msgspec


class Choices:
    """Base of such classes: annotated names with defaults, keyword arguments, never changed.

    No struct of msgspec, though that checks what is given: without anything given it is not loaded,
    which takes as long as to make an image.
    """

    def __init__(self, **given: Any) -> None:
        for name in given:
            if name not in self.names():
                raise TypeError(f"{type(self).__name__} has no choice {name!r}")
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: what is chosen does not change")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All there are, those of base classes first."""
        classes = reversed(cls.__mro__)
        return tuple(name for kind in classes for name in vars(kind).get("__annotations__", ()))

    @classmethod
    def struct(cls) -> type[msgspec.Struct]:
        """The same as msgspec checks it."""
        import msgspec

        hints = get_type_hints(cls)
        fields = [(name, hints[name], getattr(cls, name)) for name in cls.names()]
        return msgspec.defstruct(cls.__name__, fields, frozen=True)

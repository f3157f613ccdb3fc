"""Encodes ACPI Machine Language (ACPI 6.5, chapter 20): each function gives the bytes of one term.

Terms nest by call: `device("COM1", name("_UID", integer(1)))`. Names are given as in ASL, shorter
segments padded with `_`. Only the terms the tables here use are built.
"""

from __future__ import annotations

import re

ZERO_OP, ONE_OP, ONES_OP = b"\x00", b"\x01", b"\xff"
BYTE_PREFIX, WORD_PREFIX, DWORD_PREFIX, QWORD_PREFIX = 0x0A, 0x0B, 0x0C, 0x0E
STRING_PREFIX = b"\x0d"
NAME_OP, SCOPE_OP, BUFFER_OP, PACKAGE_OP, METHOD_OP = b"\x08", b"\x10", b"\x11", b"\x12", b"\x14"
DUAL_NAME_PREFIX, MULTI_NAME_PREFIX = b"\x2e", b"\x2f"
DEVICE_OP = b"\x5b\x82"
LOCAL0_OP, ARG0_OP = 0x60, 0x68
STORE_OP, AND_OP, OR_OP = b"\x70", b"\x7b", b"\x7d"
CREATE_DWORD_FIELD_OP = b"\x8a"
NOTIFY_OP = b"\x86"
LOGICAL_NOT_OP, LOGICAL_EQUAL_OP = b"\x92", b"\x93"
IF_OP, ELSE_OP, RETURN_OP = b"\xa0", b"\xa1", b"\xa4"

SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
EISA_ID = re.compile(r"([A-Z]{3})([0-9A-F]{4})")


def name_string(path: str) -> bytes:
    """A name (20.2.2): `\\` or `^`s or nothing, then segments joined by dots; else `ValueError`."""
    rest = path.lstrip("\\^")
    prefix = path[: len(path) - len(rest)].encode("ascii")
    segments = rest.split(".") if rest else []
    if not all(SEGMENT.fullmatch(segment) for segment in segments) or len(segments) > 255:
        raise ValueError(f"{path!r} is not an ACPI name")
    names = b"".join(segment.ljust(4, "_").encode("ascii") for segment in segments)
    match len(segments):
        case 0:
            return prefix + ZERO_OP
        case 1:
            return prefix + names
        case 2:
            return prefix + DUAL_NAME_PREFIX + names
        case count:
            return prefix + MULTI_NAME_PREFIX + bytes([count]) + names


def pkg_length(body_bytes: int) -> bytes:
    """The length of a term with a body of that size, itself included (20.2.4)."""
    if body_bytes + 1 < 1 << 6:
        return bytes([body_bytes + 1])
    for extra in (1, 2, 3):
        total = body_bytes + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"an AML term of {body_bytes} bytes is too long")


def _packaged(op: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return op + pkg_length(len(body)) + body


def integer(value: int) -> bytes:
    """An integer constant of up to 64 bits in its shortest form (20.2.3)."""
    if value in (0, 1):
        return (ZERO_OP, ONE_OP)[value]
    for prefix, size in ((BYTE_PREFIX, 1), (WORD_PREFIX, 2), (DWORD_PREFIX, 4), (QWORD_PREFIX, 8)):
        if 0 <= value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value} is not an unsigned 64-bit integer")


def string(text: str) -> bytes:
    """A string constant; ASCII without NUL."""
    if "\0" in text:
        raise ValueError("an AML string ends at its first NUL")
    return STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA id such as `PNP0A08`, as the integer ASL's `EISAID()` gives (19.6.37)."""
    match = EISA_ID.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an EISA id")
    first, second, third = (ord(letter) - 0x40 for letter in match[1])
    packed = first << 26 | second << 21 | third << 16 | int(match[2], 16)
    return bytes([DWORD_PREFIX]) + packed.to_bytes(4, "big")


def buffer(data: bytes) -> bytes:
    """A buffer that holds `data`."""
    return _packaged(BUFFER_OP, integer(len(data)), data)


def package(*elements: bytes) -> bytes:
    """A package of at most 255 elements."""
    return _packaged(PACKAGE_OP, bytes([len(elements)]), *elements)


def name(path: str, value: bytes) -> bytes:
    """`Name (path, value)`."""
    return NAME_OP + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """`Scope (path) { terms }`."""
    return _packaged(SCOPE_OP, name_string(path), *terms)


def device(path: str, *terms: bytes) -> bytes:
    """`Device (path) { terms }`."""
    return _packaged(DEVICE_OP, name_string(path), *terms)


def method(path: str, args: int, *terms: bytes, serialized: bool = False) -> bytes:
    """`Method (path, args) { terms }`; one that creates names is to be serialized."""
    return _packaged(METHOD_OP, name_string(path), bytes([args | serialized << 3]), *terms)


def arg(index: int) -> bytes:
    """`ArgN` of the running method."""
    return bytes([ARG0_OP + index])


def create_dword_field(source: bytes, byte_index: int, path: str) -> bytes:
    """`CreateDWordField (source, byte_index, path)`."""
    return CREATE_DWORD_FIELD_OP + source + integer(byte_index) + name_string(path)


def and_(left: bytes, right: bytes, target: bytes) -> bytes:
    """`And (left, right, target)`."""
    return AND_OP + left + right + target


def or_(left: bytes, right: bytes, target: bytes) -> bytes:
    """`Or (left, right, target)`."""
    return OR_OP + left + right + target


def equal(left: bytes, right: bytes) -> bytes:
    """`LEqual (left, right)`."""
    return LOGICAL_EQUAL_OP + left + right


def not_(operand: bytes) -> bytes:
    """`LNot (operand)`."""
    return LOGICAL_NOT_OP + operand


def if_(condition: bytes, *terms: bytes) -> bytes:
    """`If (condition) { terms }`."""
    return _packaged(IF_OP, condition, *terms)


def else_(*terms: bytes) -> bytes:
    """`Else { terms }`, right after an `if_`."""
    return _packaged(ELSE_OP, *terms)


def notify(path: str, value: int) -> bytes:
    """`Notify (path, value)`."""
    return NOTIFY_OP + name_string(path) + integer(value)


def return_(value: bytes) -> bytes:
    """`Return (value)`."""
    return RETURN_OP + value

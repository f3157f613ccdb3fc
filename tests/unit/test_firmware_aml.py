"""The AML encoder, byte by byte against the grammar of ACPI 6.5 chapter 20."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.firmware.acpi import aml, resources


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("\\", b"\\\0"),
        ("\\_SB", b"\\_SB_"),
        ("^^PCI0", b"^^PCI0"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)
def test_name_string_of_each_form_encodes_as_specified(path: str, encoded: bytes) -> None:
    assert aml.name_string(path) == encoded


@pytest.mark.parametrize("path", ["_SB.", "pci0", "TOOLONG", "0ABC", "A..B"])
def test_name_string_not_a_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not an ACPI name"):
        aml.name_string(path)


@given(st.integers(0, (1 << 28) - 5))
def test_pkg_length_any_body_decodes_to_its_length(body_bytes: int) -> None:
    encoded = aml.pkg_length(body_bytes)
    extra = encoded[0] >> 6
    assert len(encoded) == 1 + extra
    if extra:
        length = encoded[0] & 0xF | int.from_bytes(encoded[1:], "little") << 4
    else:
        length = encoded[0] & 0x3F
    assert length == body_bytes + len(encoded)


def test_pkg_length_past_28_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        aml.pkg_length(1 << 28)


@given(st.integers(0, (1 << 64) - 1))
def test_integer_any_64_bits_decodes_to_its_value(value: int) -> None:
    encoded = aml.integer(value)
    if value < 2:
        assert encoded == bytes([value])
        return
    size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[encoded[0]]
    assert len(encoded) == 1 + size
    assert int.from_bytes(encoded[1:], "little") == value


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integer_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        aml.integer(value)


def test_eisa_id_pnp0a08_is_what_the_specification_prints() -> None:
    assert aml.eisa_id("PNP0A08") == b"\x0c\x41\xd0\x0a\x08"
    with pytest.raises(ValueError, match="EISA"):
        aml.eisa_id("ACPI0007")


def test_string_with_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        aml.string("a\0b")


def test_memory_window_picks_the_width_its_addresses_need() -> None:
    assert resources.memory_window(0xC000_0000, 0xDFFF_FFFF)[0] == 0x87
    assert resources.memory_window(1 << 36, (1 << 37) - 1)[0] == 0x8A

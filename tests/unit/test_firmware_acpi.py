"""The ACPI tables: layout and checksums here, content by ACPICA's own tools."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from ostler.errors import ConfigError
from ostler.firmware.acpi.board import Board, Window
from ostler.firmware.acpi.tables import AREA_BYTES, RSDP_GPA, build_tables

MANY = 512
needs_acpica = pytest.mark.skipif(
    shutil.which("iasl") is None or shutil.which("acpiexec") is None,
    reason="acpica-tools is not installed",
)


def board(cpus: int = 2) -> Board:
    above = Window(0x10_0000_0000, 0x10_0000_0000)
    return Board(apic_ids=range(cpus), pci_mmio64=above, vmgenid_gpa=0xD_F000)


def at(blob: bytes, gpa: int) -> bytes:
    """The table at `gpa`, as long as it says it is."""
    offset = gpa - RSDP_GPA
    (length,) = struct.unpack_from("<I", blob, offset + 4)
    return blob[offset : offset + length]


def tables(blob: bytes) -> dict[str, bytes]:
    """Every table by signature, found as an OS finds them: RSDP, XSDT, FADT."""
    assert blob[:8] == b"RSD PTR "
    xsdt = at(blob, struct.unpack_from("<Q", blob, 24)[0])
    rsdt = at(blob, struct.unpack_from("<I", blob, 16)[0])
    wide = struct.unpack(f"<{(len(xsdt) - 36) // 8}Q", xsdt[36:])
    narrow = struct.unpack(f"<{(len(rsdt) - 36) // 4}I", rsdt[36:])
    assert wide == narrow
    found = {"XSDT": xsdt, "RSDT": rsdt}
    for gpa in wide:
        found[at(blob, gpa)[:4].decode()] = at(blob, gpa)
    facs, dsdt = struct.unpack_from("<II", found["FACP"], 36)
    assert struct.unpack_from("<QQ", found["FACP"], 132) == (0, dsdt)
    assert facs % 64 == 0
    return found | {"FACS": at(blob, facs), "DSDT": at(blob, dsdt)}


def madt_entries(blob: bytes) -> list[bytes]:
    madt = tables(blob)["APIC"]
    entries, offset = [], 44
    while offset < len(madt):
        entries.append(madt[offset : offset + madt[offset + 1]])
        offset += madt[offset + 1]
    return entries


@pytest.mark.parametrize("cpus", [1, 2, 160, 255, 256, MANY])
def test_tables_any_cpu_count_have_valid_checksums_and_fit(cpus: int) -> None:
    blob = build_tables(board(cpus))
    assert len(blob) <= AREA_BYTES
    assert sum(blob[:20]) % 256 == 0
    assert sum(blob[:36]) % 256 == 0
    for signature, data in tables(blob).items():
        assert signature == "FACS" or sum(data) % 256 == 0, signature


def test_tables_too_many_cpus_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="fewer --cpus"):
        build_tables(board(4096))


def test_madt_512_cpus_names_every_id_once_and_uses_x2apic_from_255_on() -> None:
    entries = madt_entries(build_tables(board(MANY)))
    small = {entry[3]: entry[2] for entry in entries if entry[0] == 0}
    large = {
        struct.unpack_from("<I", entry, 4)[0]: struct.unpack_from("<I", entry, 12)[0]
        for entry in entries
        if entry[0] == 9
    }
    assert small == {number: number for number in range(255)}
    assert large == {number: number for number in range(255, MANY)}
    assert sum(entry[0] == 10 for entry in entries) == 1


def test_madt_sparse_apic_ids_keep_uids_dense() -> None:
    ids = [0, 1, 4, 5, 300]
    entries = madt_entries(build_tables(Board(apic_ids=ids)))
    assert [(entry[2], entry[3]) for entry in entries if entry[0] == 0] == list(enumerate(ids[:4]))
    assert [struct.unpack("<BBHIII", entry)[3:] for entry in entries if entry[0] == 9] == [
        (300, 1, 4)
    ]


def test_madt_interrupts_route_the_pit_to_gsi_2_and_the_sci_level_high() -> None:
    overrides = [entry for entry in madt_entries(build_tables(board())) if entry[0] == 2]
    assert [struct.unpack("<BBBBIH", entry)[3:] for entry in overrides] == [(0, 2, 0), (9, 9, 13)]


def test_fadt_ports_and_reset_are_where_the_board_has_them() -> None:
    fadt = tables(build_tables(board()))["FACP"]
    assert len(fadt) == 276
    assert struct.unpack_from("<H", fadt, 46) == (9,)
    assert struct.unpack_from("<I", fadt, 56) == (0x600,)
    assert struct.unpack_from("<I", fadt, 64) == (0x604,)
    assert struct.unpack_from("<I", fadt, 76) == (0x608,)
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)
    (flags,) = struct.unpack_from("<I", fadt, 112)
    assert flags & 1 << 10, "RESET_REG_SUP"
    assert not flags & 1 << 4, "the power button is a fixed feature"
    assert not flags & 1 << 20, "HW_REDUCED_ACPI"


def test_mcfg_covers_the_one_bus_of_the_ecam() -> None:
    mcfg = tables(build_tables(board()))["MCFG"]
    assert struct.unpack_from("<QHBB", mcfg, 44) == (0xE000_0000, 0, 0, 0)


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_acpica
@pytest.mark.parametrize("cpus", [1, 300])
@pytest.mark.parametrize("signature", ["FACP", "APIC", "MCFG", "FACS", "DSDT"])
def test_table_disassembled_recompiles_without_warnings(
    signature: str, cpus: int, tmp_path: Path
) -> None:
    original = tables(build_tables(board(cpus)))[signature]
    (tmp_path / "t.dat").write_bytes(original)
    run("iasl", "-d", "t.dat", cwd=tmp_path)
    said = run("iasl", "-p", "again", "t.dsl", cwd=tmp_path)
    assert "0 Errors, 0 Warnings, 0 Remarks" in said
    if signature != "DSDT":
        again = (tmp_path / "again.aml").read_bytes()
        # iasl signs the header and sums again; the rest is as we wrote it.
        assert again[36:] == original[36:]


@needs_acpica
def test_dsdt_executed_by_acpica_answers_as_the_board_is(tmp_path: Path) -> None:
    (tmp_path / "dsdt.dat").write_bytes(tables(build_tables(board()))["DSDT"])
    batch = "evaluate \\_S5; evaluate \\_SB.PCI0._PRT; resources \\_SB.PCI0; resources \\_SB.COM1"
    said = run("acpiexec", "-b", batch, "dsdt.dat", cwd=tmp_path)
    assert "Evaluation of \\_S5 returned object" in said
    assert "Evaluation of \\_SB.PCI0._PRT returned object" in said
    assert "Error" not in said.replace("Errors", "")
    assert "0000001000000000" in said.upper(), "the 64-bit window"


@needs_acpica
def test_event_device_notifies_of_a_new_generation_only_for_its_interrupt(tmp_path: Path) -> None:
    (tmp_path / "dsdt.dat").write_bytes(tables(build_tables(board()))["DSDT"])
    for irq, told in ((5, 1), (6, 0)):
        batch = f"evaluate \\_SB.GED._EVT {irq}"
        said = run("acpiexec", "-b", batch, "dsdt.dat", cwd=tmp_path)
        assert said.count("Received a Device Notify on [VGEN]") == told, said


@needs_acpica
@pytest.mark.parametrize(
    ("revision", "control", "status", "granted"),
    [(1, 0x1F, 0x10, 0x1C), (1, 0x1C, 0x00, 0x1C), (2, 0x1C, 0x08, 0x1C)],
)
def test_osc_asked_for_control_grants_what_there_is_and_says_so(
    revision: int, control: int, status: int, granted: int, tmp_path: Path
) -> None:
    (tmp_path / "dsdt.dat").write_bytes(tables(build_tables(board()))["DSDT"])
    bridge = "(5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66)"
    request = f"(00 00 00 00 00 00 00 00 {control:02X} 00 00 00)"
    batch = f"evaluate \\_SB.PCI0._OSC {bridge} {revision} 3 {request}"
    said = run("acpiexec", "-b", batch, "dsdt.dat", cwd=tmp_path)
    answer = f"{status:02X} 00 00 00 00 00 00 00 {granted:02X} 00 00 00"
    assert answer in said

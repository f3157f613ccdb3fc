"""From a path to a plan: files that are not there, formats, stock kernels."""

from __future__ import annotations

import gzip
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from firmware_images import MEMORY_MAP, elf64
from hypothesis import given
from hypothesis import strategies as st

from ostler.errors import KernelError
from ostler.firmware.boot import load_kernel


def complaint(kernel: Path | bytes, initrd: Path | None = None) -> str:
    with pytest.raises(KernelError) as caught:
        load_kernel(kernel, memory_map=MEMORY_MAP, initrd=initrd)
    return str(caught.value)


def test_kernel_missing_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    assert complaint(path) == f"kernel '{path}' does not exist; check the path"


def test_kernel_that_is_a_directory_says_so(tmp_path: Path) -> None:
    assert complaint(tmp_path) == f"kernel '{tmp_path}' is a directory; give the file in it"


def test_kernel_empty_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.touch()
    assert "is empty" in complaint(path)
    assert "is empty" in complaint(b"")


def test_kernel_that_is_a_device_says_so() -> None:
    assert "is a device" in complaint(Path("/dev/zero"))


def test_kernel_behind_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be read" in complaint(tmp_path / "file" / "vmlinuz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_kernel_unreadable_says_so(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(elf64())
    path.chmod(0)
    assert "may not be read" in complaint(path)


def test_initrd_missing_is_named_as_such(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(elf64())
    assert complaint(kernel, tmp_path / "gone").startswith("initrd ")


def test_kernel_that_is_something_else_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("milk, bread" * 1000)
    assert complaint(path).startswith(f"kernel '{path}' is not a kernel: ")


def test_kernel_file_and_its_bytes_give_the_same_plan(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf64())
    of_bytes = load_kernel(elf64(), memory_map=MEMORY_MAP)
    of_file = load_kernel(path, memory_map=MEMORY_MAP)
    assert (of_bytes.kernel, of_file.kernel) == ("the image", repr(str(path)))
    assert replace(of_file, kernel=of_bytes.kernel) == of_bytes
    as_text = load_kernel(str(path), memory_map=MEMORY_MAP)
    assert as_text.regs.rip == load_kernel(path, memory_map=MEMORY_MAP).regs.rip


def test_kernel_from_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(elf64(),))
    writer.start()
    plan = load_kernel(pipe, memory_map=MEMORY_MAP)
    writer.join()
    assert plan.protocol == "linux64"


def test_kernel_packed_as_a_whole_is_unpacked_first() -> None:
    packed = gzip.compress(elf64())
    plan = load_kernel(packed, memory_map=MEMORY_MAP)
    assert plan.regs == load_kernel(elf64(), memory_map=MEMORY_MAP).regs
    assert "damaged gzip payload" in complaint(packed[:50])


@given(st.binary(min_size=1, max_size=2048))
def test_kernel_of_any_bytes_is_a_kernel_error(data: bytes) -> None:
    with pytest.raises(KernelError) as caught:
        load_kernel(data, memory_map=MEMORY_MAP)
    assert "\n" not in str(caught.value)

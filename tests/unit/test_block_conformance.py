"""Every format that is registered keeps the contract of formats."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ostler.block import create_image, open_image
from ostler.block.registry import FORMATS
from ostler.errors import DiskError
from ostler.testing import check_image_format

# What a format cannot be created or opened without.
NEEDED: dict[str, dict[str, Any]] = {"luks": {"secret": b"passphrase", "iter_time": 1}}


@pytest.mark.parametrize("name", FORMATS)
def test_format_registered_keeps_the_contract(name: str, tmp_path: Path) -> None:
    sample = None
    if FORMATS[name].load().prepare is None:
        sample = sample_of(name, tmp_path)
    check_image_format(name, tmp_path, sample, **NEEDED.get(name, {}))


def sample_of(name: str, directory: Path) -> Path:
    """An image that qemu-img makes, with data and holes, of a format that we only read."""
    raw, sample = directory / "sample.raw", directory / f"sample.{name}"
    raw.write_bytes(random.Random(3).randbytes(300_000).ljust(3 << 20, b"\0"))
    command = ["qemu-img", "convert", "-f", "raw", "-O", name, str(raw), str(sample)]
    subprocess.run(command, check=True)
    return sample


def test_format_unknown_is_refused_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    with pytest.raises(DiskError, match="there is: raw"):
        open_image(tmp_path / "disk", format="floppy")
    with pytest.raises(DiskError, match="there is no transport 'gopher'"):
        open_image("gopher://host/disk")


def test_option_unknown_or_wrong_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="no option 'colour'"):
        create_image(tmp_path / "disk", 512, format="raw", colour="red")
    with pytest.raises(DiskError, match="preallocation"):
        create_image(tmp_path / "disk", 512, format="raw", preallocation="some")

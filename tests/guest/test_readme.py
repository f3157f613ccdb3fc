"""The commands of README.md, as they are written there, beside what `make demo` leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stock import ACCELERATOR, BOOT_S

from guests.demo import lay_out
from guests.fetch import Kernel, kernel
from ostler.errors import ConfigError
from ostler.image import ModuleTree

pytestmark = pytest.mark.guest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def block(language: str, word: str) -> str:
    """The one block of README.md in that language that has `word` in it."""
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    (found,) = (text for kind, text in blocks if kind == language and word in text)
    return str(found)


@pytest.fixture
def checkout(tmp_path: Path, cloud: Kernel) -> Path:
    """A directory that looks like a checkout after `make demo`."""
    lay_out(tmp_path / "build/demo", cloud)
    (tmp_path / "guests").symlink_to(ROOT / "guests")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def here(text: str) -> str:
    """As it is written, or with the accelerator that is asked for, and the patience of tests."""
    if "OSTLER_TEST_ACCELERATOR" not in os.environ:
        return text
    for written, added in (
        ("ostler run ", f"ostler run --accel {ACCELERATOR} "),
        ('append="console', f'accelerator="{ACCELERATOR}", append="console'),
        ('wait_for("ready"', f'wait_for("ready", timeout={BOOT_S}'),
    ):
        text = text.replace(written, added)
    return text


def run(checkout: Path, command: list[str], typed: str = "") -> str:
    """What `command` prints, which is given `typed` and has to end with 0."""
    done = subprocess.run(
        command,
        cwd=checkout,
        input=typed,
        capture_output=True,
        text=True,
        timeout=BOOT_S,
        env={**os.environ, "OSTLER_STATE_DIR": str(checkout / "state")},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_run_starts_the_demos_guest(checkout: Path) -> None:
    # What is typed waits until the guest's shell reads it.
    typed = "echo disk=$(cat /sys/block/vda/size); poweroff\n"
    assert "disk=32768" in run(checkout, ["sh", "-c", here(block("sh", "ostler run"))], typed)


def test_readme_initramfs_starts_a_guest(checkout: Path) -> None:
    run(checkout, ["sh", "-c", block("sh", "image initramfs")])
    start = here(block("sh", "ostler run")).replace("build/demo/initrd.gz", "initrd.gz")
    # Without its script udhcpc would go on for ever.
    typed = "[ -x /etc/udhcpc/default.script ] && echo script=$((1 + 1))"
    if shutil.which("passt"):
        typed += " && udhcpc -q -i eth0 && ip addr show eth0 && echo lease=$((1 + 1))"
    said = run(checkout, ["sh", "-c", start], f"{typed}\npoweroff\n")
    assert "ostler: ready" in said
    assert "script=2" in said
    if shutil.which("passt"):
        assert "lease=2" in said
        assert re.search(r"inet \d+\.\d+\.\d+\.\d+/", said)


def test_readme_names_the_modules_that_only_the_general_kernel_has(cloud: Kernel) -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    found = re.search(r"For `--share` add (.*) of Debian's general kernel", text)
    assert found is not None
    names = [name for name in re.findall(r"[\w,]+(?=`)", found[1]) if name]
    assert {"e1000", "8139cp"} < {*",".join(names).split(",")}
    full = ModuleTree(kernel("full").modules)
    for name in ("9p", "9pnet_virtio", "e1000", "8139cp"):
        assert full.resolve([name])
        with pytest.raises(ConfigError):
            ModuleTree(cloud.modules).resolve([name])


def test_readme_python_runs_a_command_in_the_guest(checkout: Path) -> None:
    said = run(checkout, [sys.executable, "-c", here(block("python", "ostler.VM("))])
    assert said.startswith("Linux guest 6.")
    assert said.endswith("power-off\n")

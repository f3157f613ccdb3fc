"""The example devices of docs/write-a-device.md keep to the contract that the page describes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ostler.devices.pci.device import Connection
from ostler.errors import ConfigError
from ostler.machine.plug import load_plug
from ostler.testing import FakeMachine, check_device
from ostler.testing.pci import FakeBus, FakeRoute, FakeWorkers

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_printer_port_conforms_and_prints_what_is_strobed(tmp_path: Path) -> None:
    module = example("port_device")
    check_device(lambda machine: module.Printer(tmp_path / "noise"), 3)
    printer = module.Printer(tmp_path / "paper")
    for byte in b"hi":
        printer.write(module.DATA, 1, byte)
        printer.write(module.CONTROL, 1, 0x0D)
        printer.write(module.CONTROL, 1, 0x0C)
    assert (tmp_path / "paper").read_bytes() == b"hi"


def test_early_console_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("memory_device")
    check_device(lambda machine: module.EarlyConsole(), 8)
    capsys.readouterr()


def test_pci_function_conforms(capsys: pytest.CaptureFixture[str]) -> None:
    module = example("pci_device")

    def wire(machine: FakeMachine) -> Any:
        device = module.PanicReporter()
        device.connect(Connection(FakeBus(), machine.irq_line(16), FakeRoute))
        return device

    check_device(wire, 256)


def test_virtio_device_conforms_and_counts() -> None:
    module = example("virtio_device")
    check_device(lambda machine: module.Counter(FakeWorkers()), 16)
    counter = module.Counter(FakeWorkers())
    assert (counter.answer(b"", 3), counter.answer(b"", 2)) == (b"\0\1\2", b"\3\4")


def test_plug_is_found_by_file_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def plug(board): pass\ndef other(board): pass\nnothing = 1\n"
    )
    assert load_plug(f"{tmp_path}/mine.py").__qualname__ == "plug"
    assert load_plug(f"{tmp_path}/mine.py:other").__qualname__ == "other"
    for wrong in ("mine.txt", "none.py", "mine.py:nothing", "mine.py:absent"):
        with pytest.raises(ConfigError, match=r"--plug"):
            load_plug(f"{tmp_path}/{wrong}")

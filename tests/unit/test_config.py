from pathlib import Path

import pytest

from ostler.config import (
    AcceleratorChoice,
    CpuConfig,
    DebugExitConfig,
    DiskConfig,
    MachineConfig,
    MemoryConfig,
    SerialConfig,
    SerialKind,
    SoftJit,
    VirtioRngConfig,
    format_size,
    parse_device,
    parse_size,
)
from ostler.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("4G", 4 << 30), ("4GiB", 4 << 30), ("64k", 65536), ("0x1000", 4096)],
)
def test_size_is_binary(text: str, size: int) -> None:
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "4Q", "512 megabytes"])
def test_size_that_is_none_names_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--memory .* is not a size; write"):
        parse_size(text, "--memory")


@pytest.mark.parametrize(("size", "text"), [(512 << 20, "512M"), (0, "0"), (4097, "4097")])
def test_size_is_written_as_short_as_exact(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize("count", [0, -1, 513])
def test_cpu_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=r"--cpus .*: a guest has 1 to 512 CPUs"):
        CpuConfig(count)


@pytest.mark.parametrize("text", ["0", "1M", "33T", "4097K1", "2097153"])
def test_memory_out_of_range_or_crooked_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        MemoryConfig.parse(text)


def test_disk_options_are_parsed() -> None:
    disk = DiskConfig.parse("a,,b.img,readonly=on,serial=X1,format=raw")
    assert disk == DiskConfig("a,b.img", readonly=True, serial="X1", format="raw")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "give the path"),
        ("d.img,readonly", "is not key=value"),
        ("d.img,readonly=maybe", "say on or off"),
        ("d.img,colour=red", "there is no option 'colour'; there is: readonly"),
        ("d.img,cache=writearound", "no cache 'writearound'; there is: writeback"),
        ("d.img,overlay=on,readonly=on", "drop readonly=on"),
        ("d.img,queues=0", "give 1 to 64"),
        ("d.img,iops=-1", "0, for no limit"),
        ("d.img,bps=fast", "is not a size"),
        ("d.img,bus=scsi,iops=100", "are for bus=virtio"),
        ("d.img,serial=123456789012345678901", "shorten it"),
        ("d.img,readonly=on,readonly=off", "given twice"),
        ("d.img,path=e.img", "path comes first and once; drop path="),
    ],
)
def test_disk_option_that_is_wrong_says_so(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiskConfig.parse(text)


def test_device_options_are_parsed() -> None:
    assert parse_device("debug-exit,iobase=0xf4") == DebugExitConfig(0xF4)
    assert parse_device("virtio-rng") == VirtioRngConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("floppy", "no such device; there is: debug-exit"),
        ("debug-exit,iobase=high", "give a number"),
        ("debug-exit,iobase=0x10000", "no I/O port"),
        ("virtio-rng,speed=1", "there is: rate, packed"),
    ],
)
def test_device_that_is_wrong_says_so(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_device(text)


def test_serial_file_has_a_path() -> None:
    assert SerialConfig.parse("file:a:b") == SerialConfig(SerialKind.FILE, Path("a:b"))


@pytest.mark.parametrize("text", ["", "file", "file:", "none:x", "tcp:1"])
def test_serial_of_unknown_kind_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give stdio, none or file:PATH"):
        SerialConfig.parse(text)


def test_accelerator_unknown_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="there is: auto, kvm, soft, or a list"):
        AcceleratorChoice.parse("warp")


def test_accelerator_list_keeps_its_order_and_auto_is_no_part_of_one() -> None:
    assert AcceleratorChoice.parse("kvm,soft").candidates == ("kvm", "soft")
    assert AcceleratorChoice.parse("auto").is_auto
    split = AcceleratorChoice.parse("kvm,kernel-irqchip=split,dirty-ring-size=4096")
    assert split.candidates == ("kvm",)
    assert (split.kvm.split_irqchip, split.kvm.dirty_ring) == (True, 4096)
    assert AcceleratorChoice.parse("auto,kernel-irqchip=on").kvm.split_irqchip is False
    for text in ("kvm,auto", "kvm,", "soft,soft"):
        with pytest.raises(ConfigError, match="--accel"):
            AcceleratorChoice.parse(text)


def test_chips_leave_the_kernel_for_more_cpus_than_its_ioapic_reaches() -> None:
    choice = AcceleratorChoice.parse("kvm")
    assert not choice.kvm.for_cpus(255).split_irqchip
    assert choice.kvm.for_cpus(256).split_irqchip
    forced = AcceleratorChoice.parse("kvm,kernel-irqchip=on")
    with pytest.raises(ConfigError, match="--cpus 256: kernel-irqchip=on reaches 255 CPUs"):
        MachineConfig(kernel=Path("k"), accelerator=forced, cpu=CpuConfig(256))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kvm,kernel-irqchip=off", "kernel-irqchip is on"),
        ("kvm,kernel-irqchip", "no value; kernel-irqchip is on .* or split"),
        ("kvm,dirty-ring-size", "no value; dirty-ring-size is a number"),
        ("kvm,irqchip=split", "'irqchip' is none of kernel-irqchip and dirty-ring-size"),
        ("kvm,kernel-irqchip=on,kernel-irqchip=split", "says kernel-irqchip twice"),
        ("kvm,dirty-ring-size=many", "is a number of entries, 4096 say"),
        ("kvm,dirty-ring-size=3000", "power of two from 1024 to 65536"),
        ("soft,kernel-irqchip=split", "are for kvm; add it"),
        ("kernel-irqchip=split", "begin with kvm"),
    ],
)
def test_option_of_kvm_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AcceleratorChoice.parse(text)


def test_machine_with_a_writable_disk_twice_is_refused() -> None:
    disk = DiskConfig("d.img")
    with pytest.raises(ConfigError, match="given twice"):
        MachineConfig(kernel=Path("k"), disks=(disk, disk))


def test_soft_jit_unknown_value_says_which_there_are() -> None:
    assert SoftJit.parse("off") is SoftJit.OFF
    with pytest.raises(ConfigError, match="--soft-jit 'fast': there is: on, off"):
        SoftJit.parse("fast")


@pytest.mark.parametrize("name", ["", "a/b", "../web", ".hidden", "-x", "a b", "x" * 65, "a\n"])
def test_name_that_no_file_should_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--name .*a name begins with a letter or digit"):
        MachineConfig(kernel=Path("k"), name=name)


@pytest.mark.parametrize("name", ["web1", "org.example+test@2-a_b", "müller", "7"])
def test_name_of_letters_digits_and_a_few_marks_is_taken(name: str) -> None:
    assert MachineConfig(kernel=Path("k"), name=name).name == name

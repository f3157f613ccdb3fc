"""Parameters of `ostler.VM` that take one thing or several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ostler import VM
from ostler.config import (
    CpuConfig,
    DiskConfig,
    MachineConfig,
    MemoryConfig,
    NetConfig,
    PublishConfig,
    VirtioRngConfig,
    VirtioShareConfig,
)
from ostler.control.parameters import by_parameters
from ostler.errors import ConfigError, DiskError


def config(**options: Any) -> MachineConfig:
    return VM("vmlinuz", **options).config


DISK = DiskConfig("d.img", readonly=True)
RNG = VirtioRngConfig()
SHARE = VirtioShareConfig(Path("src"), "source")
CARD = NetConfig("tap", "br0")
PORT = PublishConfig(2222, 22)


@pytest.mark.parametrize(
    ("parameter", "field", "text", "model"),
    [
        ("disks", "disks", "d.img,readonly=on", DISK),
        ("devices", "devices", "virtio-rng", RNG),
        ("shares", "devices", "src:source", SHARE),
        ("net", "nets", "tap=br0", CARD),
        ("publish", "publish", "2222:22", PORT),
    ],
)
def test_parameter_takes_one_or_several_texts_or_models(
    parameter: str, field: str, text: str, model: object
) -> None:
    for one in (text, model, [text], (model,), iter([model])):
        assert getattr(config(**{parameter: one}), field) == (model,)
    if parameter != "disks":  # the same disk twice is refused
        assert getattr(config(**{parameter: [text, model]}), field) == (model, model)


@pytest.mark.parametrize("parameter", ["disks", "devices", "shares", "net", "publish"])
@pytest.mark.parametrize("wrong", [7, [None], b"d.img"])
def test_parameter_that_is_neither_is_refused_by_name(parameter: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match=f"^{parameter}=.+: give a text, .+Config"):
        config(**{parameter: wrong})


def test_disk_as_a_path_may_have_commas() -> None:
    assert config(disks=Path("a,b=c.img")).disks == (DiskConfig("a,b=c.img"),)
    assert config(disks=["x.img", Path("y.img")]).disks == (
        DiskConfig("x.img"), DiskConfig("y.img"),
    )  # fmt: skip


def test_net_without_a_card_is_told_from_the_default() -> None:
    assert config().nets is None
    assert config(net=()).nets == config(net="none").nets == ()


def test_plug_takes_one_function_or_several() -> None:
    def plug(board: object) -> None:
        """Adds nothing."""

    for one in (plug, [plug], iter([plug])):
        assert VM("vmlinuz", plug=one)._plugs == (plug,)


def test_sizes_and_counts_may_be_texts() -> None:
    asked = config(memory="1T,force=on", cpus="2")
    assert (asked.memory, asked.cpu) == (MemoryConfig(1 << 40, force=True), CpuConfig(2))


def test_memory_that_is_no_size_is_refused() -> None:
    for wrong in (1.5, None, "1G,size_bytes=4", "1G,warp=on"):
        with pytest.raises(ConfigError, match=r"^memory "):
            config(memory=wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "5"}, "memory 5: "),
        ({"disks": "a.img,cache=x"}, "disks a.img: no cache 'x'"),
        ({"accelerator": "none"}, "accelerator 'none': there is"),
        ({"cpus": 0}, "cpus 0: a guest has"),
        ({"shares": "/tmp"}, "shares '/tmp': name it for the guest"),
    ],
)
def test_mistake_in_python_is_told_by_its_parameter(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        VM("vmlinuz", **options)
    assert "--" not in str(caught.value)


def test_mistake_found_at_the_start_is_told_by_its_parameter(tmp_path: Path) -> None:
    empty = tmp_path / "empty.img"
    empty.touch()
    vm = VM(tmp_path / "vmlinuz", disks=f"{empty},format=raw,readonly=on", net="none")
    with pytest.raises(DiskError, match=r"^disks .*empty\.img: the disk has no sectors"):
        vm.start()


def test_command_in_a_message_stays_as_it_is() -> None:
    said = "--disk a: too small; run: ostler image resize --shrink a, or leave --disk out"
    assert by_parameters(said) == f"disks{said[6:]}"
    assert by_parameters("no --other-thing; see --net") == "no --other-thing; see net"


@pytest.mark.parametrize(("given", "meant"), [("accel", "accelerator"), ("disk", "disks")])
def test_option_given_as_a_parameter_is_told_what_that_is_called(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"argument '{given}'; give it as {meant}=$"):
        config(**{given: "soft"})
    with pytest.raises(TypeError, match=r"argument 'colour'$"):
        config(colour="red")

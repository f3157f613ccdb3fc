"""Processors by name: what is asked for, what an accelerator makes of it, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ostler.cli import invoke
from ostler.config import CpuConfig, CpuModelConfig
from ostler.config.cpu_features import FEATURES, needs, with_needs, without
from ostler.config.cpu_models import AMD, MODELS
from ostler.control.session import create_vcpus, offer_of
from ostler.engine import CpuidEntry, VirtualMachine
from ostler.errors import ConfigError
from ostler.host.processor import Offer, features_of

pytest_plugins = ["accelerators"]


def rows(vm: VirtualMachine, model: str) -> list[CpuidEntry]:
    """What the second CPU of a guest with `model` answers."""
    vcpus = create_vcpus(vm, CpuConfig.parse(2, model=model))
    return vcpus[1].cpuid


def row(rows: list[CpuidEntry], function: int, index: int = 0) -> CpuidEntry:
    return next(row for row in rows if (row.function, row.index) == (function, index))


def test_every_need_is_a_feature_and_every_model_has_what_its_features_need() -> None:
    for name in FEATURES:
        assert set(needs(name)) <= FEATURES.keys()
    for name, model in MODELS.items():
        assert with_needs(model.features) <= model.features, name


def test_taking_away_takes_what_needs_it() -> None:
    assert without(["sse2", "avx", "avx2", "fma"], ["avx"]) == {"sse2"}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("host", CpuModelConfig()),
        ("HASWELL", CpuModelConfig("Haswell")),
        ("max,+pni,-SSE4.1", CpuModelConfig("max", ("sse3",), ("sse4_1",))),
        ("x86-64-v2,aes=on,mmx=off", CpuModelConfig("x86-64-v2", ("aes",), ("mmx",))),
        ("host,+avx512vnni", CpuModelConfig("host", ("avx512_vnni",))),
    ],
)
def test_model_parses_names_and_spellings(text: str, parsed: CpuModelConfig) -> None:
    assert CpuModelConfig.parse(text) == parsed
    assert CpuModelConfig.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Haswel", "no CPU model 'Haswel'; is it Haswell?"),
        ("host,+avx3", "no CPU feature 'avx3'; is it avx"),
        ("host,avx2", "'avx2' is not +FEATURE, -FEATURE"),
        ("host,avx2=yes", "'avx2=yes' is not"),
        ("host,", "'' is not"),
        ("host,+", "no CPU feature ''"),
        ("host,+avx,-avx", "avx is both added and taken away"),
        ("host,+avx2,-xsave", "avx2 needs xsave, which is taken away"),
    ],
)
def test_model_wrong_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CpuModelConfig.parse(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_model_level_gives_the_same_features_on_every_accelerator(accelerator: str) -> None:
    vm = VirtualMachine(accelerator)
    found = features_of(rows(vm, "x86-64-v1"))
    assert MODELS["x86-64-v1"].features <= found
    # What else is there is the accelerator's own, and no instruction.
    assert not found & {"sse3", "cx16", "avx", "xsave", "clflushopt", "3dnowprefetch", "mmxext"}
    assert (
        row(vm.create_vcpu(2).cpuid, 0).ebx == row(rows(VirtualMachine(accelerator), "max"), 0).ebx
    )


def test_model_keeps_what_tells_vcpus_apart(accelerator: str) -> None:
    plain = VirtualMachine(accelerator).create_vcpu(1).cpuid
    got = rows(VirtualMachine(accelerator), "x86-64-v1")
    assert row(got, 1).ebx == row(plain, 1).ebx
    assert row(got, 0xB, 1) == row(plain, 0xB, 1)


def test_feature_taken_away_is_gone_with_what_needs_it(accelerator: str) -> None:
    got = features_of(rows(VirtualMachine(accelerator), "host,-fxsr,-mmx"))
    assert not got & {"fxsr", "mmx", "sse", "sse2", "avx", "avx2"}


def test_feature_lacking_is_refused_before_there_is_a_vcpu(accelerator: str) -> None:
    vm = VirtualMachine(accelerator)
    with pytest.raises(ConfigError, match=f"{accelerator} here has no amx_tile; leave it out"):
        create_vcpus(vm, CpuConfig.parse(1, model="host,+amx_tile"))
    vm.create_vcpu(0)


def test_model_with_avx_off_has_no_avx_state_to_save() -> None:
    xsave = row(rows(VirtualMachine("soft"), "host,-avx"), 0xD)
    assert (xsave.eax, xsave.ecx) == (3, 576)
    assert not [row for row in rows(VirtualMachine("soft"), "host,-xsave") if row.function == 0xD]


def test_instruction_of_a_feature_taken_away_is_undefined() -> None:
    vm = VirtualMachine("soft")
    vm.memory.add_slot(0, gpa=0, size=0x10000)
    vm.memory.write(0x1000, bytes.fromhex("f30fb8c0f4"))  # popcnt eax, eax; hlt
    vm.memory.write(4 * 6, bytes.fromhex("00200000"))  # #UD leads to 0:2000
    vm.memory.write(0x2000, b"\xf4")
    (vcpu,) = create_vcpus(vm, CpuConfig.parse(1, model="x86-64-v2,-popcnt"))
    sregs = vcpu.sregs
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.sregs = sregs
    vcpu.set_regs(rip=0x1000, rsp=0x8000, rflags=2)
    vcpu.run()
    assert vcpu.regs.rip == 0x2001


def test_model_with_a_name_says_who_it_is() -> None:
    got = rows(VirtualMachine("soft"), "Haswell,-pcid,-invpcid")
    assert row(got, 1).eax == 0x306C4
    brand = b"".join(
        value.to_bytes(4, "little")
        for leaf in (0x8000_0002, 0x8000_0003, 0x8000_0004)
        for value in (
            row(got, leaf).eax,
            row(got, leaf).ebx,
            row(got, leaf).ecx,
            row(got, leaf).edx,
        )
    )
    assert brand.rstrip(b"\0") == b"Intel Xeon Processor (Haswell)"


def test_model_of_another_vendor_is_refused_where_hardware_runs_it() -> None:
    vm = VirtualMachine("soft")
    soft = offer_of(vm)
    hardware = replace(soft, accelerator="kvm")
    assert soft.vendor == "GenuineIntel"
    with pytest.raises(
        ConfigError, match=r"EPYC is not this host's vendor, GenuineIntel; take x86"
    ):
        hardware.processor(CpuModelConfig("EPYC"))
    identity = MODELS["EPYC"].identity
    assert identity is not None
    assert identity.vendor == AMD


def without_features(offer: Offer, *names: str) -> Offer:
    """`offer` of a host that lacks some."""

    def less(entry: CpuidEntry) -> CpuidEntry:
        entry = replace(entry)
        for name in names:
            word, bit = FEATURES[name]
            if (word.leaf, word.subleaf) == (entry.function, entry.index):
                setattr(entry, word.register, getattr(entry, word.register) & ~(1 << bit))
        return entry

    return replace(
        offer, default=[*map(less, offer.default)], everything=[*map(less, offer.everything)]
    )


def test_model_refused_names_the_shortest_cure() -> None:
    offer = without_features(offer_of(VirtualMachine("soft")), "avx", "avx2", "fma", "f16c")
    with pytest.raises(ConfigError, match=r"has no avx; write --cpu x86-64-v3,-avx$"):
        offer.processor(CpuModelConfig("x86-64-v3"))
    offer.processor(CpuModelConfig.parse("x86-64-v3,-avx"))


def test_feature_added_that_the_model_has_is_left_out_by_name() -> None:
    offer = without_features(offer_of(VirtualMachine("soft")), "avx2")
    with pytest.raises(ConfigError, match=r"has no avx2; write --cpu x86-64-v3,-avx2$"):
        offer.processor(CpuModelConfig.parse("x86-64-v3,+avx2"))
    offer.processor(CpuModelConfig.parse("x86-64-v3,-avx2"))


def test_model_that_lacks_much_is_refused_with_one_that_there_is() -> None:
    lacking = ("sse3", "cx16", "popcnt", "lahf_lm", "movbe", "abm", "bmi1", "bmi2")
    offer = without_features(offer_of(VirtualMachine("soft")), *lacking)
    with pytest.raises(ConfigError, match=r"lacks \d+ of its features; take x86-64-v1"):
        offer.processor(CpuModelConfig("Broadwell"))


def test_host_lacking_what_is_wanted_keeps_bits_without_a_name() -> None:
    vm = VirtualMachine("soft")
    offer = offer_of(vm)
    entry = next(entry for entry in offer.default if entry.function == 1)
    strange = [replace(entry, ecx=entry.ecx | 1 << 16)]
    assert offer.processor(CpuModelConfig("host")).rows(strange)[0].ecx & 1 << 16
    assert not offer.processor(CpuModelConfig("x86-64-v1")).rows(strange)[0].ecx & 1 << 16


def test_cpu_help_lists_models_without_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", "--cpu", "help"]) == 0
    shown = capsys.readouterr().out
    assert "x86-64-v3 " in shown
    assert "features of soft" in shown
    assert "features that this host has not" in shown


def test_cpu_wrong_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = tmp_path / "kernel"
    kernel.touch()
    assert invoke(["run", "--kernel", str(kernel), "--cpu", "x64"]) == 2
    said = capsys.readouterr().err
    assert "there is no CPU model 'x64'" in said
    assert said.count("\n") == 1

"""The feature bits of CPUID by name: where each is, and what it cannot do without.

Names are those of Linux's /proc/cpuinfo where that has one (`sse3`, which is `pni` there, aside);
QEMU's are understood, too. Sources: Intel SDM 2A, CPUID; AMD APM 3, appendix E; Linux,
cpufeatures.h; KVM's own leaves: Linux, Documentation/virt/kvm/x86/cpuid.rst.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from ostler.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Word:
    """A register of CPUID whose bits are features: leaf (EAX), subleaf (ECX), and which it is."""

    leaf: int
    subleaf: int
    register: str


# Bit 0 first; a dash is a bit that is reserved, describes no feature, or follows a register.
_WORDS = {
    Word(1, 0, "edx"): (
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush"
        " - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe"
    ),
    Word(1, 0, "ecx"): (
        "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr"
        " pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline aes xsave - avx f16c"
        " rdrand hypervisor"
    ),
    Word(6, 0, "eax"): ("- - arat"),
    Word(7, 0, "ebx"): (
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm"
        " zero_fcs_fds mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb"
        " intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"
    ),
    Word(7, 0, "ecx"): (
        "prefetchwt1 avx512vbmi umip pku - waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq"
        " avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid -"
        " bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks"
    ),
    Word(7, 0, "edx"): (
        "- - avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl"
        " md_clear rtm_always_abort - - serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16"
        " avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities"
        " core_capability ssbd"
    ),
    Word(7, 1, "eax"): (
        "- - - - avx_vnni avx512_bf16 - cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs"
        " wrmsrns - amx_fp16 - avx_ifma - - lam"
    ),
    Word(7, 1, "edx"): (
        "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchiti"
    ),
    Word(13, 1, "eax"): ("xsaveopt xsavec xgetbv1 xsaves xfd"),
    Word(0x4000_0001, 0, "eax"): (
        "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi"
        " kvm_pv_unhalt - kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control"
        " kvm_pv_sched_yield kvm_asyncpf_int kvm_msi_ext_dest_id - - - - - - - -"
        " kvmclock_stable_bit"
    ),
    Word(0x8000_0001, 0, "edx"): (
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb"
        " rdtscp - lm 3dnowext 3dnow"
    ),
    Word(0x8000_0001, 0, "ecx"): (
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw"
        " ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb"
        " - bpext ptsc perfctr_llc mwaitx"
    ),
    Word(0x8000_0007, 0, "ebx"): ("overflow_recov succor"),
    Word(0x8000_0007, 0, "edx"): ("- - - - - - - - invtsc"),
    Word(0x8000_0008, 0, "ebx"): (
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - ibpb - ibrs amd_stibp -"
        " stibp_always_on - - - - - - amd_ssbd virt_ssbd amd_no_ssb - amd_psfd"
    ),
    Word(0x8000_0021, 0, "eax"): (
        "no_nested_data_bp - lfence_rdtsc - - - null_sel_clr_base - auto_ibrs"
    ),
}

FEATURES: dict[str, tuple[Word, int]] = {
    name: (word, bit)
    for word, names in _WORDS.items()
    for bit, name in enumerate(names.split())
    if name != "-"
}
"""Each feature's register and its bit there."""
WORDS = tuple(_WORDS)

_ALIASES = {
    "pni": "sse3",
    "lzcnt": "abm",
    "sha": "sha_ni",
    "ffxsr": "fxsr_opt",
    "i64": "lm",
    "xd": "nx",
    "cmpxchg16b": "cx16",
    "cmpxchg8b": "cx8",
    "popcount": "popcnt",
    "pclmuldq": "pclmulqdq",
    "tsc_deadline_timer": "tsc_deadline",
    "invariant_tsc": "invtsc",
    "nonstop_tsc": "invtsc",
    "stibp": "intel_stibp",
    "prefetchw": "3dnowprefetch",
    "1gb_pages": "pdpe1gb",
}

# Without what stands behind them, these are nothing (Intel SDM 1, chapters 10 to 18).
_NEEDS = {
    "sse": "fxsr",
    "sse2": "sse",
    "sse3": "sse2",
    "ssse3": "sse3",
    "sse4_1": "ssse3",
    "sse4_2": "sse4_1",
    "sse4a": "sse3",
    "aes": "sse2",
    "pclmulqdq": "sse2",
    "sha_ni": "sse2",
    "gfni": "sse2",
    "avx": "xsave sse4_2",
    "xsaveopt": "xsave",
    "xsavec": "xsave",
    "xgetbv1": "xsave",
    "xsaves": "xsave",
    "xfd": "xsave",
    "pku": "xsave",
    "mpx": "xsave",
    "avx2": "avx",
    "fma": "avx",
    "fma4": "avx",
    "xop": "avx",
    "f16c": "avx",
    "vaes": "avx aes",
    "vpclmulqdq": "avx pclmulqdq",
    "avx_vnni": "avx2",
    "avx_ifma": "avx2",
    "avx_vnni_int8": "avx2",
    "avx_vnni_int16": "avx2",
    "avx_ne_convert": "avx2",
    "avx512f": "avx2 fma f16c",
    "amx_tile": "xsave",
    "amx_int8": "amx_tile",
    "amx_bf16": "amx_tile",
    "amx_fp16": "amx_tile",
    "amx_complex": "amx_tile",
    "kvmclock_stable_bit": "kvmclock2",
    "kvm_asyncpf_vmexit": "kvm_asyncpf",
    "kvm_asyncpf_int": "kvm_asyncpf",
    "invtsc": "tsc",
    "rdtscp": "tsc",
    "tsc_deadline": "apic",
    "x2apic": "apic",
}


def needs(name: str) -> tuple[str, ...]:
    """The features without which `name` is of no use."""
    if name.startswith("avx512") and name != "avx512f":
        return ("avx512f",)
    return tuple(_NEEDS.get(name, "").split())


def with_needs(names: Iterable[str]) -> set[str]:
    """`names`, and all that they need."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += needs(name)
    return found


def without(names: Iterable[str], gone: Iterable[str]) -> set[str]:
    """`names` less `gone` and less all that needs one of those."""
    gone = set(gone)
    return {name for name in names if not with_needs([name]) & gone}


def _plain(name: str) -> str:
    """Spellings differ in these: sse4.1, sse4-1, sse4_1."""
    return name.lower().translate({ord(letter): None for letter in ".-_"})


_BY_SPELLING = {
    **{_plain(name): name for name in FEATURES},
    **{_plain(alias): name for alias, name in _ALIASES.items()},
}


def feature(text: str, context: str) -> str:
    """The name of the feature that `text` spells; `context` starts a `ConfigError`'s message."""
    known = _BY_SPELLING.get(_plain(text))
    if known is None:
        close = get_close_matches(_plain(text), _BY_SPELLING, 1)
        hint = f"; is it {_BY_SPELLING[close[0]]}?" if close else ";"
        raise ConfigError(
            f"{context}: there is no CPU feature {text!r}{hint} --cpu help lists them"
        )
    return known


def listed(names: Iterable[str]) -> str:
    """`names` as text, in the order of CPUID."""
    order = {name: at for at, name in enumerate(FEATURES)}
    return ", ".join(sorted(names, key=order.__getitem__))

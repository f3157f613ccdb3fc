"""The processors a guest can be given: names for sets of features, the same on every host.

`x86-64-v1` to `v4` are the levels of the System V ABI for x86-64 (micro-architecture levels) with
what kernels need besides; the others are processors with vendor, signature and name, less what
their microcode has switched off since (TSX), and what guests get only when it is asked for:
performance counters, control of speculation, nested virtualization.
"""

from __future__ import annotations

from dataclasses import dataclass

INTEL, AMD = "GenuineIntel", "AuthenticAMD"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a processor says it is: vendor, EAX of leaf 1, and the name in leaves 0x80000002 to 4."""

    vendor: str
    signature: int
    brand: str


@dataclass(frozen=True, slots=True)
class CpuModel:
    """A set of features, and whose it is; without an identity, the accelerator's own stays."""

    what: str
    features: frozenset[str]
    identity: Identity | None = None


HOST, MAX = "host", "max"
SPECIAL = {
    HOST: "what the accelerator offers; the default",
    MAX: "all that it can give, also what ties a guest to this host (svm, vmx, invtsc)",
}


def _more(base: frozenset[str], more: str) -> frozenset[str]:
    return base | set(more.split())


_V1 = _more(
    frozenset(),
    "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2"
    " syscall nx lm",
)
_V2 = _more(_V1, "cx16 lahf_lm popcnt sse3 ssse3 sse4_1 sse4_2")
_V3 = _more(_V2, "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave")
_V4 = _more(_V3, "avx512f avx512bw avx512cd avx512dq avx512vl")

_WESTMERE = _more(_V2, "aes pclmulqdq")
_SANDY_BRIDGE = _more(_WESTMERE, "avx xsave xsaveopt rdtscp x2apic tsc_deadline")
_IVY_BRIDGE = _more(_SANDY_BRIDGE, "f16c rdrand fsgsbase smep erms")
_HASWELL = _more(_IVY_BRIDGE, "avx2 bmi1 bmi2 fma movbe abm pcid invpcid")
_BROADWELL = _more(_HASWELL, "rdseed adx smap 3dnowprefetch")
_SKYLAKE = _more(_BROADWELL, "xsavec xgetbv1 arat")
_SKYLAKE_SERVER = _more(
    _SKYLAKE, "avx512f avx512bw avx512cd avx512dq avx512vl clflushopt clwb pdpe1gb"
)
_CASCADE_LAKE = _more(_SKYLAKE_SERVER, "avx512_vnni")
_ICE_LAKE = _more(
    _CASCADE_LAKE,
    "avx512ifma avx512vbmi avx512_vbmi2 avx512_bitalg avx512_vpopcntdq gfni vaes vpclmulqdq umip"
    " rdpid sha_ni fsrm wbnoinvd",
)
_EPYC = _more(
    _V3,
    "aes pclmulqdq rdrand rdtscp xsaveopt xsavec xgetbv1 fsgsbase smep smap rdseed adx clflushopt"
    " sha_ni arat mmxext fxsr_opt pdpe1gb cr8_legacy sse4a misalignsse 3dnowprefetch osvw topoext",
)
_EPYC_ROME = _more(_EPYC, "clwb umip rdpid wbnoinvd clzero xsaveerptr")
_EPYC_MILAN = _more(_EPYC_ROME, "pcid invpcid erms fsrm vaes vpclmulqdq")
_EPYC_GENOA = _more(
    _EPYC_MILAN,
    "avx512f avx512bw avx512cd avx512dq avx512vl avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni"
    " avx512_bitalg avx512_vpopcntdq avx512_bf16 gfni",
)


def _intel(signature: int, brand: str, features: frozenset[str]) -> CpuModel:
    identity = Identity(INTEL, signature, f"Intel Xeon Processor ({brand})")
    return CpuModel(f"Intel Xeon, {brand}", features, identity)


def _amd(signature: int, brand: str, features: frozenset[str]) -> CpuModel:
    identity = Identity(AMD, signature, f"AMD EPYC Processor ({brand})")
    return CpuModel(f"AMD EPYC, {brand}", features, identity)


MODELS: dict[str, CpuModel] = {
    "x86-64-v1": CpuModel("every 64-bit processor", _V1),
    "x86-64-v2": CpuModel("processors since 2009", _V2),
    "x86-64-v3": CpuModel("processors with AVX2, since 2013", _V3),
    "x86-64-v4": CpuModel("processors with AVX-512", _V4),
    "Nehalem": _intel(0x106A3, "Nehalem", _V2),
    "Westmere": _intel(0x206C1, "Westmere", _WESTMERE),
    "SandyBridge": _intel(0x206A1, "Sandy Bridge", _SANDY_BRIDGE),
    "IvyBridge": _intel(0x306A9, "Ivy Bridge", _IVY_BRIDGE),
    "Haswell": _intel(0x306C4, "Haswell", _HASWELL),
    "Broadwell": _intel(0x306D2, "Broadwell", _BROADWELL),
    "Skylake-Client": _intel(0x506E3, "Skylake, client", _SKYLAKE),
    "Skylake-Server": _intel(0x50654, "Skylake", _SKYLAKE_SERVER),
    "Cascadelake-Server": _intel(0x50656, "Cascade Lake", _CASCADE_LAKE),
    "Icelake-Server": _intel(0x606A0, "Ice Lake", _ICE_LAKE),
    "EPYC": _amd(0x80_0F12, "Naples", _EPYC),
    "EPYC-Rome": _amd(0x83_0F10, "Rome", _EPYC_ROME),
    "EPYC-Milan": _amd(0xA0_0F11, "Milan", _EPYC_MILAN),
    "EPYC-Genoa": _amd(0xA1_0F10, "Genoa", _EPYC_GENOA),
}

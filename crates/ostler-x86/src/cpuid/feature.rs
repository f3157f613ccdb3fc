//! The features that decide whether an instruction exists.

use iced_x86::CpuidFeature;
use ostler_engine::regs::CpuidEntry;

#[derive(Clone, Copy, Debug)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}

macro_rules! features {
    ($($name:ident: $leaf:literal $register:ident $bit:literal;)*) => {
        /// A feature bit of CPUID.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Feature {
            $($name,)*
        }

        impl Feature {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            const fn place(self) -> (u32, Register, u32) {
                match self {
                    $(Self::$name => ($leaf, Register::$register, $bit),)*
                }
            }
        }
    };
}

features! {
    Tsc: 1 Edx 4;
    Cx8: 1 Edx 8;
    Sep: 1 Edx 11;
    Cmov: 1 Edx 15;
    Clflush: 1 Edx 19;
    Mmx: 1 Edx 23;
    Fxsr: 1 Edx 24;
    Sse: 1 Edx 25;
    Sse2: 1 Edx 26;
    Sse3: 1 Ecx 0;
    Pclmul: 1 Ecx 1;
    Monitor: 1 Ecx 3;
    Ssse3: 1 Ecx 9;
    Fma: 1 Ecx 12;
    Cx16: 1 Ecx 13;
    Sse41: 1 Ecx 19;
    Sse42: 1 Ecx 20;
    Movbe: 1 Ecx 22;
    Popcnt: 1 Ecx 23;
    Aes: 1 Ecx 25;
    Xsave: 1 Ecx 26;
    Avx: 1 Ecx 28;
    F16c: 1 Ecx 29;
    Rdrand: 1 Ecx 30;
    Fsgsbase: 7 Ebx 0;
    Bmi1: 7 Ebx 3;
    Avx2: 7 Ebx 5;
    Smep: 7 Ebx 7;
    Bmi2: 7 Ebx 8;
    Invpcid: 7 Ebx 10;
    Rdseed: 7 Ebx 18;
    Adx: 7 Ebx 19;
    Smap: 7 Ebx 20;
    Clflushopt: 7 Ebx 23;
    Sha: 7 Ebx 29;
    Umip: 7 Ecx 2;
    Rdpid: 7 Ecx 22;
    Lahf64: 0x8000_0001 Ecx 0;
    Lzcnt: 0x8000_0001 Ecx 5;
    Prefetchw: 0x8000_0001 Ecx 8;
    Syscall: 0x8000_0001 Edx 11;
    Rdtscp: 0x8000_0001 Edx 27;
    LongMode: 0x8000_0001 Edx 29;
}

impl Feature {
    pub fn leaf(self) -> u32 {
        self.place().0
    }

    /// Whether the row of this feature's leaf says it is there.
    pub fn is_in(self, entry: &CpuidEntry) -> bool {
        let (_, register, bit) = self.place();
        let value = match register {
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        };
        value >> bit & 1 != 0
    }

    /// The feature that the decoder's name stands for; `None` for what every CPU has, and for what
    /// no row of the instruction table offers anyway.
    pub fn of_instruction(feature: CpuidFeature) -> Option<Self> {
        Some(match feature {
            CpuidFeature::TSC => Self::Tsc,
            CpuidFeature::CX8 => Self::Cx8,
            CpuidFeature::SEP => Self::Sep,
            CpuidFeature::CMOV => Self::Cmov,
            CpuidFeature::CLFSH => Self::Clflush,
            CpuidFeature::MMX => Self::Mmx,
            CpuidFeature::FXSR => Self::Fxsr,
            CpuidFeature::SSE => Self::Sse,
            CpuidFeature::SSE2 => Self::Sse2,
            CpuidFeature::SSE3 => Self::Sse3,
            CpuidFeature::PCLMULQDQ => Self::Pclmul,
            CpuidFeature::MONITOR => Self::Monitor,
            CpuidFeature::SSSE3 => Self::Ssse3,
            CpuidFeature::FMA => Self::Fma,
            CpuidFeature::CMPXCHG16B => Self::Cx16,
            CpuidFeature::SSE4_1 => Self::Sse41,
            CpuidFeature::SSE4_2 => Self::Sse42,
            CpuidFeature::MOVBE => Self::Movbe,
            CpuidFeature::POPCNT => Self::Popcnt,
            CpuidFeature::AES => Self::Aes,
            CpuidFeature::XSAVE | CpuidFeature::XSAVEOPT => Self::Xsave,
            CpuidFeature::AVX => Self::Avx,
            CpuidFeature::F16C => Self::F16c,
            CpuidFeature::RDRAND => Self::Rdrand,
            CpuidFeature::FSGSBASE => Self::Fsgsbase,
            CpuidFeature::BMI1 => Self::Bmi1,
            CpuidFeature::AVX2 => Self::Avx2,
            CpuidFeature::BMI2 => Self::Bmi2,
            CpuidFeature::INVPCID => Self::Invpcid,
            CpuidFeature::RDSEED => Self::Rdseed,
            CpuidFeature::ADX => Self::Adx,
            CpuidFeature::SMAP => Self::Smap,
            CpuidFeature::CLFLUSHOPT => Self::Clflushopt,
            CpuidFeature::SHA => Self::Sha,
            CpuidFeature::RDPID => Self::Rdpid,
            CpuidFeature::LZCNT => Self::Lzcnt,
            CpuidFeature::SYSCALL => Self::Syscall,
            CpuidFeature::RDTSCP => Self::Rdtscp,
            _ => return None,
        })
    }
}

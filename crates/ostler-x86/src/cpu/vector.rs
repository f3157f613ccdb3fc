//! The x87, MMX, SSE and AVX registers.

/// The register state that XSAVE manages: components 0 (x87), 1 (SSE) and 2 (AVX).
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct VectorState {
    /// YMM0..YMM15; the low 16 bytes are XMM0..XMM15.
    pub ymm: [[u8; 32]; 16],
    /// The first 160 bytes of an FXSAVE image: control, status, abridged tag, opcode and pointers,
    /// MXCSR (kept in [`VectorState::mxcsr`] instead) and ST0..ST7 in 16 bytes each.
    pub x87: X87Image,
    pub mxcsr: u32,
}

/// Bytes 0..160 of the 64-bit FXSAVE format (SDM vol. 1, table 10-2).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct X87Image {
    pub fcw: u16,
    pub fsw: u16,
    /// One bit per physical register: set when it is not empty.
    pub ftw: u8,
    pub reserved: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub mxcsr: u32,
    pub mxcsr_mask: u32,
    /// ST0..ST7 (not R0..R7): 10 bytes each, then 6 of zero.
    pub st: [[u8; 16]; 8],
}

/// MXCSR after reset: every exception masked.
pub const MXCSR_RESET: u32 = 0x1f80;
/// The bits of MXCSR that exist.
pub const MXCSR_MASK: u32 = 0xffff;

impl Default for X87Image {
    fn default() -> Self {
        Self {
            fcw: 0x037f,
            fsw: 0,
            ftw: 0,
            reserved: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: MXCSR_RESET,
            mxcsr_mask: MXCSR_MASK,
            st: [[0; 16]; 8],
        }
    }
}

impl Default for VectorState {
    fn default() -> Self {
        Self { ymm: [[0; 32]; 16], x87: X87Image::default(), mxcsr: MXCSR_RESET }
    }
}

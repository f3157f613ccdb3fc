//! The vector state as the standard XSAVE image (SDM vol. 1, 13.4).

use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::regs::XsaveArea;

use crate::cpu::Cpu;
use crate::cpu::vector::{MXCSR_MASK, MXCSR_RESET, VectorState};
use crate::exec::availability::xcr0;

/// The FXSAVE image, the header, the upper halves of YMM0..YMM15.
const BYTES: usize = 832;
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;
const ST: usize = 32;

/// The whole state; every component is marked as present.
pub fn save(cpu: &Cpu) -> XsaveArea {
    let mut bytes = vec![0; BYTES];
    let state = &cpu.vector;
    let x87 = &state.x87;
    bytes[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
    bytes[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
    bytes[4] = x87.ftw;
    bytes[6..8].copy_from_slice(&x87.fop.to_le_bytes());
    bytes[8..16].copy_from_slice(&x87.fip.to_le_bytes());
    bytes[16..24].copy_from_slice(&x87.fdp.to_le_bytes());
    bytes[24..28].copy_from_slice(&state.mxcsr.to_le_bytes());
    bytes[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for (index, register) in x87.st.iter().enumerate() {
        bytes[ST + 16 * index..][..16].copy_from_slice(register);
    }
    for (index, register) in state.ymm.iter().enumerate() {
        bytes[XMM + 16 * index..][..16].copy_from_slice(&register[..16]);
        bytes[YMM_HIGH + 16 * index..][..16].copy_from_slice(&register[16..]);
    }
    let present = xcr0::X87 | xcr0::SSE | if cpu.cpuid.has_avx() { xcr0::AVX } else { 0 };
    bytes[HEADER..HEADER + 8].copy_from_slice(&present.to_le_bytes());
    XsaveArea { bytes }
}

/// Takes over an image; components that its header does not name get their initial state.
pub fn restore(cpu: &mut Cpu, area: &XsaveArea) -> Result<()> {
    let bytes = &area.bytes;
    if bytes.len() < YMM_HIGH {
        return Err(AccelError::BadState { what: "the size of the XSAVE image", value: bytes.len() as u64 });
    }
    let present = number(bytes, HEADER, 8);
    let known = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    if present & !known != 0 || number(bytes, HEADER + 8, 8) != 0 || present & xcr0::AVX != 0 && bytes.len() < BYTES {
        return Err(AccelError::BadState { what: "the XSAVE header", value: present });
    }
    let mxcsr = number(bytes, 24, 4) as u32;
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(AccelError::BadState { what: "MXCSR", value: u64::from(mxcsr) });
    }
    let mxcsr = if present & (xcr0::SSE | xcr0::AVX) != 0 { mxcsr } else { MXCSR_RESET };
    let mut state = VectorState { mxcsr, ..VectorState::default() };
    if present & xcr0::X87 != 0 {
        restore_x87(&mut state, bytes);
    }
    for (index, register) in state.ymm.iter_mut().enumerate() {
        if present & xcr0::SSE != 0 {
            register[..16].copy_from_slice(&bytes[XMM + 16 * index..][..16]);
        }
        if present & xcr0::AVX != 0 {
            register[16..].copy_from_slice(&bytes[YMM_HIGH + 16 * index..][..16]);
        }
    }
    cpu.vector = state;
    Ok(())
}

fn restore_x87(state: &mut VectorState, bytes: &[u8]) {
    let x87 = &mut state.x87;
    x87.fcw = number(bytes, 0, 2) as u16;
    x87.fsw = number(bytes, 2, 2) as u16;
    x87.ftw = bytes[4];
    x87.fop = number(bytes, 6, 2) as u16;
    x87.fip = number(bytes, 8, 8);
    x87.fdp = number(bytes, 16, 8);
    for (index, register) in x87.st.iter_mut().enumerate() {
        register[..10].copy_from_slice(&bytes[ST + 16 * index..][..10]);
    }
}

/// A little-endian number of up to 8 bytes.
fn number(bytes: &[u8], offset: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    word[..len].copy_from_slice(&bytes[offset..offset + len]);
    u64::from_le_bytes(word)
}

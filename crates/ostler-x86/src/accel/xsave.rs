//! The vector state as the standard XSAVE image (SDM vol. 1, 13.4).

use ostler_engine::AccelError;
use ostler_engine::accel::Result;
use ostler_engine::regs::XsaveArea;

use crate::cpu::Cpu;
use crate::cpu::vector::{MXCSR_MASK, MXCSR_RESET, VectorState};
use crate::exec::availability::xcr0;
use crate::exec::fxsave::{IMAGE_BYTES, MXCSR, XMM, number};

/// The FXSAVE image, the header, the upper halves of YMM0..YMM15.
const BYTES: usize = 832;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;

/// The whole state; every component is marked as present.
pub fn save(cpu: &Cpu) -> XsaveArea {
    let mut image = [0; IMAGE_BYTES];
    cpu.put_x87(&mut image, true);
    cpu.put_mxcsr(&mut image);
    let mut bytes = image.to_vec();
    bytes.resize(BYTES, 0);
    for (index, register) in cpu.vector.ymm.iter().enumerate() {
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
    let present = number::<8>(bytes, HEADER);
    let known = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    if present & !known != 0 || number::<8>(bytes, HEADER + 8) != 0 || present & xcr0::AVX != 0 && bytes.len() < BYTES {
        return Err(AccelError::BadState { what: "the XSAVE header", value: present });
    }
    let mxcsr = number::<4>(bytes, MXCSR) as u32;
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(AccelError::BadState { what: "MXCSR", value: u64::from(mxcsr) });
    }
    let mxcsr = if present & (xcr0::SSE | xcr0::AVX) != 0 { mxcsr } else { MXCSR_RESET };
    let mut state = VectorState { mxcsr, ..VectorState::default() };
    if present & xcr0::X87 != 0 {
        let mut image = [0; IMAGE_BYTES];
        image.copy_from_slice(&bytes[..IMAGE_BYTES]);
        state.x87 = cpu.x87_of(&image, true);
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
    cpu.summarize_x87();
    Ok(())
}

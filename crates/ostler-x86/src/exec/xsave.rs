//! XSAVE, XSAVEOPT and XRSTOR in the standard format (SDM vol. 1, 13.4 to 13.9). The compacted
//! format and the supervisor components do not exist on our CPU.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::regs::{RAX, RDX};
use crate::cpu::stop::Exec;
use crate::cpu::vector::{MXCSR_RESET, X87Image};
use crate::decode::op::{Handler, Op};
use crate::exec::availability::xcr0;
use crate::exec::fxsave::{IMAGE_BYTES, MXCSR, ST, XMM, number};

/// The legacy image and the header.
const WITHOUT_AVX: usize = 576;
/// Where XSTATE_BV is, and XCOMP_BV after it.
const HEADER: usize = 512;
/// The upper halves of YMM0..YMM15.
const YMM_HIGH: usize = 576;
const WITH_AVX: usize = 832;

const ALIGNMENT: u64 = 64;

impl Cpu {
    /// The components that the instruction speaks of: EDX:EAX as far as XCR0 allows.
    fn requested_components(&self) -> u64 {
        let mask = self.regs.get(RDX) << 32 | self.regs.get(RAX) & 0xffff_ffff;
        mask & self.xcr0
    }

    /// XINUSE: the components that are not in their initial state.
    fn components_in_use(&self) -> u64 {
        let count = self.vector_registers();
        let registers = &self.vector.ymm[..count];
        let sse = self.vector.mxcsr != MXCSR_RESET || registers.iter().any(|register| register[..16] != [0; 16]);
        let avx = registers.iter().any(|register| register[16..] != [0; 16]);
        [(!self.vector.x87.is_initial(), xcr0::X87), (sse, xcr0::SSE), (avx, xcr0::AVX)]
            .into_iter()
            .filter_map(|(used, component)| used.then_some(component))
            .sum()
    }
}

fn area_bytes(components: u64) -> usize {
    if components & xcr0::AVX != 0 { WITH_AVX } else { WITHOUT_AVX }
}

fn xsave<const WIDE: bool, const OPTIMIZED: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_xsave()?;
    let requested = cpu.requested_components();
    let bytes = area_bytes(requested);
    let linear = cpu.image_address(op, bytes, ALIGNMENT, true)?;
    cpu.probe_write(linear, bytes)?;
    let in_use = cpu.components_in_use();
    let written = if OPTIMIZED { requested & in_use } else { requested };
    let header: u64 = cpu.load(cpu.wrap(linear.wrapping_add(HEADER as u64)))?;
    let header = header & !requested | in_use & requested;

    let mut image = [0; IMAGE_BYTES];
    cpu.put_x87(&mut image, WIDE);
    cpu.put_mxcsr(&mut image);
    cpu.put_xmm(&mut image);
    let count = cpu.vector_registers();
    if written & xcr0::X87 != 0 {
        cpu.store_part(linear, 0, &image[..MXCSR])?;
        cpu.store_part(linear, ST, &image[ST..XMM])?;
    }
    if requested & xcr0::AVX_STATE != 0 {
        cpu.store_part(linear, MXCSR, &image[MXCSR..ST])?;
    }
    if written & xcr0::SSE != 0 {
        cpu.store_part(linear, XMM, &image[XMM..XMM + 16 * count])?;
    }
    if written & xcr0::AVX != 0 {
        let mut upper = [0; WITH_AVX - YMM_HIGH];
        for (half, register) in upper.chunks_exact_mut(16).zip(&cpu.vector.ymm[..count]) {
            half.copy_from_slice(&register[16..]);
        }
        cpu.store_part(linear, YMM_HIGH, &upper[..16 * count])?;
    }
    cpu.store_part(linear, HEADER, &header.to_le_bytes())
}

impl Cpu {
    fn store_part(&mut self, linear: u64, offset: usize, data: &[u8]) -> Exec {
        self.store_bytes(self.wrap(linear.wrapping_add(offset as u64)), data)
    }
}

fn xrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_xsave()?;
    let requested = cpu.requested_components();
    let linear = cpu.image_address(op, area_bytes(requested), ALIGNMENT, false)?;
    let mut area = [0; WITH_AVX];
    cpu.load_bytes(linear, &mut area[..WITHOUT_AVX])?;
    let present = number::<8>(&area, HEADER);
    let must_be_zero = number::<8>(&area, HEADER + 8) | number::<8>(&area, HEADER + 16);
    if present & !cpu.xcr0 != 0 || must_be_zero != 0 {
        return Err(cpu.gp(0));
    }
    if requested & present & xcr0::AVX != 0 {
        cpu.load_bytes(cpu.wrap(linear.wrapping_add(YMM_HIGH as u64)), &mut area[YMM_HIGH..])?;
    } else {
        area[YMM_HIGH..].fill(0);
    }
    // Also when XSTATE_BV says that SSE is in its initial state: the standard format keeps MXCSR apart.
    if requested & xcr0::AVX_STATE != 0 {
        cpu.vector.mxcsr = cpu.mxcsr_of(&area[MXCSR..])?;
    }
    restore::<WIDE>(cpu, &mut area, requested, present);
    Ok(())
}

/// Nothing can fault any more.
fn restore<const WIDE: bool>(cpu: &mut Cpu, area: &mut [u8; WITH_AVX], requested: u64, present: u64) {
    let (legacy, rest) = area.split_at_mut(IMAGE_BYTES);
    let mut image = [0; IMAGE_BYTES];
    image.copy_from_slice(legacy);
    if requested & xcr0::X87 != 0 {
        let x87 = if present & xcr0::X87 != 0 { cpu.x87_of(&image, WIDE) } else { X87Image::default() };
        cpu.set_x87(x87);
    }
    if requested & xcr0::SSE != 0 {
        if present & xcr0::SSE == 0 {
            image[XMM..].fill(0);
        }
        cpu.take_xmm(&image);
    }
    if requested & xcr0::AVX != 0 {
        let count = cpu.vector_registers();
        let upper = rest[YMM_HIGH - IMAGE_BYTES..].chunks_exact(16);
        for (register, half) in cpu.vector.ymm[..count].iter_mut().zip(upper) {
            register[16..].copy_from_slice(half);
        }
    }
}

/// XSAVE, XSAVEOPT, XRSTOR and their forms with 64-bit pointers.
pub fn select_xsave(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Xsave => xsave::<false, false>,
        Mnemonic::Xsave64 => xsave::<true, false>,
        Mnemonic::Xsaveopt => xsave::<false, true>,
        Mnemonic::Xsaveopt64 => xsave::<true, true>,
        Mnemonic::Xrstor => xrstor::<false>,
        Mnemonic::Xrstor64 => xrstor::<true>,
        _ => return None,
    })
}

//! FXSAVE and FXRSTOR, the image they share with XSAVE (SDM vol. 1, 10.5), and MXCSR.

use iced_x86::{EncodingKind, Instruction, Mnemonic};

use crate::cpu::stop::Exec;
use crate::cpu::vector::{MXCSR_MASK, X87Image};
use crate::cpu::{Cpu, Mode};
use crate::decode::op::{Handler, Op};

/// Bytes of the whole image.
pub const IMAGE_BYTES: usize = 512;
/// Where MXCSR and its mask are.
pub const MXCSR: usize = 24;
/// ST0, in 16 bytes like its successors.
pub const ST: usize = 32;
/// XMM0.
pub const XMM: usize = 160;

const FIP: usize = 8;
const FDP: usize = 16;
/// Bytes of an x87 register.
const REGISTER_BYTES: usize = 10;

/// A little-endian number of `N` bytes in an image.
pub fn number<const N: usize>(image: &[u8], offset: usize) -> u64 {
    let mut word = [0; 8];
    word[..N].copy_from_slice(&image[offset..offset + N]);
    u64::from_le_bytes(word)
}

impl Cpu {
    /// XMM and YMM registers that this mode can reach.
    pub fn vector_registers(&self) -> usize {
        if self.bitness == 64 { 16 } else { 8 }
    }

    /// FIP and FDP as they are kept: the offset, and outside 64-bit mode the selector from bit 32 on.
    /// In the image without REX.W the offset has 32 bits, and 64-bit mode knows no selector.
    fn pointer_mask(&self, wide: bool) -> u64 {
        match (wide, self.mode) {
            (true, _) => u64::MAX,
            (false, Mode::Long) => 0xffff_ffff,
            (false, _) => 0xffff_ffff_ffff,
        }
    }

    /// Writes the x87 part: bytes 0..24 and 32..160.
    pub fn put_x87(&self, image: &mut [u8; IMAGE_BYTES], wide: bool) {
        let x87 = &self.vector.x87;
        let mask = self.pointer_mask(wide);
        image[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
        image[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
        image[4] = x87.ftw;
        image[6..8].copy_from_slice(&x87.fop.to_le_bytes());
        image[FIP..FIP + 8].copy_from_slice(&(x87.fip & mask).to_le_bytes());
        image[FDP..FDP + 8].copy_from_slice(&(x87.fdp & mask).to_le_bytes());
        for (index, register) in x87.st.iter().enumerate() {
            image[ST + 16 * index..][..REGISTER_BYTES].copy_from_slice(&register[..REGISTER_BYTES]);
        }
    }

    /// What the x87 part of an image says.
    pub fn x87_of(&self, image: &[u8; IMAGE_BYTES], wide: bool) -> X87Image {
        let mask = self.pointer_mask(wide);
        let mut x87 = X87Image {
            fsw: number::<2>(image, 2) as u16,
            ftw: image[4],
            fop: number::<2>(image, 6) as u16 & 0x7ff,
            fip: number::<8>(image, FIP) & mask,
            fdp: number::<8>(image, FDP) & mask,
            ..X87Image::default()
        };
        x87.set_control(number::<2>(image, 0) as u16);
        for (index, register) in x87.st.iter_mut().enumerate() {
            register[..REGISTER_BYTES].copy_from_slice(&image[ST + 16 * index..][..REGISTER_BYTES]);
        }
        x87
    }

    /// Writes MXCSR and the mask of its bits that exist.
    pub fn put_mxcsr(&self, image: &mut [u8; IMAGE_BYTES]) {
        image[MXCSR..MXCSR + 4].copy_from_slice(&self.vector.mxcsr.to_le_bytes());
        image[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    }

    /// Writes the XMM registers that this mode can reach.
    pub fn put_xmm(&self, image: &mut [u8; IMAGE_BYTES]) {
        let count = self.vector_registers();
        for (index, register) in self.vector.ymm[..count].iter().enumerate() {
            image[XMM + 16 * index..][..16].copy_from_slice(&register[..16]);
        }
    }

    /// Takes the XMM registers that this mode can reach.
    pub fn take_xmm(&mut self, image: &[u8; IMAGE_BYTES]) {
        let count = self.vector_registers();
        for (index, register) in self.vector.ymm[..count].iter_mut().enumerate() {
            register[..16].copy_from_slice(&image[XMM + 16 * index..][..16]);
        }
    }

    /// MXCSR from an image; #GP(0) when it sets bits that do not exist.
    pub fn mxcsr_of(&mut self, image: &[u8]) -> Result<u32, crate::cpu::stop::Stop> {
        let value = number::<4>(image, 0) as u32;
        if value & !MXCSR_MASK != 0 {
            return Err(self.gp(0));
        }
        Ok(value)
    }
}

fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_fpu()?;
    let linear = cpu.image_address(op, IMAGE_BYTES, 16, true)?;
    let mut image = [0; IMAGE_BYTES];
    cpu.put_x87(&mut image, WIDE);
    cpu.put_mxcsr(&mut image);
    cpu.put_xmm(&mut image);
    // The rest belongs to software.
    let bytes = XMM + 16 * cpu.vector_registers();
    cpu.probe_write(linear, IMAGE_BYTES)?;
    cpu.store_bytes(linear, &image[..bytes])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_fpu()?;
    let linear = cpu.image_address(op, IMAGE_BYTES, 16, false)?;
    let mut image = [0; IMAGE_BYTES];
    cpu.load_bytes(linear, &mut image)?;
    cpu.vector.mxcsr = cpu.mxcsr_of(&image[MXCSR..])?;
    cpu.take_xmm(&image);
    let x87 = cpu.x87_of(&image, WIDE);
    cpu.set_x87(x87);
    Ok(())
}

fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if VEX {
        cpu.check_avx()?
    } else {
        cpu.check_sse()?
    }
    let linear = cpu.linear(op, 4, false)?;
    let value: u32 = cpu.load(linear)?;
    cpu.vector.mxcsr = cpu.mxcsr_of(&value.to_le_bytes())?;
    Ok(())
}

fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Exec {
    if VEX {
        cpu.check_avx()?
    } else {
        cpu.check_sse()?
    }
    let linear = cpu.linear(op, 4, true)?;
    cpu.store(linear, cpu.vector.mxcsr)
}

impl Cpu {
    /// The linear address of a state image; #GP(0) when it is not aligned.
    pub fn image_address(
        &mut self,
        op: &Op,
        bytes: usize,
        alignment: u64,
        write: bool,
    ) -> Result<u64, crate::cpu::stop::Stop> {
        let linear = self.linear(op, bytes, write)?;
        if linear % alignment != 0 {
            return Err(self.gp(0));
        }
        Ok(linear)
    }
}

/// FXSAVE, FXSAVE64, FXRSTOR and FXRSTOR64.
pub fn select_fxsave(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fxsave => fxsave::<false>,
        Mnemonic::Fxsave64 => fxsave::<true>,
        Mnemonic::Fxrstor => fxrstor::<false>,
        Mnemonic::Fxrstor64 => fxrstor::<true>,
        _ => return None,
    })
}

/// LDMXCSR and STMXCSR, with VEX and without.
pub fn select_mxcsr(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    let vex = instruction.code().op_code().encoding() == EncodingKind::VEX;
    Some(match (instruction.mnemonic(), vex) {
        (Mnemonic::Ldmxcsr, false) => ldmxcsr::<false>,
        (Mnemonic::Stmxcsr, false) => stmxcsr::<false>,
        (Mnemonic::Vldmxcsr, true) => ldmxcsr::<true>,
        (Mnemonic::Vstmxcsr, true) => stmxcsr::<true>,
        _ => return None,
    })
}

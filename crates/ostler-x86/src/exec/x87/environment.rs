//! FNSTENV, FLDENV, FNSAVE and FRSTOR: the environment in its four formats (SDM vol. 1, 8.1.10), and
//! the registers after it.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::cpu::stop::Exec;
use crate::cpu::vector::X87Image;
use crate::decode::op::{Handler, Op};
use crate::exec::fxsave::number;
use crate::exec::x87::registers::fsw;

const REGISTER_BYTES: usize = 10;
const REGISTERS_BYTES: usize = 8 * REGISTER_BYTES;
const LARGEST: usize = 28 + REGISTERS_BYTES;

/// One of the formats of the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    /// Operand size 32: 28 bytes, not 14.
    wide: bool,
    /// Real or virtual-8086 mode: linear addresses, not far pointers.
    real: bool,
}

impl Format {
    fn of(cpu: &Cpu, op: &Op) -> Self {
        Self { wide: op.imm == 28 || op.imm == 108, real: cpu.is_real_or_v86() }
    }

    /// Bytes of the environment.
    fn bytes(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// The seven words: control, status, tags, and four of pointers.
    fn words(self, x87: &X87Image) -> [u32; 7] {
        let fop = u32::from(x87.fop & 0x7ff);
        let [first, second] = [(x87.fip, fop), (x87.fdp, 0)].map(|(pointer, fop)| self.pointer_words(pointer, fop));
        let (control, status, tags) = (u32::from(x87.fcw), u32::from(x87.fsw), u32::from(x87.full_tags()));
        let ones = if self.wide { 0xffff_0000 } else { 0 };
        [control | ones, status | ones, tags | ones, first.0, first.1, second.0, second.1]
    }

    fn pointer_words(self, pointer: u64, fop: u32) -> (u32, u32) {
        let (offset, selector) = (pointer as u32, (pointer >> 32) as u32 & 0xffff);
        let linear = offset.wrapping_add(selector << 4);
        match (self.wide, self.real) {
            (true, false) => (offset, selector | fop << 16),
            (true, true) => (linear & 0xffff, linear >> 16 << 12 | fop),
            (false, false) => (offset & 0xffff, selector),
            (false, true) => (linear & 0xffff, (linear >> 16 & 15) << 12 | fop),
        }
    }

    fn write(self, x87: &X87Image, image: &mut [u8]) {
        let word_bytes = self.bytes() / 7;
        for (word, place) in self.words(x87).iter().zip(image.chunks_exact_mut(word_bytes)) {
            place.copy_from_slice(&word.to_le_bytes()[..word_bytes]);
        }
    }

    /// Takes control, status, tags and pointers from an image; the physical registers stay.
    fn read(self, x87: &mut X87Image, image: &[u8]) {
        let word = |index: usize| match self.wide {
            true => number::<4>(image, 4 * index),
            false => number::<2>(image, 2 * index),
        };
        x87.set_control(word(0) as u16);
        let status = word(1) as u16;
        x87.set_top(usize::from((status & fsw::TOP) >> fsw::TOP_SHIFT));
        x87.fsw = status;
        x87.set_tags(word(2) as u16);
        x87.fip = self.pointer(word(3), word(4));
        x87.fdp = self.pointer(word(5), word(6));
        x87.fop = match (self.wide, self.real) {
            (true, false) => (word(4) >> 16) as u16 & 0x7ff,
            (_, true) => word(4) as u16 & 0x7ff,
            // The 16-bit protected format has no room for it.
            (false, false) => 0,
        };
    }

    fn pointer(self, low: u64, high: u64) -> u64 {
        match (self.wide, self.real) {
            (_, false) => low | (high & 0xffff) << 32,
            (true, true) => low & 0xffff | (high >> 12 & 0xffff) << 16,
            (false, true) => low | (high >> 12 & 15) << 16,
        }
    }
}

fn fnstenv(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_fpu()?;
    let format = Format::of(cpu, op);
    let linear = cpu.linear(op, format.bytes(), true)?;
    let mut image = [0; 28];
    format.write(&cpu.vector.x87, &mut image);
    cpu.store_bytes(linear, &image[..format.bytes()])?;
    cpu.vector.x87.fcw |= fsw::EXCEPTIONS;
    cpu.summarize_x87();
    Ok(())
}

fn fldenv(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.begin_x87()?;
    let format = Format::of(cpu, op);
    let linear = cpu.linear(op, format.bytes(), false)?;
    let mut image = [0; 28];
    cpu.load_bytes(linear, &mut image[..format.bytes()])?;
    format.read(&mut cpu.vector.x87, &image);
    cpu.summarize_x87();
    Ok(())
}

fn fnsave(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_fpu()?;
    let format = Format::of(cpu, op);
    let bytes = format.bytes() + REGISTERS_BYTES;
    let linear = cpu.linear(op, bytes, true)?;
    let mut image = [0; LARGEST];
    format.write(&cpu.vector.x87, &mut image[..format.bytes()]);
    let registers = image[format.bytes()..].chunks_exact_mut(REGISTER_BYTES);
    for (place, register) in registers.zip(&cpu.vector.x87.st) {
        place.copy_from_slice(&register[..REGISTER_BYTES]);
    }
    cpu.store_bytes(linear, &image[..bytes])?;
    cpu.vector.x87.initialize();
    cpu.summarize_x87();
    Ok(())
}

fn frstor(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.begin_x87()?;
    let format = Format::of(cpu, op);
    let bytes = format.bytes() + REGISTERS_BYTES;
    let linear = cpu.linear(op, bytes, false)?;
    let mut image = [0; LARGEST];
    cpu.load_bytes(linear, &mut image[..bytes])?;
    let x87 = &mut cpu.vector.x87;
    format.read(x87, &image);
    let registers = image[format.bytes()..].chunks_exact(REGISTER_BYTES);
    for (register, saved) in x87.st.iter_mut().zip(registers) {
        register[..REGISTER_BYTES].copy_from_slice(saved);
    }
    cpu.summarize_x87();
    Ok(())
}

/// The instructions on the environment; `imm` gets the bytes of the operand.
pub fn select_environment(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    op.imm = instruction.memory_size().size() as u64;
    Some(match instruction.mnemonic() {
        Mnemonic::Fnstenv => fnstenv,
        Mnemonic::Fldenv => fldenv,
        Mnemonic::Fnsave => fnsave,
        Mnemonic::Frstor => frstor,
        _ => return None,
    })
}

//! MMX, SSE and AVX instructions, run by the host: see [`crate::host::stub`].

mod gather;
mod masked;
mod memory;
mod moves;

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::cpu::Cpu;
use crate::cpu::control::cr4;
use crate::cpu::regs::{RAX, RCX, RDX};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::vector::MXCSR_RESET;
use crate::decode::op::{Handler, Op};
use crate::host::stub::{Frame, MemoryOperand, Operand, Stub, stub};
use crate::host::trap;

pub use gather::select_gather;
pub use masked::{select_masked, select_masked_bytes};
pub use moves::{select_move, select_zeroupper};

/// The sticky exception flags of MXCSR, UE among them; the bits that mask them; FTZ.
const MXCSR_FLAGS: u32 = 0x3f;
const MXCSR_UNDERFLOW: u32 = 0x10;
const MXCSR_MASKS: u32 = 0x1f80;
const MXCSR_FLUSH: u32 = 0x8000;

/// An instruction that does not look at MXCSR.
pub fn select_integer(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    select(instruction, op, false)
}

/// An instruction that rounds, or may raise a floating-point exception.
pub fn select_float(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    select(instruction, op, true)
}

fn select(instruction: &Instruction, op: &mut Op, float: bool) -> Option<Handler> {
    if !host_has(instruction) {
        return None;
    }
    let stub = stub(instruction, float)?;
    op.imm = std::ptr::from_ref(stub) as u64;
    if instruction.op_count() > 3 && instruction.op_kind(3) == OpKind::Register {
        op.sub = crate::decode::decoder::register_offset(instruction.op_register(3));
    }
    if stub.string_compare {
        // The lengths are RAX and RDX with REX.W, EAX and EDX without.
        let wide = matches!(
            instruction.mnemonic(),
            Mnemonic::Pcmpestri64 | Mnemonic::Pcmpestrm64 | Mnemonic::Vpcmpestri64 | Mnemonic::Vpcmpestrm64
        );
        op.sub = if wide { 8 } else { 4 };
    }
    Some(if stub.mmx {
        run_mmx
    } else if stub.vex {
        run_avx
    } else {
        run_sse
    })
}

/// Whether the host runs everything the instruction needs.
pub fn host_has(instruction: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    instruction.cpuid_features().iter().all(|feature| match feature {
        F::MMX | F::SSE | F::SSE2 => true,
        F::SSE3 => is_x86_feature_detected!("sse3"),
        F::SSSE3 => is_x86_feature_detected!("ssse3"),
        F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SHA => is_x86_feature_detected!("sha"),
        F::AVX => is_x86_feature_detected!("avx"),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::F16C => is_x86_feature_detected!("f16c"),
        _ => false,
    })
}

fn stub_of(op: &Op) -> &'static Stub {
    // SAFETY: `select` put the address of a leaked stub here, and handlers of this module are only
    // reached through it.
    unsafe { &*(op.imm as *const Stub) }
}

fn run_sse(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_sse()?;
    cpu.run_stub(op, stub_of(op))
}

fn run_avx(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.check_avx()?;
    cpu.run_stub(op, stub_of(op))
}

/// An MMX instruction makes the x87 stack look full and its top 0 (SDM vol. 1, 9.5.1).
fn run_mmx(cpu: &mut Cpu, op: &Op) -> Exec {
    let stub = stub_of(op);
    if stub.operands.contains(&Operand::Vector) {
        cpu.check_sse()?;
    }
    cpu.begin_mmx()?;
    if let Err(stop) = cpu.run_stub(op, stub) {
        // A conversion's exception comes after the x87 state has become MMX's.
        if stop == Stop::Fault && cpu.fault.vector == vector::XM {
            cpu.end_mmx();
        }
        return Err(stop);
    }
    let registers = [op.reg0, op.reg1, op.reg2, op.sub];
    for (position, number) in registers.into_iter().enumerate() {
        if stub.operands[position] == Operand::Mmx && stub.written[position] {
            cpu.mark_mmx_written(number);
        }
    }
    cpu.end_mmx();
    Ok(())
}

impl Cpu {
    fn run_stub(&mut self, op: &Op, stub: &Stub) -> Exec {
        let mut frame = Frame::default();
        let linear = match stub.memory {
            Some(memory) => self.load_operand(op, memory, &mut frame)?,
            None => 0,
        };
        let mut general = [0u64; 4];
        let registers = [op.reg0, op.reg1, op.reg2, op.sub];
        for position in 0..4 {
            if let Operand::General(bytes) = stub.operands[position] {
                general[position] = self.general_operand(registers[position], bytes);
                frame.operands[position] = (&raw mut general[position]).cast();
            }
        }
        if stub.string_compare {
            let mask = if op.sub == 8 { u64::MAX } else { 0xffff_ffff };
            frame.rax = self.regs.get(RAX) & mask;
            frame.rdx = self.regs.get(RDX) & mask;
            frame.rcx = self.regs.get(RCX);
        }
        if stub.float {
            self.run_float(op, stub, &mut frame)?;
        } else {
            self.run_on_registers(op, stub, &mut frame);
        }
        if let Some(memory) = stub.memory.filter(|memory| memory.write) {
            self.store_vector(linear, &frame.memory[..usize::from(memory.bytes)])?;
        }
        if stub.sets_flags {
            self.flags.set_arithmetic(frame.rflags);
        }
        if stub.string_compare {
            self.regs.set(RCX, frame.rcx);
        }
        for position in 0..4 {
            if let (Operand::General(bytes), true) = (stub.operands[position], stub.written[position]) {
                self.set_general_operand(registers[position], bytes, general[position]);
            }
        }
        Ok(())
    }

    /// Runs with the vector and MMX registers in place, as far as they are operands.
    fn run_on_registers(&mut self, op: &Op, stub: &Stub, frame: &mut Frame) {
        self.point_to_registers(op, stub, frame);
        (stub.run)(frame);
    }

    /// To be done right before the stub runs: any other use of the registers invalidates the pointers.
    fn point_to_registers(&mut self, op: &Op, stub: &Stub, frame: &mut Frame) {
        for (position, number) in [op.reg0, op.reg1, op.reg2, op.sub].into_iter().enumerate() {
            match stub.operands[position] {
                Operand::Vector => {
                    frame.operands[position] = self.vector.ymm[usize::from(number % 16)].as_mut_ptr();
                }
                Operand::Mmx => frame.operands[position] = self.mmx_register(number),
                _ => {}
            }
        }
        frame.implicit = self.vector.ymm[0].as_mut_ptr();
    }

    /// Runs with the guest's rounding.
    fn run_float(&mut self, op: &Op, stub: &Stub, frame: &mut Frame) -> Exec {
        let guest = self.vector.mxcsr & !MXCSR_FLAGS;
        frame.mxcsr = guest;
        frame.mxcsr_host = MXCSR_RESET;
        if guest & MXCSR_MASKS == MXCSR_MASKS {
            self.run_on_registers(op, stub, frame);
        } else if self.may_trap(op, stub, frame) {
            self.point_to_registers(op, stub, frame);
            trap::run(stub, frame);
        }
        self.vector.mxcsr |= frame.mxcsr_after & MXCSR_FLAGS;
        if frame.trapped == 0 {
            return Ok(());
        }
        if self.cr4 & cr4::OSXMMEXCPT == 0 {
            return Err(self.undefined());
        }
        Err(self.raise(vector::XM))
    }

    /// Runs with all exceptions masked, which is the result unless a flag that the guest has unmasked was raised: then
    /// it is undone, and true. With FTZ, any tiny result raises UE, as it does where underflow is unmasked.
    fn may_trap(&mut self, op: &Op, stub: &Stub, frame: &mut Frame) -> bool {
        let guest = frame.mxcsr;
        let masks = guest >> 7 & MXCSR_FLAGS;
        let traps_tiny = masks & MXCSR_UNDERFLOW == 0;
        if traps_tiny && stub.ignores_flush {
            return true;
        }
        let before = self.vector.clone();
        frame.mxcsr = guest | MXCSR_MASKS | if traps_tiny { MXCSR_FLUSH } else { 0 };
        self.run_on_registers(op, stub, frame);
        frame.mxcsr = guest;
        let may_trap = frame.mxcsr_after & MXCSR_FLAGS & !masks != 0;
        if may_trap {
            self.vector = before;
        }
        may_trap
    }

    /// Fetches the memory operand; `Ok` has its linear address.
    fn load_operand(&mut self, op: &Op, memory: MemoryOperand, frame: &mut Frame) -> Result<u64, Stop> {
        let bytes = usize::from(memory.bytes);
        let linear = self.linear(op, bytes, memory.write)?;
        if memory.aligned && linear % u64::from(memory.bytes) != 0 {
            return Err(self.gp(0));
        }
        if memory.read {
            self.load_vector(linear, &mut frame.memory[..bytes])?;
        }
        if memory.write {
            self.probe_vector(linear, bytes)?;
        }
        Ok(linear)
    }

    fn general_operand(&self, offset: u8, bytes: u8) -> u64 {
        match bytes {
            1 => u64::from(self.regs.read::<u8>(offset)),
            2 => u64::from(self.regs.read::<u16>(offset)),
            4 => u64::from(self.regs.read::<u32>(offset)),
            _ => self.regs.read(offset),
        }
    }

    fn set_general_operand(&mut self, offset: u8, bytes: u8, value: u64) {
        match bytes {
            1 => self.regs.write(offset, value as u8),
            2 => self.regs.write(offset, value as u16),
            4 => self.regs.write(offset, value as u32),
            _ => self.regs.write(offset, value),
        }
    }
}

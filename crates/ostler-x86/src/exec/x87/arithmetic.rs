//! The instructions that the host runs: everything but control.

use iced_x86::{Encoder, Instruction, Mnemonic, OpAccess, OpKind, Register};

use crate::cpu::stop::Exec;
use crate::cpu::vector::X87Image;
use crate::cpu::{Cpu, Mode};
use crate::decode::op::{FLAT, Handler, Op};
use crate::exec::x87::host::{self, Form, Memory};
use crate::exec::x87::registers::fsw;

/// The exceptions that keep a result from being stored when they are unmasked: all but precision.
const PREVENTS_STORE: u16 = 0x1f;

/// What a selector puts into `imm`: the form, what FOP becomes, and the bytes of the memory operand.
#[derive(Clone, Copy)]
struct Plan {
    form: Form,
    fop: u16,
    bytes: u8,
    /// FCMOVcc reads RFLAGS, FCOMI and its relatives write them.
    uses_flags: bool,
}

impl Plan {
    fn pack(self) -> u64 {
        u64::from(self.form.index())
            | u64::from(self.fop) << 16
            | u64::from(self.bytes) << 32
            | u64::from(self.uses_flags) << 40
    }

    fn of(op: &Op) -> Self {
        Self {
            form: Form::from_index(op.imm as u16),
            fop: (op.imm >> 16) as u16,
            bytes: (op.imm >> 32) as u8,
            uses_flags: op.imm >> 40 & 1 != 0,
        }
    }
}

impl Cpu {
    fn run_x87(&mut self, plan: Plan, memory: &mut Memory) -> (X87Image, u64) {
        let flags = if plan.uses_flags { self.flags.arithmetic() } else { 0 };
        host::run(plan.form, &self.vector.x87, flags, memory)
    }

    /// Takes over what the host made of the state. `fdp` is the memory operand's far pointer.
    fn finish_x87(&mut self, op: &Op, plan: Plan, after: &(X87Image, u64), fdp: Option<u64>) {
        let fip = self.far_pointer(crate::cpu::segment::CS, self.op_rip(op));
        let (image, flags) = after;
        let x87 = &mut self.vector.x87;
        (x87.fsw, x87.ftw, x87.st) = (image.fsw, image.ftw, image.st);
        (x87.fop, x87.fip) = (plan.fop, fip);
        if let Some(fdp) = fdp {
            x87.fdp = fdp;
        }
        if plan.uses_flags {
            self.flags.set_arithmetic(*flags);
        }
    }

    /// FIP and FDP: the offset, and outside 64-bit mode the selector from bit 32 on.
    fn far_pointer(&self, segment: usize, offset: u64) -> u64 {
        match self.mode {
            Mode::Long => offset,
            _ => offset & 0xffff_ffff | u64::from(self.segments[segment & 7].selector) << 32,
        }
    }

    fn operand_pointer(&self, op: &Op) -> u64 {
        let segment = if op.seg == FLAT { crate::cpu::segment::DS } else { usize::from(op.seg) };
        self.far_pointer(segment, self.effective_address(op))
    }
}

fn on_registers(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.begin_x87()?;
    let plan = Plan::of(op);
    let after = cpu.run_x87(plan, &mut Memory::default());
    cpu.finish_x87(op, plan, &after, None);
    Ok(())
}

fn from_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.begin_x87()?;
    let plan = Plan::of(op);
    let bytes = usize::from(plan.bytes).min(16);
    let linear = cpu.linear(op, bytes, false)?;
    let mut memory = Memory::default();
    cpu.load_bytes(linear, &mut memory.0[..bytes])?;
    let after = cpu.run_x87(plan, &mut memory);
    let fdp = cpu.operand_pointer(op);
    cpu.finish_x87(op, plan, &after, Some(fdp));
    Ok(())
}

fn to_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.begin_x87()?;
    let plan = Plan::of(op);
    let bytes = usize::from(plan.bytes).min(16);
    let linear = cpu.linear(op, bytes, true)?;
    cpu.probe_write(linear, bytes)?;
    let mut memory = Memory::default();
    let after = cpu.run_x87(plan, &mut memory);
    // Nothing was pending before, so what is unmasked now was raised by this instruction.
    let unmasked = after.0.fsw & !after.0.fcw & fsw::EXCEPTIONS;
    if unmasked & PREVENTS_STORE == 0 {
        cpu.store_bytes(linear, &memory.0[..bytes])?;
    }
    let fdp = cpu.operand_pointer(op);
    cpu.finish_x87(op, plan, &after, Some(fdp));
    Ok(())
}

/// Any instruction that computes, moves or compares x87 registers.
pub fn select_arithmetic(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let (opcode, modrm) = opcode_and_modrm(&canonical(instruction))?;
    // The pointer's opcode has the ModRM byte that the guest wrote.
    let (_, written) = opcode_and_modrm(instruction).unwrap_or((opcode, modrm));
    let memory = (0..instruction.op_count()).find(|index| instruction.op_kind(*index) == OpKind::Memory);
    let bytes = if memory.is_some() { u8::try_from(instruction.memory_size().size()).ok()? } else { 0 };
    let plan = Plan {
        form: Form::new(opcode, modrm)?,
        fop: u16::from(opcode & 7) << 8 | u16::from(written),
        bytes,
        uses_flags: uses_flags(instruction.mnemonic()),
    };
    op.imm = plan.pack();
    Some(match memory {
        None => on_registers,
        Some(index) if writes(instruction, index) => to_memory,
        Some(_) => from_memory,
    })
}

fn uses_flags(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip)
        || matches!(mnemonic, M::Fcmovb | M::Fcmove | M::Fcmovbe | M::Fcmovu)
        || matches!(mnemonic, M::Fcmovnb | M::Fcmovne | M::Fcmovnbe | M::Fcmovnu)
}

fn writes(instruction: &Instruction, index: u32) -> bool {
    let mut factory = iced_x86::InstructionInfoFactory::new();
    factory.info(instruction).op_access(index) == OpAccess::Write
}

/// The instruction with its memory operand at [RSI].
fn canonical(instruction: &Instruction) -> Instruction {
    let mut instruction = *instruction;
    if instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
        instruction.set_memory_base(Register::RSI);
        instruction.set_memory_index(Register::None);
        instruction.set_memory_index_scale(1);
        instruction.set_memory_displacement64(0);
        instruction.set_memory_displ_size(0);
        instruction.set_segment_prefix(Register::None);
    }
    instruction
}

/// The two bytes of an x87 instruction that name it; `None` when it cannot be encoded.
fn opcode_and_modrm(instruction: &Instruction) -> Option<(u8, u8)> {
    let mut encoder = Encoder::new(encodable_bitness(instruction));
    encoder.encode(instruction, instruction.ip()).ok()?;
    let bytes = encoder.take_buffer();
    // Prefixes come first, and none of them is D8..DF.
    let opcode = bytes.iter().position(|byte| byte & 0xf8 == 0xd8)?;
    Some((bytes[opcode], *bytes.get(opcode + 1)?))
}

/// A bitness in which the instruction's address can be encoded.
fn encodable_bitness(instruction: &Instruction) -> u32 {
    let is_64 = |register: Register| register.is_gpr64() || register == Register::RIP;
    let is_16 = |register: Register| register.is_gpr16();
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    match instruction.code_size() {
        _ if is_64(base) || is_64(index) => 64,
        _ if is_16(base) || is_16(index) => 32,
        iced_x86::CodeSize::Code16 => 16,
        iced_x86::CodeSize::Code32 => 32,
        _ => 64,
    }
}

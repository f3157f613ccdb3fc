//! Random operands for an instruction, chosen by what its op-code table entry says they may be.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};

use crate::address;
use crate::generate::Draft;
use crate::initial::INDEX_VECTORS;
use crate::state::Mode;

/// `None` when `code` has an operand this generator does not make.
pub fn fill(draft: &mut Draft, code: Code) -> Option<Instruction> {
    let mut item = Instruction::default();
    item.set_code(code);
    let info = code.op_code();
    for (index, kind) in info.op_kinds().iter().enumerate() {
        operand(draft, &mut item, index as u32, *kind)?;
    }
    prefixes(draft, &mut item);
    Some(item)
}

fn operand(draft: &mut Draft, item: &mut Instruction, index: u32, kind: Kind) -> Option<()> {
    if let Some(register) = register(draft, kind) {
        item.set_op_kind(index, OpKind::Register);
        item.try_set_op_register(index, register).ok()?;
        return Some(());
    }
    match kind {
        Kind::mem
        | Kind::mem_vsib32x
        | Kind::mem_vsib64x
        | Kind::mem_vsib32y
        | Kind::mem_vsib64y
        | Kind::r8_or_mem
        | Kind::r16_or_mem
        | Kind::r32_or_mem
        | Kind::r64_or_mem
        | Kind::mm_or_mem
        | Kind::xmm_or_mem
        | Kind::ymm_or_mem => {
            item.set_op_kind(index, OpKind::Memory);
            let index = index_vector(draft, kind);
            address::memory(draft, item, index);
        }
        Kind::mem_offs => {
            item.set_op_kind(index, OpKind::Memory);
            address::offset_only(draft, item);
        }
        Kind::seg_rBX_al => {
            item.set_op_kind(index, OpKind::Memory);
            item.set_memory_base(match draft.mode {
                Mode::Long => Register::RBX,
                Mode::Compatibility => Register::EBX,
                Mode::Sixteen => Register::BX,
            });
            item.set_memory_index(Register::AL);
        }
        Kind::seg_rSI | Kind::es_rDI | Kind::seg_rDI => item.set_op_kind(index, string_operand(draft, kind)),
        Kind::br16_1 | Kind::br16_2 => {
            item.set_op_kind(index, OpKind::NearBranch16);
            item.set_near_branch16(draft.random.below(4) as u16);
        }
        Kind::br32_1 | Kind::br32_4 => {
            item.set_op_kind(index, OpKind::NearBranch32);
            item.set_near_branch32(draft.random.below(4) as u32);
        }
        Kind::br64_1 | Kind::br64_4 => {
            item.set_op_kind(index, OpKind::NearBranch64);
            item.set_near_branch64(draft.random.below(4));
        }
        _ => return immediate(draft, item, index, kind),
    }
    Some(())
}

fn immediate(draft: &mut Draft, item: &mut Instruction, index: u32, kind: Kind) -> Option<()> {
    let value = draft.random.integer();
    let second = index > 0 && item.op_kind(index - 1) == OpKind::Immediate16;
    match kind {
        Kind::imm8 if second => {
            item.set_op_kind(index, OpKind::Immediate8_2nd);
            // ENTER's nesting level: deep ones mostly fault.
            item.set_immediate8_2nd(value as u8 & if draft.random.percent(70) { 3 } else { 0xff });
        }
        Kind::imm8 => {
            item.set_op_kind(index, OpKind::Immediate8);
            item.set_immediate8(value as u8);
        }
        Kind::imm8_const_1 => {
            item.set_op_kind(index, OpKind::Immediate8);
            item.set_immediate8(1);
        }
        Kind::imm8sex16 => {
            item.set_op_kind(index, OpKind::Immediate8to16);
            item.set_immediate8to16((value as i8).into());
        }
        Kind::imm8sex32 => {
            item.set_op_kind(index, OpKind::Immediate8to32);
            item.set_immediate8to32((value as i8).into());
        }
        Kind::imm8sex64 => {
            item.set_op_kind(index, OpKind::Immediate8to64);
            item.set_immediate8to64((value as i8).into());
        }
        Kind::imm16 => {
            item.set_op_kind(index, OpKind::Immediate16);
            let small = item.mnemonic() == Mnemonic::Enter && draft.random.percent(80);
            item.set_immediate16(value as u16 & if small { 0xff } else { 0xffff });
        }
        Kind::imm32 => {
            item.set_op_kind(index, OpKind::Immediate32);
            item.set_immediate32(value as u32);
        }
        Kind::imm32sex64 => {
            item.set_op_kind(index, OpKind::Immediate32to64);
            item.set_immediate32to64((value as i32).into());
        }
        Kind::imm64 => {
            item.set_op_kind(index, OpKind::Immediate64);
            item.set_immediate64(value);
        }
        _ => return None,
    }
    Some(())
}

/// The register for an operand that is one, or for a register-or-memory operand that shall be one this time.
fn register(draft: &mut Draft, kind: Kind) -> Option<Register> {
    let either = matches!(
        kind,
        Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
    );
    if either && draft.random.percent(50) {
        return None;
    }
    let wide = draft.mode == Mode::Long;
    Some(match kind {
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => byte_register(draft),
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_reg_mem | Kind::r16_rm | Kind::r16_opcode => {
            Register::AX + general(draft)
        }
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_reg_mem | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
            Register::EAX + general(draft)
        }
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_reg_mem | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
            Register::RAX + general(draft)
        }
        Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => Register::MM0 + draft.random.below(8) as u32,
        Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
            Register::XMM0 + draft.random.below(if wide { 16 } else { 8 }) as u32
        }
        Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
            Register::YMM0 + draft.random.below(if wide { 16 } else { 8 }) as u32
        }
        Kind::seg_reg => draft.random.pick(&SEGMENTS),
        Kind::cr_reg => draft.random.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4]),
        Kind::dr_reg => Register::DR0 + draft.random.below(8) as u32,
        Kind::es => Register::ES,
        Kind::cs => Register::CS,
        Kind::ss => Register::SS,
        Kind::ds => Register::DS,
        Kind::fs => Register::FS,
        Kind::gs => Register::GS,
        Kind::al => Register::AL,
        Kind::cl => Register::CL,
        Kind::ax => Register::AX,
        Kind::dx => Register::DX,
        Kind::eax => Register::EAX,
        Kind::rax => Register::RAX,
        Kind::st0 => Register::ST0,
        Kind::sti_opcode => Register::ST0 + draft.random.below(8) as u32,
        _ => return None,
    })
}

const SEGMENTS: [Register; 6] = [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];

/// A general register's number; RSP rarely, for it is the stack of what follows.
fn general(draft: &mut Draft) -> u32 {
    let number = draft.random.below(draft.mode.gprs() as u64) as u32;
    if number == 4 && draft.random.percent(90) { 0 } else { number }
}

fn byte_register(draft: &mut Draft) -> Register {
    if draft.random.percent(30) || draft.mode != Mode::Long {
        return Register::AL + draft.random.below(8) as u32;
    }
    let number = general(draft);
    // AL, CL, DL, BL, AH, CH, DH, BH, SPL, BPL, SIL, DIL, R8L...
    if number < 4 { Register::AL + number } else { Register::AL + number + 4 }
}

fn string_operand(draft: &mut Draft, kind: Kind) -> OpKind {
    let narrow = draft.random.percent(6);
    if draft.mode == Mode::Sixteen && draft.random.percent(75) {
        return match kind {
            Kind::seg_rSI => OpKind::MemorySegSI,
            Kind::es_rDI => OpKind::MemoryESDI,
            _ => OpKind::MemorySegDI,
        };
    }
    match (kind, draft.mode == Mode::Long && !narrow) {
        (Kind::seg_rSI, true) => OpKind::MemorySegRSI,
        (Kind::seg_rSI, false) => OpKind::MemorySegESI,
        (Kind::es_rDI, true) => OpKind::MemoryESRDI,
        (Kind::es_rDI, false) => OpKind::MemoryESEDI,
        (_, true) => OpKind::MemorySegRDI,
        (_, false) => OpKind::MemorySegEDI,
    }
}

/// The index register of a gather.
fn index_vector(draft: &mut Draft, kind: Kind) -> Option<Register> {
    let base = match kind {
        Kind::mem_vsib32x | Kind::mem_vsib64x => Register::XMM0,
        Kind::mem_vsib32y | Kind::mem_vsib64y => Register::YMM0,
        _ => return None,
    };
    let slot = (0..INDEX_VECTORS.len()).find(|slot| draft.index_vectors[*slot] && draft.random.percent(70));
    let count = draft.mode.gprs();
    let number = slot.map_or(draft.random.below(count as u64) as usize, |slot| INDEX_VECTORS[slot]);
    Some(base + (number as u32).min(count as u32 - 1))
}

fn prefixes(draft: &mut Draft, item: &mut Instruction) {
    let info = item.code().op_code();
    let memory = item.op_count() > 0 && item.op0_kind() == OpKind::Memory;
    let lock = if info.can_use_lock_prefix() && memory { 40 } else { 0 };
    if draft.random.percent(lock) {
        item.set_has_lock_prefix(true);
    }
    if info.can_use_rep_prefix() && draft.random.percent(60) {
        let compares = info.can_use_repne_prefix() && draft.random.percent(50);
        if compares { item.set_has_repne_prefix(true) } else { item.set_has_rep_prefix(true) }
    }
}

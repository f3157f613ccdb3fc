//! Control registers (SDM vol. 3, 2.5).

use iced_x86::{Instruction, OpKind};

use crate::cpu::Cpu;
use crate::cpu::control::{cr0, cr4, efer};
use crate::cpu::segment::CS;
use crate::cpu::stop::{Exec, Stop};
use crate::decode::op::{Handler, Op, op_flag};
use crate::exec::operand::{Mem, Place, Source};
use crate::exec::system::tlb::serialize;
use crate::mmu::walk::PHYSICAL_BITS;

/// Bits of CR0 that exist.
const CR0_IMPLEMENTED: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
/// With CR4.PCIDE, in a value for CR3: keep the translations of the new PCID.
const CR3_NO_FLUSH: u64 = 1 << 63;

fn exists(number: u8) -> bool {
    matches!(number, 0 | 2 | 3 | 4 | 8)
}

/// MOV to and from a control register.
pub fn select(instruction: &Instruction, op: &mut Op) -> Option<Handler> {
    let to_control = instruction.op0_register().is_cr();
    let number = if to_control { op.reg0 } else { op.reg1 };
    // LOCK MOV CR0 is AMD's way to CR8 and not ours.
    if !exists(number) || instruction.has_lock_prefix() || instruction.op0_kind() != OpKind::Register {
        return None;
    }
    Some(if to_control { write_control } else { read_control })
}

fn read_control(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_cpl0()?;
    let value = match op.reg1 {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => cpu.cr8(),
    };
    write_register(cpu, op, op.reg0, value);
    Ok(())
}

/// A MOV from a control or debug register has 64 bits in 64-bit mode, and 32 elsewhere.
pub fn write_register(cpu: &mut Cpu, op: &Op, register: u8, value: u64) {
    if op.has(op_flag::LONG) {
        cpu.regs.write(register, value);
    } else {
        cpu.regs.write(register, value as u32);
    }
}

pub fn read_register(cpu: &Cpu, op: &Op, register: u8) -> u64 {
    if op.has(op_flag::LONG) { cpu.regs.read(register) } else { u64::from(cpu.regs.read::<u32>(register)) }
}

fn write_control(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_cpl0()?;
    let value = read_register(cpu, op, op.reg1);
    serialize();
    let accepted = match op.reg0 {
        0 => cpu.write_cr0(value),
        2 => {
            cpu.cr2 = value;
            true
        }
        3 => cpu.write_cr3(value),
        4 => cpu.write_cr4(value),
        _ => cpu.write_cr8(value),
    };
    if accepted { Err(Stop::EndBlock) } else { Err(cpu.gp(0)) }
}

pub fn clts(cpu: &mut Cpu, _: &Op) -> Exec {
    cpu.require_cpl0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

pub fn select_lmsw(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(if instruction.op0_kind() == OpKind::Memory { lmsw_memory } else { lmsw_register })
}

fn lmsw_register(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_cpl0()?;
    let value = cpu.regs.read::<u16>(op.reg0);
    lmsw(cpu, value)
}

fn lmsw_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_cpl0()?;
    let value = Mem::read::<u16>(cpu, op)?;
    lmsw(cpu, value)
}

/// Loads PE, MP, EM and TS; PE cannot be cleared.
fn lmsw(cpu: &mut Cpu, value: u16) -> Exec {
    const LOW: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let new = cpu.cr0 & !(LOW & !cr0::PE) | u64::from(value) & LOW;
    if cpu.write_cr0(new) { Err(Stop::EndBlock) } else { Err(cpu.gp(0)) }
}

pub fn select_smsw(instruction: &Instruction, _: &mut Op) -> Option<Handler> {
    Some(if instruction.op0_kind() == OpKind::Memory { smsw_memory } else { smsw_register })
}

fn smsw_register(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_no_umip()?;
    let value = cpu.cr0;
    match op.size {
        2 => cpu.regs.write(op.reg0, value as u16),
        4 => cpu.regs.write(op.reg0, value as u32),
        _ => cpu.regs.write(op.reg0, value),
    }
    Ok(())
}

fn smsw_memory(cpu: &mut Cpu, op: &Op) -> Exec {
    cpu.require_no_umip()?;
    let value = cpu.cr0 as u16;
    Mem::write(cpu, op, value)
}

impl Cpu {
    /// Whether CR3 points to the four PDPTEs of legacy PAE paging.
    pub fn uses_pdptes(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA == 0
    }

    /// False is #GP.
    pub fn write_cr0(&mut self, value: u64) -> bool {
        let new = value & CR0_IMPLEMENTED | cr0::ET;
        let changed = new ^ self.cr0;
        let paged_without_protection = new & cr0::PG != 0 && new & cr0::PE == 0;
        if value >> 32 != 0 || paged_without_protection || new & cr0::NW != 0 && new & cr0::CD == 0 {
            return false;
        }
        let mut efer = self.efer;
        if changed & cr0::PG != 0 && !self.switch_paging(new, &mut efer) {
            return false;
        }
        let pae = new & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && efer & efer::LMA == 0;
        if pae && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && !self.load_pdptes(self.cr3) {
            return false;
        }
        (self.cr0, self.efer) = (new, efer);
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        true
    }

    /// CR0.PG changes: long mode is entered or left (SDM vol. 3, 10.8.5). False is #GP.
    fn switch_paging(&self, new_cr0: u64, efer: &mut u64) -> bool {
        let long_code = self.segments[CS].rights.long();
        if new_cr0 & cr0::PG == 0 {
            if *efer & efer::LMA != 0 && long_code || self.cr4 & cr4::PCIDE != 0 {
                return false;
            }
            *efer &= !efer::LMA;
        } else if *efer & efer::LME != 0 {
            if self.cr4 & cr4::PAE == 0 || long_code {
                return false;
            }
            *efer |= efer::LMA;
        }
        true
    }

    /// False is #GP.
    pub fn write_cr3(&mut self, value: u64) -> bool {
        let keep = self.cr4 & cr4::PCIDE != 0 && value & CR3_NO_FLUSH != 0;
        let new = if keep { value & !CR3_NO_FLUSH } else { value };
        if self.efer & efer::LMA != 0 && new >> PHYSICAL_BITS != 0 {
            return false;
        }
        if self.uses_pdptes() && !self.load_pdptes(new) {
            return false;
        }
        self.cr3 = new;
        self.switch_space(keep);
        true
    }

    /// False is #GP.
    pub fn write_cr4(&mut self, value: u64) -> bool {
        let changed = value ^ self.cr4;
        let long = self.efer & efer::LMA != 0;
        let enables_pcid = changed & value & cr4::PCIDE != 0;
        if value & !cr4::IMPLEMENTED != 0
            || long && value & cr4::PAE == 0
            || enables_pcid && (!long || self.cr3 & 0xfff != 0)
        {
            return false;
        }
        let pae = self.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && !long;
        if pae && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 && !self.load_pdptes(self.cr3) {
            return false;
        }
        self.cr4 = value;
        if changed & cr4::PAGING != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        true
    }

    pub fn cr8(&self) -> u64 {
        u64::from(self.lapic.as_ref().map_or(self.msrs.tpr, |lapic| lapic.tpr() >> 4))
    }

    /// False is #GP.
    pub fn write_cr8(&mut self, value: u64) -> bool {
        if value > 15 {
            return false;
        }
        match &self.lapic {
            Some(lapic) => lapic.set_tpr((value as u8) << 4),
            None => self.msrs.tpr = value as u8,
        }
        true
    }

    /// Whether XCR0 may have this value: x87 always, AVX only with SSE, nothing we do not have.
    pub fn set_xcr0(&mut self, value: u64) -> bool {
        use crate::exec::availability::xcr0;
        let available = xcr0::X87 | xcr0::SSE | if self.cpuid.has_avx() { xcr0::AVX } else { 0 };
        let avx_without_sse = value & xcr0::AVX_STATE == xcr0::AVX;
        if value & xcr0::X87 == 0 || value & !available != 0 || avx_without_sse {
            return false;
        }
        self.xcr0 = value;
        true
    }
}

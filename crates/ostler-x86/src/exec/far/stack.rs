//! A stack that a far transfer pushes to or pops from, before any register has changed.

use crate::cpu::Cpu;
use crate::cpu::control::{cr4, efer};
use crate::cpu::flags::bit;
use crate::cpu::regs::RSP;
use crate::cpu::segment::{SS, SegmentRegister};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::mmu::Privilege;
use crate::mmu::access::is_canonical;

/// A stack and a private copy of its pointer.
#[derive(Clone, Copy, Debug)]
pub struct FarStack {
    base: u64,
    /// The bits of the pointer that change.
    mask: u64,
    pub pointer: u64,
    /// What the limit is checked against; none in 64-bit mode.
    segment: Option<SegmentRegister>,
    /// The error code of #SS: 0 for the current stack, the selector for a new one.
    error: u32,
    privilege: Privilege,
}

impl FarStack {
    /// The stack in use.
    pub fn current(cpu: &Cpu) -> Self {
        let long = cpu.bitness == 64;
        Self {
            base: cpu.segment_base[SS],
            mask: cpu.stack_mask,
            pointer: cpu.regs.get(RSP),
            segment: (!long).then_some(cpu.segments[SS]),
            error: 0,
            privilege: cpu.mmu.privilege,
        }
    }

    /// The stack in `segment`, entered with privilege level `cpl`.
    pub fn entering(cpu: &Cpu, segment: SegmentRegister, pointer: u64, cpl: u8) -> Self {
        Self {
            base: segment.base,
            mask: if segment.rights.big() { 0xffff_ffff } else { 0xffff },
            pointer,
            segment: Some(segment),
            error: u32::from(segment.selector & 0xfffc),
            privilege: privilege_of(cpu, cpl),
        }
    }

    /// The stack at `pointer` in 64-bit mode.
    pub fn long(cpu: &Cpu, pointer: u64, cpl: u8) -> Self {
        Self { base: 0, mask: u64::MAX, pointer, segment: None, error: 0, privilege: privilege_of(cpu, cpl) }
    }

    pub fn push(&mut self, cpu: &mut Cpu, bytes: usize, value: u64) -> Exec {
        let pointer = self.moved(0u64.wrapping_sub(bytes as u64));
        let linear = self.linear(cpu, pointer, bytes, true)?;
        self.with_rights(cpu, |cpu| match bytes {
            2 => cpu.store(linear, value as u16),
            4 => cpu.store(linear, value as u32),
            _ => cpu.store(linear, value),
        })?;
        self.pointer = pointer;
        Ok(())
    }

    pub fn pop(&mut self, cpu: &mut Cpu, bytes: usize) -> Result<u64, Stop> {
        let value = self.peek(cpu, 0, bytes)?;
        self.skip(bytes as u64);
        Ok(value)
    }

    /// What is `offset` bytes above the pointer.
    pub fn peek(&self, cpu: &mut Cpu, offset: u64, bytes: usize) -> Result<u64, Stop> {
        let linear = self.linear(cpu, self.moved(offset), bytes, false)?;
        self.with_rights(cpu, |cpu| match bytes {
            2 => cpu.load::<u16>(linear).map(u64::from),
            4 => cpu.load::<u32>(linear).map(u64::from),
            _ => cpu.load::<u64>(linear),
        })
    }

    pub fn skip(&mut self, bytes: u64) {
        self.pointer = self.moved(bytes);
    }

    fn moved(&self, by: u64) -> u64 {
        self.pointer & !self.mask | self.pointer.wrapping_add(by) & self.mask
    }

    fn linear(&self, cpu: &mut Cpu, pointer: u64, bytes: usize, write: bool) -> Result<u64, Stop> {
        let offset = pointer & self.mask;
        if let Some(segment) = &self.segment {
            let usable = !segment.unusable && (!write || segment.rights.writable());
            if !usable || !segment.within_limit(offset, offset + (bytes as u64 - 1)) {
                return Err(cpu.raise_error(vector::SS, self.error));
            }
        } else if cpu.efer & efer::LMA != 0 && !is_canonical(offset) {
            return Err(cpu.raise_error(vector::SS, self.error));
        }
        Ok(cpu.wrap(self.base.wrapping_add(offset)))
    }

    fn with_rights<R>(&self, cpu: &mut Cpu, access: impl FnOnce(&mut Cpu) -> R) -> R {
        let before = std::mem::replace(&mut cpu.mmu.privilege, self.privilege);
        let result = access(cpu);
        cpu.mmu.privilege = before;
        result
    }
}

fn privilege_of(cpu: &Cpu, cpl: u8) -> Privilege {
    match cpl {
        3 => Privilege::User,
        _ if cpu.cr4 & cr4::SMAP != 0 && !cpu.flags.has(bit::AC) => Privilege::SupervisorSmap,
        _ => Privilege::Supervisor,
    }
}

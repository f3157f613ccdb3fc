//! The 16- and 32-bit task state segments (SDM vol. 3, 8.2.1 and 8.6).

use crate::cpu::Cpu;
use crate::cpu::segment::{CS, DS, ES, FS, GS, SS};
use crate::cpu::stop::{Exec, Stop};

/// The segment registers in the order of a TSS.
pub const SEGMENT_ORDER: [usize; 6] = [ES, CS, SS, DS, FS, GS];

/// The dynamic part of a TSS.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskState {
    pub cr3: u64,
    pub rip: u64,
    pub flags: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
    pub regs: [u64; 8],
    /// In [`SEGMENT_ORDER`].
    pub selectors: [u16; 6],
    pub ldt: u16,
    pub debug_trap: bool,
}

/// Where the fields of one of the two formats are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Bytes per field.
    pub bytes: u64,
    rip: u64,
    segments: u64,
    segment_count: usize,
    /// The lowest limit that holds all of it.
    pub least_limit: u32,
}

const LAYOUT16: Layout = Layout { bytes: 2, rip: 14, segments: 34, segment_count: 4, least_limit: 43 };
const LAYOUT32: Layout = Layout { bytes: 4, rip: 32, segments: 72, segment_count: 6, least_limit: 103 };
const CR3_32: u64 = 28;
const TRAP_32: u64 = 100;

impl Layout {
    /// By the type field of the TSS descriptor.
    pub fn of_kind(kind: u8) -> Self {
        if kind & 8 != 0 { LAYOUT32 } else { LAYOUT16 }
    }

    fn read(&self, cpu: &mut Cpu, base: u64, offset: u64) -> Result<u64, Stop> {
        let linear = cpu.wrap(base.wrapping_add(offset));
        if self.bytes == 4 {
            cpu.load_system::<u32>(linear).map(u64::from)
        } else {
            cpu.load_system::<u16>(linear).map(u64::from)
        }
    }

    fn write(&self, cpu: &mut Cpu, base: u64, offset: u64, value: u64) -> Exec {
        let linear = cpu.wrap(base.wrapping_add(offset));
        if self.bytes == 4 {
            cpu.store_system::<u32>(linear, value as u32)
        } else {
            cpu.store_system::<u16>(linear, value as u16)
        }
    }

    /// Reads the TSS at `base`.
    pub fn load(&self, cpu: &mut Cpu, base: u64) -> Result<TaskState, Stop> {
        let mut state = TaskState {
            rip: self.read(cpu, base, self.rip)?,
            flags: self.read(cpu, base, self.rip + self.bytes)?,
            ..TaskState::default()
        };
        for (index, register) in state.regs.iter_mut().enumerate() {
            *register = self.read(cpu, base, self.rip + self.bytes * (2 + index as u64))?;
        }
        for index in 0..self.segment_count {
            state.selectors[index] = self.read(cpu, base, self.segments + self.bytes * index as u64)? as u16;
        }
        state.ldt = self.read(cpu, base, self.segments + self.bytes * self.segment_count as u64)? as u16;
        if self.bytes == 4 {
            state.cr3 = self.read(cpu, base, CR3_32)?;
            state.debug_trap = self.read(cpu, base, TRAP_32)? & 1 != 0;
        }
        Ok(state)
    }

    /// Writes the fields that a task switch saves.
    pub fn save(&self, cpu: &mut Cpu, base: u64, state: &TaskState) -> Exec {
        let from = cpu.wrap(base.wrapping_add(self.rip));
        let len = (self.segments + self.bytes * self.segment_count as u64 - self.rip) as usize;
        cpu.as_supervisor(|cpu| cpu.probe_write(from, len))?;
        self.write(cpu, base, self.rip, state.rip)?;
        self.write(cpu, base, self.rip + self.bytes, state.flags)?;
        for (index, register) in state.regs.iter().enumerate() {
            self.write(cpu, base, self.rip + self.bytes * (2 + index as u64), *register)?;
        }
        for index in 0..self.segment_count {
            self.write(cpu, base, self.segments + self.bytes * index as u64, u64::from(state.selectors[index]))?;
        }
        Ok(())
    }
}

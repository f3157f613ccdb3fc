//! Breakpoints and single-stepping (SDM vol. 3, 18.2 and 18.3).

use ostler_engine::Exit;
use ostler_engine::regs::GuestDebug;

use crate::cpu::control::cr4;
use crate::cpu::flags::bit;
use crate::cpu::segment::CS;
use crate::cpu::stop::vector;
use crate::cpu::{Cpu, attention};
use crate::event::{Event, EventKind};
use crate::mmu::physical::PAGE_MASK;
use crate::mmu::walk::Access;

pub const DR6_RESET: u64 = 0xffff_0ff0;
pub const DR7_RESET: u64 = 0x400;

/// Bits of DR6.
pub mod dr6 {
    /// The breakpoint that matched.
    pub const B: u64 = 0xf;
    /// A debug register was accessed while DR7.GD was set.
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    /// A task with its T bit set was switched to.
    pub const BT: u64 = 1 << 15;
    /// The bits software can write.
    pub const WRITABLE: u64 = B | BD | BS | BT;
}

/// Bits of DR7.
pub mod dr7 {
    pub const GD: u64 = 1 << 13;
    /// The bits software can write.
    pub const WRITABLE: u64 = 0xffff_23ff;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watches {
    Code,
    Writes,
    Ports,
    Data,
}

#[derive(Clone, Copy, Debug)]
struct Breakpoint {
    address: u64,
    len: u64,
    watches: Watches,
}

impl Breakpoint {
    /// Breakpoint `index` of DR7, if it is enabled.
    fn decode(index: usize, address: u64, dr7: u64) -> Option<Self> {
        if dr7 >> (2 * index) & 3 == 0 {
            return None;
        }
        let control = dr7 >> (16 + 4 * index);
        let watches = match control & 3 {
            0 => Watches::Code,
            1 => Watches::Writes,
            2 => Watches::Ports,
            _ => Watches::Data,
        };
        let len = match control >> 2 & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        Some(Self { address: address & !(len - 1), len, watches })
    }

    fn overlaps(&self, first: u64, len: u64) -> bool {
        first < self.address.wrapping_add(self.len) && self.address < first.wrapping_add(len)
    }
}

/// The breakpoints in force, and what is to be reported after the running instruction.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugState {
    /// What a debugger outside the guest asked for.
    pub outside: GuestDebug,
    /// RFLAGS.TF was set when the instruction began.
    pub trap_after: bool,
    active: [Option<Breakpoint>; 4],
    code: bool,
    data: bool,
    ports: bool,
    /// Bits of DR6 to report.
    pending: u64,
}

impl DebugState {
    /// Whether any instruction breakpoint is enabled.
    pub fn has_instruction_breakpoints(&self) -> bool {
        self.code
    }

    /// The bits of DR6 of the breakpoints that `hit` says yes to.
    fn matching(&self, hit: impl Fn(&Breakpoint) -> bool) -> u64 {
        self.active
            .iter()
            .enumerate()
            .filter(|(_, breakpoint)| breakpoint.as_ref().is_some_and(&hit))
            .fold(0, |bits, (index, _)| bits | 1 << index)
    }
}

impl Cpu {
    /// After a debug register, or what a debugger asks for, has changed.
    pub fn update_breakpoints(&mut self) {
        let (addresses, dr7) = self.debug.outside.hardware_breakpoints.unwrap_or((self.dr, self.dr7));
        let had_data = self.debug.data;
        for (index, address) in addresses.into_iter().enumerate() {
            self.debug.active[index] = Breakpoint::decode(index, address, dr7);
        }
        let any = |wanted: &[Watches]| self.debug.active.iter().flatten().any(|one| wanted.contains(&one.watches));
        let (code, data, ports) =
            (any(&[Watches::Code]), any(&[Watches::Writes, Watches::Data]), any(&[Watches::Ports]));
        (self.debug.code, self.debug.data, self.debug.ports) = (code, data, ports);
        if data || had_data {
            // Pages with a breakpoint must not be in the TLB.
            self.flush_tlb();
        }
        self.update_step();
    }

    /// Recomputes whether instructions run one at a time: after TF or a breakpoint changed.
    pub fn update_step(&mut self) {
        if self.flags.has(bit::TF) || self.debug.code || self.debug.outside.single_step {
            self.attention |= attention::STEP;
        } else {
            self.attention &= !attention::STEP;
        }
    }

    /// Notes a data breakpoint that an access matches.
    #[inline]
    pub fn data_breakpoint(&mut self, linear: u64, len: usize, access: Access) {
        if self.debug.data && access != Access::Fetch {
            let bits = self.debug.matching(|one| {
                let watched = one.watches == Watches::Data || one.watches == Watches::Writes && access == Access::Write;
                watched && one.overlaps(linear, len as u64)
            });
            self.note_breakpoint(bits);
        }
    }

    /// Whether a data breakpoint lies in the page, so that its accesses have to be looked at.
    pub fn has_data_breakpoint(&self, page: u64) -> bool {
        self.debug.data
            && self
                .debug
                .active
                .iter()
                .flatten()
                .any(|one| matches!(one.watches, Watches::Data | Watches::Writes) && one.address & PAGE_MASK == page)
    }

    /// Notes an I/O breakpoint that an access matches.
    pub fn port_breakpoint(&mut self, port: u16, bytes: usize) {
        if self.debug.ports && self.cr4 & cr4::DE != 0 {
            let bits =
                self.debug.matching(|one| one.watches == Watches::Ports && one.overlaps(u64::from(port), bytes as u64));
            self.note_breakpoint(bits);
        }
    }

    fn note_breakpoint(&mut self, bits: u64) {
        if bits != 0 {
            self.debug.pending |= bits;
            self.attention |= attention::BREAKPOINT;
            self.block_end = self.current_op;
        }
    }

    /// A fault takes the place of what its instruction would have reported.
    pub fn forget_breakpoints(&mut self) {
        self.debug.pending = 0;
        self.debug.trap_after = false;
        self.attention &= !attention::BREAKPOINT;
    }

    /// The T bit of a task that was just switched to.
    pub fn task_trap(&mut self) {
        self.note_breakpoint(dr6::BT);
    }

    /// Reports what the last instruction matched: breakpoints, and the trap flag.
    pub fn after_instruction(&mut self) -> Option<Exit> {
        let mut bits = std::mem::take(&mut self.debug.pending);
        self.attention &= !attention::BREAKPOINT;
        let trap = std::mem::take(&mut self.debug.trap_after);
        let outside = self.debug.outside;
        if outside.single_step || bits & dr6::B != 0 && outside.hardware_breakpoints.is_some() {
            if outside.single_step {
                bits |= dr6::BS;
            }
            return Some(self.debug_exit(bits));
        }
        if trap {
            bits |= dr6::BS;
        }
        if bits == 0 { None } else { self.debug_exception(bits) }
    }

    /// An instruction breakpoint at RIP; RF suppresses it once.
    pub fn instruction_breakpoint(&mut self) -> Option<Exit> {
        if !self.debug.code || self.flags.has(bit::RF) {
            return None;
        }
        let linear = self.wrap(self.segment_base[CS].wrapping_add(self.rip));
        let bits = self.debug.matching(|one| one.watches == Watches::Code && one.address == linear);
        if bits == 0 {
            return None;
        }
        if self.debug.outside.hardware_breakpoints.is_some() {
            return Some(self.debug_exit(bits));
        }
        self.debug_exception(bits)
    }

    fn debug_exception(&mut self, bits: u64) -> Option<Exit> {
        self.dr6 |= bits;
        self.dr7 &= !dr7::GD;
        self.current_op = std::ptr::null();
        self.deliver_or_escalate(Event { vector: vector::DB, error: None, kind: EventKind::Trap })
    }

    fn debug_exit(&self, bits: u64) -> Exit {
        Exit::Debug { rip: self.rip, dr6: DR6_RESET | bits, exception: vector::DB }
    }
}

//! One event through the interrupt table, and what becomes of events that cannot be delivered.

use ostler_engine::Exit;

use crate::cpu::control::efer;
use crate::cpu::flags::bit;
use crate::cpu::segment::{CODE_RIGHTS, CS, SegmentRegister};
use crate::cpu::stop::{Exec, Fault, Stop, vector};
use crate::cpu::{Cpu, Mode, attention};
use crate::exec::far::stack::FarStack;

/// What an event is to the instruction it comes at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The instruction did not happen: RF is set in the flags that are pushed.
    Fault,
    /// An exception after the instruction, or one that has to be reported once: #DB.
    Trap,
    /// From outside: interrupts and NMI.
    Interrupt,
    /// INT n, INT3, INTO: the gate's privilege level counts.
    Software,
    /// INT1: software, but no privilege is checked.
    Unchecked,
}

/// An exception or interrupt to be delivered.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub vector: u8,
    pub error: Option<u32>,
    pub kind: EventKind,
}

/// Bits of the error code of an exception in event delivery.
const ERROR_EXTERNAL: u32 = 1;
const ERROR_IDT: u32 = 2;

impl Event {
    fn of(fault: Fault) -> Self {
        let kind = match fault.vector {
            vector::DB | vector::DF | vector::MC => EventKind::Trap,
            _ => EventKind::Fault,
        };
        Self { vector: fault.vector, error: fault.error, kind }
    }

    /// The error code of what is wrong with this event's gate.
    pub fn gate_error(&self) -> u32 {
        u32::from(self.vector) << 3 | ERROR_IDT
    }

    fn is_exception(&self) -> bool {
        matches!(self.kind, EventKind::Fault | EventKind::Trap)
    }

    fn is_contributory(&self) -> bool {
        self.is_exception() && matches!(self.vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
    }

    fn is_page_fault(&self) -> bool {
        self.is_exception() && self.vector == vector::PF
    }

    /// What to deliver when delivering this event raised `second` (SDM vol. 3, table 6-5); `None`
    /// is a triple fault.
    fn then(&self, second: Self) -> Option<Self> {
        if self.is_exception() && self.vector == vector::DF {
            return None;
        }
        let doubles = self.is_contributory() && second.is_contributory()
            || self.is_page_fault() && (second.is_contributory() || second.is_page_fault());
        Some(if doubles { Self { vector: vector::DF, error: Some(0), kind: EventKind::Trap } } else { second })
    }
}

impl Cpu {
    /// Delivers `self.fault`; RIP is the faulting instruction's.
    pub fn deliver_fault(&mut self) -> Option<Exit> {
        self.current_op = std::ptr::null();
        self.forget_breakpoints();
        self.mmu.replay.clear();
        let event = Event::of(self.fault);
        if event.is_page_fault() {
            self.cr2 = self.fault.address;
        }
        self.deliver_or_escalate(event)
    }

    /// Delivers `event`, or what its delivery raises, at RIP.
    pub fn deliver_or_escalate(&mut self, mut event: Event) -> Option<Exit> {
        loop {
            match self.deliver(event, self.rip) {
                Ok(()) => return None,
                Err(Stop::Fault) => {}
                // As with KVM, tables and stacks in device memory that nobody answers are not supported.
                Err(_) => return Some(self.undeliverable(event)),
            }
            let second = Event::of(self.fault);
            if second.is_page_fault() {
                self.cr2 = self.fault.address;
            }
            let Some(next) = event.then(second) else {
                self.attention |= attention::SHUTDOWN;
                return Some(Exit::Shutdown);
            };
            event = next;
        }
    }

    fn undeliverable(&mut self, event: Event) -> Exit {
        let place = self.exit.take();
        self.mmu.replay.clear();
        Exit::InternalError(format!(
            "delivering event {:#x} made an access that nobody answers: {place:?}",
            event.vector
        ))
    }

    /// Makes `event` happen: pushes its frame, with `return_rip`, and enters its handler. Registers
    /// change only if it succeeds.
    pub fn deliver(&mut self, event: Event, return_rip: u64) -> Exec {
        let delivered = match self.mode {
            Mode::Real => self.deliver_real(event, return_rip),
            _ if self.efer & efer::LMA != 0 => self.deliver_long(event, return_rip),
            _ => self.deliver_protected(event, return_rip),
        };
        match delivered {
            Ok(()) => self.update_step(),
            Err(Stop::Fault) if event.kind != EventKind::Software => {
                let has_external = matches!(self.fault.vector, vector::TS | vector::NP | vector::SS | vector::GP);
                if let Some(error) = self.fault.error.as_mut().filter(|_| has_external) {
                    *error |= ERROR_EXTERNAL;
                }
            }
            Err(_) => {}
        }
        delivered
    }

    /// RFLAGS as `event` pushes it.
    pub(super) fn flags_for(&self, event: Event) -> u64 {
        let flags = self.flags.to_u64();
        if event.kind == EventKind::Fault { flags | bit::RF } else { flags }
    }

    /// Through the interrupt vector table of real mode (SDM vol. 3, 20.1.4). There are no error codes.
    fn deliver_real(&mut self, event: Event, return_rip: u64) -> Exec {
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(event.gate_error()));
        }
        let entry = self.load_system::<u32>(self.wrap(self.idtr.base.wrapping_add(offset)))?;
        let mut stack = FarStack::current(self);
        stack.push(self, 2, self.flags_for(event))?;
        stack.push(self, 2, u64::from(self.segments[CS].selector))?;
        stack.push(self, 2, return_rip)?;
        self.regs.set(crate::cpu::regs::RSP, stack.pointer);
        self.flags.set(bit::IF | bit::TF | bit::AC | bit::RF, false);
        let selector = (entry >> 16) as u16;
        self.segments[CS] =
            SegmentRegister { limit: self.segments[CS].limit, rights: CODE_RIGHTS, ..SegmentRegister::real(selector) };
        self.rip = u64::from(entry as u16);
        self.update_mode();
        Ok(())
    }
}

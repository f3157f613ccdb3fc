//! Exceptions and interrupts on their way in.
//!
//! * here: what is due between two instructions, INIT and startup IPIs, sleeping in HLT and MWAIT;
//! * [`deliver`]: one event through whichever table the mode has, double and triple faults;
//! * [`gate`]: the gates of protected mode; [`gate64`]: those of long mode;
//! * [`pv_eoi`]: interrupts that a guest ends without a word.

mod deliver;
mod gate;
mod gate64;
mod pv_eoi;
mod step;

use std::sync::atomic::Ordering;
use std::time::Duration;

use ostler_engine::Exit;
use ostler_engine::profile::Activity;

use crate::cpu::flags::bit;
use crate::cpu::segment::{CODE_RIGHTS, CS, SegmentRegister};
use crate::cpu::stop::vector;
use crate::cpu::{Cpu, attention};
use crate::signals::signal;

pub use deliver::{Event, EventKind};
pub use gate64::null_stack;

/// A sleep beside which filling the tables of translations and jumps anew is nothing: that takes some 2 ms.
const LONG_SLEEP: Duration = Duration::from_millis(100);

/// Events under way, and what blocks them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    /// An exception injected from outside: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
    /// An external interrupt injected from outside.
    pub interrupt: Option<u8>,
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// The interrupt controllers raised the signal, and whatever it was about was not looked at yet; or there is an
    /// `interrupt`.
    pub requested: bool,
    /// The guest was told that it may end the interrupt in service in memory.
    pub pv_eoi_offered: bool,
    /// The instruction being executed is the one after STI or MOV SS.
    pub shadowed: bool,
    /// A waiting application processor had its INIT.
    pub init_received: bool,
    /// MONITOR armed a line that was not written since.
    pub monitor_armed: bool,
    /// PAUSE instructions since the host's CPU was last offered to others.
    pub pauses: u32,
}

impl Cpu {
    /// Delivers what is due between two instructions. `raised` are the signals just taken.
    pub fn take_events(&mut self, raised: u32) -> Option<Exit> {
        if raised & signal::INIT != 0 {
            self.take_init();
        }
        if raised & signal::SIPI != 0 {
            self.take_sipi();
        }
        self.events.nmi_pending |= raised & signal::NMI != 0;
        self.events.requested |= raised & signal::INTERRUPT != 0;
        if self.attention & attention::SHUTDOWN != 0 {
            return Some(Exit::Shutdown);
        }
        if self.attention & attention::WAIT_FOR_SIPI != 0 {
            return None;
        }
        let unshadowed = self.attention & attention::SHADOW == 0;
        if unshadowed
            && self.attention & attention::BREAKPOINT != 0
            && let Some(exit) = self.after_instruction()
        {
            return Some(exit);
        }
        self.attention &= !(attention::INTERRUPT | attention::INJECTED);
        if unshadowed && let Some(exit) = self.deliver_due() {
            return Some(exit);
        }
        if !self.is_idle()
            && let Some(exit) = self.instruction_breakpoint()
        {
            return Some(exit);
        }
        if self.attention & attention::HALTED != 0 && self.vm.irqchip().is_none() {
            self.attention &= !attention::HALTED;
            return Some(Exit::Hlt);
        }
        None
    }

    /// Whether there is nothing to run until a signal comes.
    pub fn is_idle(&self) -> bool {
        self.attention & (attention::HALTED | attention::MWAIT | attention::WAIT_FOR_SIPI) != 0
    }

    /// Sleeps until a signal is raised. Others do not wait for a sleeping vCPU's translations.
    pub fn sleep(&mut self) {
        self.sibling.running.store(false, Ordering::SeqCst);
        let before = self.begins(Activity::Idle);
        if self.mmu.tlb.is_worn() {
            self.signals.wait(Some(LONG_SLEEP));
            self.give_back_memory();
        }
        self.signals.wait(None);
        self.goes_back_to(before);
        self.run_again();
    }

    /// Gives back what is found again easily, of a vCPU that sleeps long enough for that to be nothing.
    fn give_back_memory(&mut self) {
        if self.signals.pending() == 0 {
            self.mmu.tlb.give_back();
            self.jit.give_back_jumps(&mut self.mmu.tlb.context);
        }
    }

    /// Whether the next instruction is the one after STI or MOV SS.
    pub fn in_shadow(&self) -> bool {
        self.attention & attention::SHADOW != 0 || self.events.shadowed
    }

    /// Delivers the most urgent event that is not blocked.
    fn deliver_due(&mut self) -> Option<Exit> {
        if let Some((vector, error)) = self.events.exception.take() {
            return self.deliver_from_outside(Event { vector, error, kind: EventKind::Fault });
        }
        if self.events.nmi_pending && !self.events.nmi_masked {
            self.events.nmi_pending = false;
            self.events.nmi_masked = true;
            return self.deliver_from_outside(Event { vector: vector::NMI, error: None, kind: EventKind::Interrupt });
        }
        if !self.flags.has(bit::IF) {
            return None;
        }
        let vector = self.next_interrupt()?;
        self.deliver_from_outside(Event { vector, error: None, kind: EventKind::Interrupt })
    }

    /// Takes the interrupt that RFLAGS.IF lets in.
    fn next_interrupt(&mut self) -> Option<u8> {
        if let Some(vector) = self.events.interrupt.take() {
            return Some(vector);
        }
        if !self.events.requested {
            return None;
        }
        self.settle_pv_eoi();
        self.events.requested = false;
        let lapic = self.lapic.as_ref()?;
        let vector = self.vm.irqchip()?.acknowledge(lapic)?;
        self.offer_pv_eoi();
        Some(vector)
    }

    fn deliver_from_outside(&mut self, event: Event) -> Option<Exit> {
        self.attention &= !(attention::HALTED | attention::MWAIT);
        self.current_op = std::ptr::null();
        self.deliver_or_escalate(event)
    }

    /// INIT: the boot processor starts over at its reset vector, the others wait for a SIPI.
    fn take_init(&mut self) {
        self.init();
        self.msrs.pv_eoi = 0;
        if let Some(lapic) = &self.lapic {
            lapic.reset_by_init();
        }
        if self.id != 0 {
            self.attention |= attention::WAIT_FOR_SIPI;
            self.events.init_received = true;
        }
    }

    fn take_sipi(&mut self) {
        if self.attention & attention::WAIT_FOR_SIPI == 0 || !self.events.init_received {
            return;
        }
        let vector = self.lapic.as_ref().map_or(0, |lapic| lapic.sipi_vector());
        let selector = u16::from(vector) << 8;
        self.segments[CS] = SegmentRegister { rights: CODE_RIGHTS, ..SegmentRegister::real(selector) };
        self.rip = 0;
        self.attention &= !attention::WAIT_FOR_SIPI;
        self.update_mode();
    }

    /// After RFLAGS.IF was set: an interrupt that waited for it may be delivered.
    #[inline]
    pub fn interrupts_enabled(&mut self) {
        if self.events.requested {
            self.attention |= attention::INTERRUPT;
        }
    }

    /// Blocks interrupts and debug traps until after the next instruction: STI, MOV SS, POP SS.
    ///
    /// Within a block that needs no more than ending it there, because nothing is looked at earlier.
    #[inline]
    pub fn shadow_next(&mut self) {
        // SAFETY: `current_op` is an instruction of the running block, `block_end` at most one past its last.
        unsafe {
            if self.current_op.add(1) < self.block_end {
                self.block_end = self.current_op.add(2);
                return;
            }
        }
        self.attention |= attention::SHADOW;
    }
}

//! Tests of the chips on one board, with a clock that only the test moves.

mod board;
mod countdown;
mod hostile;
mod ioapic;
mod lapic;
mod pic;
mod pit;
mod state;
mod threads;
mod x2apic;

use std::sync::Arc;

use super::{Irqchip, Lapic};
use crate::signals::{Signals, signal};
use ostler_irqchip::GuestClock;

/// An irqchip with local APICs, and what their vCPUs would see.
struct Board {
    clock: Arc<GuestClock>,
    chip: Arc<Irqchip>,
    lapics: Vec<Arc<Lapic>>,
    signals: Vec<Arc<Signals>>,
}

impl Board {
    /// A board with vCPUs 0..`cpus`, at time 0, whose local APICs are software-enabled.
    fn new(cpus: u32) -> Self {
        let board = Self::at_reset(cpus);
        board.lapics.iter().for_each(|lapic| lapic.write(0xF0, 0x1FF));
        board
    }

    fn at_reset(cpus: u32) -> Self {
        let clock = Arc::new(GuestClock::default());
        clock.freeze();
        clock.set_ns(0);
        let chip = Irqchip::new(Arc::clone(&clock)).expect("a timer thread");
        let signals: Vec<_> = (0..cpus).map(|_| Arc::new(Signals::default())).collect();
        let lapics = (0..).zip(&signals).map(|(id, signals)| chip.add_lapic(id, Arc::clone(signals))).collect();
        Self { clock, chip, lapics, signals }
    }

    /// Moves the clock to `ns`, and lets the timers expire that are due.
    fn pass_to(&self, ns: u64) {
        self.clock.set_ns(ns);
        self.chip.deadlines.expire_due();
    }

    fn out(&self, port: u16, value: u8) {
        assert!(self.chip.io_write(port, &[value]), "port {port:#x}");
    }

    fn input(&self, port: u16) -> u8 {
        let mut data = [0];
        assert!(self.chip.io_read(port, &mut data), "port {port:#x}");
        data[0]
    }

    /// Vectors 0x20.. and 0x28.., as PC operating systems program the PICs, and nothing masked.
    fn init_pics(&self, icw4: u8) {
        for (base, vector, icw3) in [(0x20, 0x20, 4), (0xA0, 0x28, 2)] {
            self.out(base, 0x11);
            self.out(base + 1, vector);
            self.out(base + 1, icw3);
            self.out(base + 1, icw4);
        }
    }

    fn pulse(&self, gsi: u32) {
        self.chip.set_irq_line(gsi, true);
        self.chip.set_irq_line(gsi, false);
    }

    fn ioapic_read(&self, register: u32) -> u32 {
        self.chip.ioapic_write(0, &register.to_le_bytes());
        let mut data = [0; 4];
        self.chip.ioapic_read(0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn ioapic_write(&self, register: u32, value: u32) {
        self.chip.ioapic_write(0, &register.to_le_bytes());
        self.chip.ioapic_write(0x10, &value.to_le_bytes());
    }

    /// Programs the redirection entry of `pin`, the upper half first.
    fn redirect(&self, pin: u32, entry: u64) {
        self.ioapic_write(0x11 + pin * 2, (entry >> 32) as u32);
        self.ioapic_write(0x10 + pin * 2, entry as u32);
    }

    /// What vCPU `cpu` gets when it looks for an interrupt, and whether it was told to.
    fn take(&self, cpu: usize) -> Option<u8> {
        let told = self.signals[cpu].take(signal::INTERRUPT) != 0;
        let has = self.chip.has_interrupt(&self.lapics[cpu]);
        assert!(told || !has, "an interrupt nobody was told of");
        let vector = self.chip.acknowledge(&self.lapics[cpu]);
        assert_eq!(vector.is_some(), has);
        vector
    }
}

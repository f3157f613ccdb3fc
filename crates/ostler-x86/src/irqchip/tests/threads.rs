//! The chips with real time and several threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ostler_engine::Msi;

use crate::irqchip::Irqchip;
use crate::signals::{Signals, signal};
use ostler_irqchip::GuestClock;

#[test]
fn deadline_wakes_a_sleeping_vcpu_in_time() {
    let clock = Arc::new(GuestClock::default());
    let chip = Irqchip::new(Arc::clone(&clock)).expect("a timer thread");
    let signals = Arc::new(Signals::default());
    let lapic = chip.add_lapic(0, Arc::clone(&signals));
    lapic.write(0xF0, 0x1FF);
    lapic.write(0x320, 2 << 17 | 0x40);
    let due = clock.now_ns() + 2_000_000;
    assert!(lapic.write_msr(0x6E0, due));
    while signals.pending() == 0 && clock.now_ns() < due + 20_000_000_000 {
        signals.wait(Some(Duration::from_secs(20)));
    }
    assert_eq!(signals.take(!0), signal::INTERRUPT);
    assert!(clock.now_ns() >= due);
    assert_eq!(chip.acknowledge(&lapic), Some(0x40));
}

#[test]
fn chip_dropped_while_its_timers_run_ends_its_thread() {
    for _ in 0..50 {
        let clock = Arc::new(GuestClock::default());
        let chip = Irqchip::new(clock).expect("a timer thread");
        let lapic = chip.add_lapic(0, Arc::default());
        lapic.write(0x3E0, 0xB);
        lapic.write(0x320, 1 << 17 | 0x40);
        lapic.write(0x380, 1);
        chip.io_write(0x43, &[0x34]);
        chip.io_write(0x40, &[1]);
        chip.io_write(0x40, &[0]);
        std::thread::sleep(Duration::from_micros(500));
        let deadlines = Arc::downgrade(&chip.deadlines);
        drop((chip, lapic));
        assert!(waits_for(|| deadlines.strong_count() == 0));
    }
}

#[test]
fn interrupts_from_many_threads_all_arrive() {
    const EACH: u32 = 5_000;
    let chip = Irqchip::new(Arc::default()).expect("a timer thread");
    let signals = Arc::new(Signals::default());
    let lapic = chip.add_lapic(0, Arc::clone(&signals));
    lapic.write(0xF0, 0x1FF);
    let pending = [const { AtomicBool::new(false) }; 3];
    let gives_up = Instant::now() + Duration::from_secs(60);
    // A sender sends again when its last one has arrived: after a lost one, nothing does any more.
    let send = &|vector: u32, pending: &AtomicBool| {
        for _ in 0..EACH {
            while pending.swap(true, Ordering::SeqCst) && Instant::now() < gives_up {
                std::thread::yield_now();
            }
            assert!(chip.signal_msi(Msi { address: 0xFEE0_0000, data: vector }));
        }
    };
    let mut arrived = 0;
    std::thread::scope(|scope| {
        for (vector, pending) in [0x41, 0x52, 0x63].into_iter().zip(&pending) {
            scope.spawn(move || send(vector, pending));
        }
        while arrived < 3 * EACH && Instant::now() < gives_up {
            signals.wait(Some(Duration::from_secs(60)));
            if signals.take(!0) == 0 {
                continue;
            }
            while let Some(vector) = chip.acknowledge(&lapic) {
                pending[usize::from(vector >> 4) - 4].store(false, Ordering::SeqCst);
                lapic.eoi();
                arrived += 1;
            }
        }
    });
    assert_eq!(arrived, 3 * EACH, "within a minute");
}

fn waits_for(condition: impl Fn() -> bool) -> bool {
    (0..2_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        condition()
    })
}

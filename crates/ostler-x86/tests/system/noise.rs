//! Random bytes as code in every mode: nothing a guest does may bring the CPU down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ostler_engine::regs::{GuestDebug, Regs, Sregs};

use crate::guest::*;

/// Programs per mode, and instructions of each at most.
const PROGRAMS: u64 = 3000;
const STEPS: u32 = 24;

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Values at which things happen: small ones, addresses in RAM, borders, anything.
    fn value(&mut self) -> u64 {
        let word = self.next();
        match word % 8 {
            0 => word >> 60,
            1 | 2 => word >> 40 & (RAM_BYTES - 1),
            3 => 0u64.wrapping_sub(word >> 58),
            4 => 0x7fff_ffff_ffff_fff8 + (word >> 60),
            5 => 1 << (word >> 58),
            6 => word >> 32,
            _ => word,
        }
    }

    fn regs(&mut self, like: &Regs) -> Regs {
        let mut regs = *like;
        for register in [
            &mut regs.rax,
            &mut regs.rbx,
            &mut regs.rcx,
            &mut regs.rdx,
            &mut regs.rsi,
            &mut regs.rdi,
            &mut regs.rbp,
            &mut regs.r8,
            &mut regs.r9,
            &mut regs.r10,
        ] {
            *register = self.value();
        }
        if self.next().is_multiple_of(4) {
            regs.rsp = self.value();
        }
        regs.rflags = 2 | self.next() & 0x0cd5;
        regs
    }

    /// Random bytes, with the two-byte map and prefixes more often than chance has them.
    fn code(&mut self) -> Vec<u8> {
        let mut code = Vec::new();
        while code.len() < 64 {
            let word = self.next();
            match word % 8 {
                0 => code.extend([0x0f, (word >> 8) as u8]),
                1 => code.extend([0x48, (word >> 8) as u8]),
                2 => code.extend([0x66, 0x0f, (word >> 8) as u8]),
                3 => code.extend([0xf3, 0x0f, (word >> 8) as u8]),
                4 => code.extend([0x0f, 0x01, (word >> 8) as u8]),
                _ => code.extend(&word.to_le_bytes()[1..4]),
            }
        }
        code
    }
}

fn survive(make: fn() -> Guest, seed: u64) {
    let mut random = Random(seed);
    let mut guest = make();
    guest.vcpu.set_guest_debug(GuestDebug { single_step: true, ..GuestDebug::default() }).unwrap();
    let (regs, sregs) = (guest.regs(), guest.sregs());
    let tables = snapshot(&guest);
    let (kick, done) = (guest.vcpu.kicker(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // A handler whose first instruction faults never ends a step.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                kick.kick();
            }
        });
        run_programs(&mut guest, &mut random, &regs, &sregs, &tables);
        done.store(true, Ordering::Relaxed);
    });
}

fn run_programs(guest: &mut Guest, random: &mut Random, regs: &Regs, sregs: &Sregs, tables: &[u8]) {
    for _ in 0..PROGRAMS {
        guest.put(0, tables);
        guest.put(CODE, &random.code());
        guest.vcpu.set_mp_state(ostler_engine::regs::MpState::Runnable).unwrap();
        guest.vcpu.set_sregs(sregs).unwrap();
        guest.vcpu.set_regs(&random.regs(regs)).unwrap();
        for _ in 0..STEPS {
            match guest.run() {
                ostler_engine::Exit::Shutdown | ostler_engine::Exit::InternalError(_) => break,
                _ => {}
            }
        }
    }
}

/// The tables of the guest and its page tables.
fn snapshot(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; (PML4 + 0x3000) as usize];
    guest.vm.memory().read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn noise_in_64_bit_mode_is_survived() {
    survive(Guest::long, 0x1234_5678_9abc_def1);
}

#[test]
fn noise_in_protected_mode_is_survived() {
    survive(Guest::protected, 0x0bad_cafe_0bad_cafe);
}

#[test]
fn noise_in_real_mode_is_survived() {
    survive(Guest::real, 0x5eed_5eed_5eed_5eed);
}

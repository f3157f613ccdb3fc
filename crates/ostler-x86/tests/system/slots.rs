//! Memory slots that change under a running guest.

use std::sync::Arc;

use iced_x86::code_asm::*;
use ostler_engine::regs::MsrEntry;
use ostler_engine::{Exit, IoHandler, Msi, Vm};
use ostler_memory::{Backing, SlotConfig};

use crate::guest::*;

const ROM: u64 = 0x200_0000;

/// A device that shows another bank of its ROM after every write to a port.
struct BankSwitch(Arc<dyn Vm>);

impl BankSwitch {
    /// A slot at [`ROM`] with a function that returns `value`.
    fn show(&self, value: u32) {
        let backing = Backing::Anonymous;
        let slot = SlotConfig { slot: 1, gpa: ROM, size: 4096, read_only: true, log_dirty: false, backing };
        self.0.memory().set_slot(slot).expect("a free range");
        let function = assemble(64, ROM, |a| {
            a.mov(eax, value).unwrap();
            a.ret().unwrap();
        });
        self.0.memory().write(ROM, &function).expect("the slot");
        self.0.synchronize().expect("synchronized");
    }
}

impl IoHandler for BankSwitch {
    fn io_read(&self, _port: u16, _data: &mut [u8]) -> bool {
        false
    }
    fn io_write(&self, _port: u16, data: &[u8]) -> bool {
        self.show(data[0].into());
        true
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) -> bool {
        false
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) -> bool {
        false
    }
}

#[test]
fn code_of_a_slot_that_a_device_replaced_is_gone() {
    let mut guest = Guest::long();
    let banks = BankSwitch(Arc::clone(&guest.vm));
    banks.show(1);
    guest.code(64, CODE, |a| {
        a.call(ROM).unwrap();
        a.mov(ebx, eax).unwrap();
        a.mov(eax, 2).unwrap();
        a.out(0x10, al).unwrap();
        a.call(ROM).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(guest.vcpu.run(&banks).expect("run"), Exit::Hlt);
    let regs = guest.regs();
    assert_eq!((regs.rbx, regs.rax), (1, 2));
}

#[test]
fn code_that_another_thread_keeps_changing_is_run_and_can_be_stopped() {
    let mut guest = Guest::long();
    // Sixty-four different numbers in the way of a loop.
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        for _ in 0..64 {
            a.mov(eax, 1).unwrap();
        }
        a.jmp(again).unwrap();
    });
    // It may be stopped before it begins.
    guest.set_regs(|regs| regs.rax = 1);
    let memory = Arc::clone(guest.vm.memory());
    let (kick, done) = (guest.vcpu.kicker(), std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=20_000u64 {
                memory.write(CODE + 1 + 5 * (round % 64), &(round as u32).to_le_bytes()).expect("RAM");
            }
            kick.kick();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                memory.write(CODE + 1, &7u32.to_le_bytes()).expect("RAM");
            }
        });
        assert_eq!(guest.run(), Exit::Interrupted);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let last = guest.regs().rax;
    assert!((1..=20_000).contains(&last), "{last:#x}");
}

#[test]
fn vcpu_that_slept_while_a_slot_was_replaced_sees_the_new_one() {
    let mut guest = Guest::with_irqchip();
    let banks = BankSwitch(Arc::clone(&guest.vm));
    banks.show(1);
    let (handler, ready) = (0x1_8000, 0x9_0000);
    guest.code(64, handler, |a| {
        a.mov(ebx, dword_ptr(ROM + 1)).unwrap();
        a.out(0x10, al).unwrap();
    });
    guest.set_gate(0x41, handler, 0x8e, 0, 64);
    guest.vcpu.set_msr(MsrEntry { index: 0x1b, value: 0xfee0_0d00 }).unwrap();
    guest.code(64, CODE, |a| {
        a.mov(ecx, 0x80f).unwrap();
        a.mov(eax, 0x1ff).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.mov(esi, dword_ptr(ROM + 1)).unwrap();
        a.mov(dword_ptr(ready), 1).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
    });
    let vm = Arc::clone(&guest.vm);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut word = [0; 4];
            while word == [0; 4] {
                vm.memory().read(ready, &mut word).expect("RAM");
            }
            // Asleep by now, most likely; what comes out is the same if it is not.
            std::thread::sleep(std::time::Duration::from_millis(20));
            banks.show(2);
            assert!(vm.signal_msi(Msi { address: 0xfee0_0000, data: 0x41 }));
        });
        assert!(matches!(guest.run(), Exit::IoOut { port: 0x10, .. }));
    });
    assert_eq!((guest.regs().rsi, guest.regs().rbx), (1, 2));
}

//! Ports: permissions, and exits in the middle of instructions.

use std::sync::atomic::{AtomicU8, Ordering};

use iced_x86::code_asm::*;
use ostler_engine::{Exit, IoHandler};

use crate::guest::*;

fn user(guest: &Guest) {
    guest.code(64, CODE, |a| {
        for value in [u32::from(USER_DATA), USER_STACK as u32, 2, u32::from(USER_CODE64), USER_CODE as u32] {
            a.push(value as i32).unwrap();
        }
        a.iretq().unwrap();
    });
}

/// An I/O map behind the TSS that allows port 0x11 and nothing else up to 0x1f.
fn io_map(guest: &mut Guest) {
    guest.put(TSS + 102, &0x68u16.to_le_bytes());
    guest.put(TSS + 0x68, &[0xff, 0xff, 0xfd, 0xff, 0xff]);
    guest.set_sregs(|sregs| sregs.tr.limit = 0x6c);
}

#[test]
fn permission_map_decides_for_user_mode() {
    let mut guest = Guest::long();
    io_map(&mut guest);
    user(&guest);
    guest.code(64, USER_CODE, |a| {
        a.out(0x11, al).unwrap();
        a.out(0x12, al).unwrap();
    });
    assert_eq!(guest.run(), Exit::IoOut { port: 0x11, data: vec![0] });
    assert_eq!(guest.run_to_exception(13, true).rip, USER_CODE + 2);
}

#[test]
fn permission_map_has_to_allow_every_byte() {
    let mut guest = Guest::long();
    io_map(&mut guest);
    user(&guest);
    guest.code(64, USER_CODE, |a| a.out(0x11, ax).unwrap());
    guest.run_to_exception(13, true);
}

#[test]
fn in_is_answered_and_goes_on() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.in_(eax, 0x10).unwrap();
        a.hlt().unwrap();
    });
    guest.set_regs(|regs| regs.rax = u64::MAX);
    assert_eq!(guest.run(), Exit::IoIn { port: 0x10, size: 4 });
    guest.vcpu.supply_read(&[1, 2, 3, 4]).unwrap();
    guest.run_to_halt();
    assert_eq!(guest.regs().rax, 0x0403_0201);
}

#[test]
fn unanswered_read_gives_ones_and_a_wrong_answer_is_refused() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.in_(al, 0x10).unwrap();
        a.hlt().unwrap();
    });
    guest.run();
    assert!(guest.vcpu.supply_read(&[1, 2]).is_err());
    guest.run_to_halt();
    assert_eq!(guest.regs().rax, 0xff);
}

#[test]
fn repeated_input_exits_once_per_element() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.mov(edx, 0x1f0).unwrap();
        a.mov(edi, 0x9000).unwrap();
        a.mov(ecx, 3).unwrap();
        a.rep().insw().unwrap();
        a.hlt().unwrap();
    });
    for element in 1..=3u8 {
        assert_eq!(guest.run(), Exit::IoIn { port: 0x1f0, size: 2 });
        guest.vcpu.supply_read(&[element, 0]).unwrap();
    }
    guest.run_to_halt();
    assert_eq!(guest.get64(0x9000), 0x0003_0002_0001);
    assert_eq!((guest.regs().rcx, guest.regs().rdi), (0, 0x9006));
}

#[test]
fn repeated_output_sends_each_element_once() {
    let mut guest = Guest::long();
    guest.put(0x9000, b"abc");
    guest.code(64, CODE, |a| {
        a.mov(edx, 0x3f8).unwrap();
        a.mov(esi, 0x9000).unwrap();
        a.mov(ecx, 3).unwrap();
        a.rep().outsb().unwrap();
        a.hlt().unwrap();
    });
    for byte in *b"abc" {
        assert_eq!(guest.run(), Exit::IoOut { port: 0x3f8, data: vec![byte] });
    }
    guest.run_to_halt();
}

#[test]
fn device_memory_is_read_in_the_middle_of_an_instruction() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.mov(rbx, 0x2000_0000u64).unwrap();
        a.add(dword_ptr(rbx), 5).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(guest.run(), Exit::MmioRead { gpa: 0x2000_0000, size: 4 });
    guest.vcpu.supply_read(&[3, 0, 0, 0]).unwrap();
    assert_eq!(guest.run(), Exit::MmioWrite { gpa: 0x2000_0000, data: vec![8, 0, 0, 0] });
    guest.run_to_halt();
}

/// Port 0x10 counts its reads and gives the count; a write elsewhere is nobody's.
#[derive(Debug, Default)]
struct Counter(AtomicU8);

impl IoHandler for Counter {
    fn io_read(&self, _port: u16, data: &mut [u8]) -> bool {
        data[0] = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        // The first reads are answered here, the last by whoever runs the vCPU.
        data[0] <= 3
    }
    fn io_write(&self, _port: u16, _data: &[u8]) -> bool {
        false
    }
    fn mmio_read(&self, _gpa: u64, _data: &mut [u8]) -> bool {
        false
    }
    fn mmio_write(&self, _gpa: u64, _data: &[u8]) -> bool {
        false
    }
}

#[test]
fn read_in_a_loop_is_not_answered_with_what_an_earlier_turn_read() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again).unwrap();
        a.in_(al, 0x10).unwrap();
        a.cmp(al, 9).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let counter = Counter::default();
    assert_eq!(guest.vcpu.run(&counter).unwrap(), Exit::IoIn { port: 0x10, size: 1 });
    assert_eq!(counter.0.load(Ordering::Relaxed), 4);
    guest.vcpu.supply_read(&[9]).unwrap();
    assert_eq!(guest.vcpu.run(&counter).unwrap(), Exit::Hlt);
}

#[test]
fn access_after_a_kick_reaches_the_device_again() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.in_(al, 0x10).unwrap();
        a.hlt().unwrap();
        a.in_(al, 0x10).unwrap();
        a.hlt().unwrap();
    });
    let counter = Counter::default();
    for reads in 1..=2 {
        assert_eq!(guest.vcpu.run(&counter).unwrap(), Exit::Hlt);
        assert_eq!((counter.0.load(Ordering::Relaxed), guest.regs().rax as u8), (reads, reads));
    }
}

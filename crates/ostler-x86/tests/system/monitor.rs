//! MONITOR and MWAIT.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use ostler_engine::regs::MsrEntry;
use ostler_engine::{Exit, NobodyAnswers};

use crate::guest::*;

const LINE: u64 = 0x9_0000;
/// In another page: what the waiting vCPU has armed its monitor with.
const ARMED: u64 = 0x9_2000;
const OTHER_CODE: u64 = 0x1_8000;
const PATIENCE: Duration = Duration::from_secs(20);

/// MONITOR of the line at `line`.
fn monitor(a: &mut CodeAssembler, line: u64) {
    a.mov(rax, line).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.xor(edx, edx).unwrap();
    a.monitor().unwrap();
}

/// Waits as an idle loop does until [`LINE`] is not zero; RBX counts the MWAITs.
fn wait_for_line(a: &mut CodeAssembler) {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut again).unwrap();
    monitor(a, LINE + 8);
    a.mov(qword_ptr(ARMED), rax).unwrap();
    a.cmp(dword_ptr(LINE), 0).unwrap();
    a.jne(done).unwrap();
    a.inc(rbx).unwrap();
    a.xor(eax, eax).unwrap();
    a.mwait().unwrap();
    a.jmp(again).unwrap();
    a.set_label(&mut done).unwrap();
    a.out(0x10, al).unwrap();
}

/// Runs the guest, and kicks it out of what it does not get out of itself.
pub fn run_guarded(guest: &mut Guest) -> Exit {
    let kick = guest.vcpu.kicker();
    let (done, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                kick.kick();
            }
        });
        let exit = guest.run();
        drop(done);
        exit
    })
}

#[test]
fn mwait_ends_when_a_device_writes_the_line() {
    let mut guest = Guest::with_irqchip();
    guest.code(64, CODE, wait_for_line);
    let memory = Arc::clone(guest.vm.memory());
    let device = thread::spawn(move || {
        let mut armed = [0; 8];
        while armed == [0; 8] {
            memory.read(ARMED, &mut armed).expect("RAM");
        }
        // So long that a vCPU that does not wait goes round many times.
        thread::sleep(Duration::from_millis(20));
        memory.write(LINE + 64, &[1]).expect("RAM");
        memory.write(LINE, &[1]).expect("RAM");
    });
    assert!(matches!(run_guarded(&mut guest), Exit::IoOut { .. }));
    device.join().expect("it wrote");
    assert!(guest.regs().rbx < 20, "{} rounds", guest.regs().rbx);
}

#[test]
fn mwait_ends_when_another_vcpu_that_knew_the_page_stores_to_the_line() {
    let mut guest = Guest::with_irqchip();
    guest.code(64, CODE, wait_for_line);
    guest.code(64, OTHER_CODE, |a| {
        let mut again = a.create_label();
        a.mov(qword_ptr(LINE + 0x100), rax).unwrap();
        a.set_label(&mut again).unwrap();
        a.pause().unwrap();
        a.cmp(qword_ptr(ARMED), 0).unwrap();
        a.je(again).unwrap();
        a.mov(ecx, 2_000_000).unwrap();
        let mut delay = a.create_label();
        a.set_label(&mut delay).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(delay).unwrap();
        a.mov(dword_ptr(LINE), 1).unwrap();
        a.out(0x10, al).unwrap();
    });
    let mut other = guest.add_vcpu(1, OTHER_CODE, 0x7_0000);
    let storing = thread::spawn(move || other.run(&NobodyAnswers).expect("run"));
    assert!(matches!(run_guarded(&mut guest), Exit::IoOut { .. }));
    assert!(matches!(storing.join().expect("it stored"), Exit::IoOut { .. }));
    assert!(guest.regs().rbx < 20, "{} rounds", guest.regs().rbx);
}

#[test]
fn mwait_goes_on_at_once_unless_a_line_is_armed_and_unwritten() {
    let mut guest = Guest::with_irqchip();
    guest.code(64, CODE, |a| {
        a.xor(ecx, ecx).unwrap();
        a.mwait().unwrap();
        monitor(a, LINE);
        a.mov(dword_ptr(LINE), 1).unwrap();
        a.mwait().unwrap();
        a.mwait().unwrap();
        a.out(0x10, al).unwrap();
    });
    let start = Instant::now();
    assert!(matches!(run_guarded(&mut guest), Exit::IoOut { .. }));
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn mwait_ends_at_a_masked_interrupt_if_it_is_asked_to() {
    for pending_first in [false, true] {
        let mut guest = Guest::with_irqchip();
        guest.vcpu.set_msr(MsrEntry { index: 0x1b, value: 0xfee0_0d00 }).unwrap();
        let write = |a: &mut CodeAssembler, msr: u32, value: u32| {
            a.mov(ecx, msr).unwrap();
            a.mov(eax, value).unwrap();
            a.xor(edx, edx).unwrap();
            a.wrmsr().unwrap();
        };
        guest.code(64, CODE, |a| {
            write(a, 0x80f, 0x1ff);
            // A one-shot timer, long or short.
            write(a, 0x832, 0x41);
            write(a, 0x838, if pending_first { 1 } else { 20_000_000 });
            if pending_first {
                let mut again = a.create_label();
                a.mov(ecx, 0x839).unwrap();
                a.set_label(&mut again).unwrap();
                a.rdmsr().unwrap();
                a.test(eax, eax).unwrap();
                a.jnz(again).unwrap();
            }
            monitor(a, LINE);
            a.mov(ecx, 1).unwrap();
            a.mwait().unwrap();
            a.out(0x10, al).unwrap();
        });
        let start = Instant::now();
        assert!(matches!(run_guarded(&mut guest), Exit::IoOut { .. }));
        assert!(start.elapsed() < PATIENCE, "pending first: {pending_first}");
    }
}

#[test]
fn monitor_and_mwait_are_for_the_kernel_and_refuse_unknown_extensions() {
    let run = |extensions: u64, code: &[u8]| {
        let mut guest = Guest::with_irqchip();
        // HLT would sleep: the handlers' first instruction is as far as it goes.
        for (vector, number) in [(13u8, 13u8), (6, 6)] {
            let at = 0x1_a000 + 16 * u64::from(vector);
            guest.put(at, &[0xe6, number]);
            guest.set_gate(vector, at, 0x8e, 0, 64);
        }
        guest.put(CODE, code);
        guest.put(CODE + 3, &[0xe6, 0]);
        guest.set_regs(|regs| (regs.rcx, regs.rax) = (extensions, LINE));
        guest
    };
    let monitor = [0x0f, 0x01, 0xc8];
    let mwait = [0x0f, 0x01, 0xc9];
    for (extensions, code, port) in [
        (0, monitor, 0),
        (1, monitor, 13),
        (1 << 40, monitor, 13),
        (0, mwait, 0),
        (1, mwait, 0),
        (2, mwait, 13),
        (1 << 40, mwait, 13),
    ] {
        let exit = run_guarded(&mut run(extensions, &code));
        assert!(
            matches!(exit, Exit::IoOut { port: seen, .. } if seen == port),
            "{code:x?} with {extensions:#x}: {exit:?}"
        );
    }
    for code in [monitor, mwait] {
        let mut switched_off = run(0, &code);
        let value = switched_off.vcpu.msr(0x1a0).unwrap() & !(1 << 18);
        switched_off.vcpu.set_msr(MsrEntry { index: 0x1a0, value }).unwrap();
        assert!(matches!(run_guarded(&mut switched_off), Exit::IoOut { port: 6, .. }), "off in IA32_MISC_ENABLE");
        let mut user = Guest::long();
        user.code(64, CODE, |a| {
            for value in [u32::from(USER_DATA), USER_STACK as u32, 2, u32::from(USER_CODE64), USER_CODE as u32] {
                a.push(value as i32).unwrap();
            }
            a.iretq().unwrap();
        });
        user.put(USER_CODE, &code);
        user.run_to_exception(6, false);
    }
}

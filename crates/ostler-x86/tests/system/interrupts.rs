//! Interrupts, NMIs, HLT and what blocks them.

use iced_x86::code_asm::*;
use ostler_engine::Exit;
use ostler_engine::regs::{Events, MpState};

use crate::guest::*;

#[test]
fn halt_without_interrupt_controllers_is_an_exit_behind_the_instruction() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.hlt().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(guest.run(), Exit::Hlt);
    assert_eq!(guest.regs().rip, CODE + 1);
    assert_eq!(guest.run(), Exit::Hlt);
    assert_eq!(guest.regs().rip, CODE + 2);
}

#[test]
fn injected_interrupt_waits_for_the_interrupt_flag_and_the_shadow_of_sti() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.inc(rbx).unwrap();
        a.inc(rbx).unwrap();
        a.hlt().unwrap();
    });
    guest.vcpu.interrupt(0x41).unwrap();
    let frame = guest.run_to_exception(0x41, false);
    assert_eq!((frame.rip, guest.regs().rbx), (CODE + 5, 1), "after the instruction behind STI");
    assert_eq!((frame.flags & 0x200, guest.regs().rflags & 0x200), (0x200, 0));
}

#[test]
fn mov_ss_blocks_interrupts_for_one_instruction() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.mov(ax, u32::from(DATA)).unwrap();
        a.mov(ss, ax).unwrap();
        a.inc(rbx).unwrap();
        a.hlt().unwrap();
    });
    guest.set_regs(|regs| {
        regs.rip = CODE + 4;
        regs.rax = u64::from(DATA);
        regs.rflags = 0x202;
    });
    guest.vcpu.set_events(&Events { interrupt_shadow: true, ..Events::default() }).unwrap();
    guest.vcpu.interrupt(0x41).unwrap();
    // The shadow that was set from outside covers MOV SS, which casts the next one.
    let frame = guest.run_to_exception(0x41, false);
    assert_eq!((frame.rip, guest.regs().rbx), (CODE + 10, 1));
}

#[test]
fn nmi_is_blocked_until_iret() {
    let mut guest = Guest::long();
    let handler = 0x1_8000;
    guest.code(64, handler, |a| {
        a.inc(rbx).unwrap();
        a.hlt().unwrap();
        a.iretq().unwrap();
    });
    guest.set_gate(2, handler, 0x8e, 0, 64);
    guest.code(64, CODE, |a| a.hlt().unwrap());
    guest.vcpu.nmi().unwrap();
    guest.run_to_halt();
    assert_eq!(guest.regs().rbx, 1);
    guest.vcpu.nmi().unwrap();
    assert!(guest.vcpu.events().unwrap().nmi_masked);
    guest.run_to_halt();
    assert_eq!((guest.regs().rbx, guest.regs().rip), (2, handler + 4), "the second comes after the IRET");
}

#[test]
fn kick_makes_run_return_once() {
    let mut guest = Guest::long();
    guest.put(CODE, &[0xeb, 0xfe]);
    guest.vcpu.kicker().kick();
    guest.vcpu.kicker().kick();
    assert_eq!(guest.run(), Exit::Interrupted);
    let kick = guest.vcpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            kick.kick();
        });
        assert_eq!(guest.run(), Exit::Interrupted);
    });
}

#[test]
fn halted_vcpu_with_interrupt_controllers_sleeps_until_kicked() {
    let mut guest = Guest::with_irqchip();
    guest.code(64, CODE, |a| a.hlt().unwrap());
    let kick = guest.vcpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            kick.kick();
        });
        assert_eq!(guest.run(), Exit::Interrupted);
    });
    assert_eq!(guest.vcpu.mp_state().unwrap(), MpState::Halted);
    assert_eq!(guest.regs().rip, CODE + 1);
}

#[test]
fn local_apic_timer_wakes_a_halted_vcpu() {
    let mut guest = Guest::with_irqchip();
    let handler = 0x1_8000;
    guest.code(64, handler, |a| {
        a.mov(rbx, 0x41u64).unwrap();
        a.mov(al, 0).unwrap();
        a.out(0x10, al).unwrap();
    });
    guest.set_gate(0x41, handler, 0x8e, 0, 64);
    guest.code(64, CODE, |a| {
        let write = |a: &mut CodeAssembler, msr: u32, value: u32| {
            a.mov(ecx, msr).unwrap();
            a.mov(eax, value).unwrap();
            a.xor(edx, edx).unwrap();
            a.wrmsr().unwrap();
        };
        write(a, 0x1b, 0xfee0_0d00); // x2APIC
        write(a, 0x80f, 0x1ff); // enabled
        write(a, 0x832, 0x41); // timer: one-shot, vector 0x41
        write(a, 0x838, 1000); // 1000 ticks
        a.sti().unwrap();
        a.hlt().unwrap();
        a.jmp(CODE).unwrap();
    });
    assert_eq!(guest.run(), Exit::IoOut { port: 0x10, data: vec![0] });
    assert_eq!(guest.regs().rbx, 0x41);
}

#[test]
fn application_processor_waits_for_init_and_sipi() {
    let mut guest = Guest::with_irqchip();
    let mut second = guest.vm.create_vcpu(1).unwrap();
    assert_eq!(second.mp_state().unwrap(), MpState::Uninitialized);
    // The second processor starts at 0x9000 in real mode.
    guest.code(16, 0x9000, |a| {
        a.mov(bx, cs).unwrap();
        a.out(0x11, al).unwrap();
    });
    guest.code(64, CODE, |a| {
        let write = |a: &mut CodeAssembler, msr: u32, value: u32, high: u32| {
            a.mov(ecx, msr).unwrap();
            a.mov(eax, value).unwrap();
            a.mov(edx, high).unwrap();
            a.wrmsr().unwrap();
        };
        write(a, 0x1b, 0xfee0_0d00, 0);
        write(a, 0x80f, 0x1ff, 0);
        write(a, 0x830, 0x4500, 1); // INIT
        write(a, 0x830, 0x4609, 1); // startup at page 9
        a.out(0x10, al).unwrap();
    });
    assert!(matches!(guest.run(), Exit::IoOut { port: 0x10, .. }));
    let exit = second.run(&ostler_engine::NobodyAnswers).unwrap();
    assert!(matches!(exit, Exit::IoOut { port: 0x11, .. }), "{exit:?}");
    assert_eq!(second.regs().unwrap().rbx, 0x900);
    assert_eq!(second.mp_state().unwrap(), MpState::Runnable);
}

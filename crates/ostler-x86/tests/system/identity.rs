//! CPUID, MSRs, control registers, and the state that can be saved.

use iced_x86::code_asm::*;
use ostler_engine::regs::{CpuidEntry, MsrEntry, Sregs, Xcr};

use crate::guest::*;

fn cpuid(guest: &mut Guest, leaf: u32, subleaf: u32) -> [u64; 4] {
    guest.code(64, CODE, |a| {
        a.mov(eax, leaf).unwrap();
        a.mov(ecx, subleaf).unwrap();
        a.cpuid().unwrap();
        a.hlt().unwrap();
    });
    guest.set_regs(|regs| regs.rip = CODE);
    guest.run_to_halt();
    let regs = guest.regs();
    [regs.rax, regs.rbx, regs.rcx, regs.rdx]
}

fn enter_user(a: &mut CodeAssembler) {
    for value in [u32::from(USER_DATA), USER_STACK as u32, 2, u32::from(USER_CODE64), USER_CODE as u32] {
        a.push(value as i32).unwrap();
    }
    a.iretq().unwrap();
}

#[test]
fn osxsave_follows_cr4_and_xsave_sizes_follow_xcr0() {
    let mut guest = Guest::long();
    assert_eq!(cpuid(&mut guest, 1, 0)[2] >> 27 & 1, 0);
    guest.set_sregs(|sregs| sregs.cr4 |= 1 << 18);
    assert_eq!(cpuid(&mut guest, 1, 0)[2] >> 27 & 1, 1);
    let [_, now, most, _] = cpuid(&mut guest, 0xd, 0);
    assert_eq!(now, 576);
    if most == 832 {
        guest.vcpu.set_xcrs(&[Xcr { index: 0, value: 7 }]).unwrap();
        assert_eq!(cpuid(&mut guest, 0xd, 0)[1], 832);
    }
}

#[test]
fn feature_taken_away_makes_its_instructions_undefined() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| a.popcnt(rax, rbx).unwrap());
    let without: Vec<CpuidEntry> = guest
        .vcpu
        .cpuid()
        .into_iter()
        .map(|entry| if entry.function == 1 { CpuidEntry { ecx: entry.ecx & !(1 << 23), ..entry } } else { entry })
        .collect();
    guest.vcpu.set_cpuid(&without).unwrap();
    guest.run_to_exception(6, false);
}

/// Without BMI1 and LZCNT, their encodings are those of BSF and BSR with a prefix that means nothing; also where the
/// loop is translated.
#[test]
fn bit_counts_taken_away_are_the_older_scans() {
    let mut guest = Guest::long();
    let without = |entry: CpuidEntry| match entry.function {
        7 => CpuidEntry { ebx: entry.ebx & !(1 << 3), ..entry },
        0x8000_0001 => CpuidEntry { ecx: entry.ecx & !(1 << 5), ..entry },
        _ => entry,
    };
    let rows: Vec<CpuidEntry> = guest.vcpu.cpuid().into_iter().map(without).collect();
    guest.vcpu.set_cpuid(&rows).unwrap();
    guest.code(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(r12d, 1000).unwrap();
        a.mov(eax, 77).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.mov(edx, 0x10).unwrap();
        a.set_label(&mut again).unwrap();
        // The scan of zero leaves its destination alone, where the count is 64.
        a.tzcnt(rax, rbx).unwrap();
        // The number of the highest bit, where the count of zeros above it is 59.
        a.lzcnt(rcx, rdx).unwrap();
        a.dec(r12d).unwrap();
        a.jnz(again).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    assert_eq!((guest.regs().rax, guest.regs().rcx), (77, 4));
}

#[test]
fn features_that_do_not_exist_cannot_be_asked_for() {
    let mut guest = Guest::long();
    let all = guest.vcpu.cpuid().into_iter().map(|entry| CpuidEntry { ecx: u32::MAX, ..entry }).collect::<Vec<_>>();
    let before = guest.vcpu.cpuid().iter().find(|entry| entry.function == 1).unwrap().ecx;
    guest.vcpu.set_cpuid(&all).unwrap();
    assert_eq!(guest.vcpu.cpuid().iter().find(|entry| entry.function == 1).unwrap().ecx, before);
}

#[test]
fn unknown_msr_faults_and_is_refused_from_outside() {
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| {
        a.mov(ecx, 0x1234_5678).unwrap();
        a.rdmsr().unwrap();
    });
    assert_eq!(guest.run_to_exception(13, true).rip, CODE + 5);
    assert!(guest.vcpu.msr(0x1234_5678).is_err());
    assert!(guest.vcpu.set_msr(MsrEntry { index: 0xc000_0082, value: 1 << 63 }).is_err());
}

#[test]
fn every_listed_msr_can_be_saved_and_restored() {
    for mut guest in [Guest::long(), Guest::with_irqchip()] {
        for index in guest.vcpu.msr_list() {
            let value = guest.vcpu.msr(index).unwrap();
            guest.vcpu.set_msr(MsrEntry { index, value }).unwrap_or_else(|error| panic!("{index:#x}: {error}"));
        }
    }
}

#[test]
fn tsc_is_the_clock_plus_its_adjustment() {
    let mut guest = Guest::long();
    guest.vcpu.set_msr(MsrEntry { index: 0x3b, value: 1 << 40 }).unwrap();
    guest.code(64, CODE, |a| {
        a.rdtsc().unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let regs = guest.regs();
    let tsc = regs.rdx << 32 | regs.rax;
    let clock = guest.vm.clock_ns();
    assert!((1 << 40..=clock + (1 << 40)).contains(&tsc), "{tsc} {clock}");
}

const TSC_AUX: u32 = 0xc000_0103;

#[test]
fn rdtscp_and_rdpid_give_the_number_that_the_kernel_put_there() {
    let mut guest = Guest::long();
    guest.vcpu.set_msr(MsrEntry { index: TSC_AUX, value: 0x8123_4567 }).unwrap();
    guest.code(64, CODE, |a| {
        a.mov(rcx, -1i64).unwrap();
        a.rdtscp().unwrap();
        a.shl(rdx, 32).unwrap();
        a.lea(rsi, ptr(rax + rdx)).unwrap();
        a.rdtsc().unwrap();
        a.shl(rdx, 32).unwrap();
        a.lea(rdi, ptr(rax + rdx)).unwrap();
        a.rdpid(rbx).unwrap();
        a.hlt().unwrap();
    });
    guest.run_to_halt();
    let regs = guest.regs();
    assert_eq!((regs.rcx, regs.rbx), (0x8123_4567, 0x8123_4567));
    assert!(regs.rsi <= regs.rdi, "time does not go back: {:#x} {:#x}", regs.rsi, regs.rdi);
}

#[test]
fn time_stamps_are_the_kernels_alone_where_it_says_so() {
    for read in [|a: &mut CodeAssembler| a.rdtsc(), |a: &mut CodeAssembler| a.rdtscp()] {
        let mut guest = Guest::long();
        guest.set_sregs(|sregs| sregs.cr4 |= 1 << 2);
        guest.code(64, CODE, |a| {
            read(a).unwrap();
            enter_user(a);
        });
        guest.code(64, USER_CODE, |a| read(a).unwrap());
        assert_eq!(guest.run_to_exception(13, true).rip, USER_CODE);
    }
}

#[test]
fn random_numbers_fill_the_register_and_carry_says_so() {
    const CF: u64 = 1;
    // OF, SF, ZF, AF and PF are cleared.
    const CLEARED: u64 = 0x8d4;
    for draw in [
        |a: &mut CodeAssembler| (a.rdrand(rax), a.rdrand(ebx), a.rdrand(cx)),
        |a: &mut CodeAssembler| (a.rdseed(rax), a.rdseed(ebx), a.rdseed(cx)),
    ] {
        let mut guest = Guest::long();
        guest.code(64, CODE, |a| {
            a.mov(rbx, -1i64).unwrap();
            a.mov(rcx, 0x5555_0000_0000_0000u64).unwrap();
            a.or(rdx, -1).unwrap();
            let (wide, middle, narrow) = draw(a);
            wide.and(middle).and(narrow).unwrap();
            a.hlt().unwrap();
        });
        let mut seen = [0; 3];
        for _ in 0..64 {
            guest.set_regs(|regs| regs.rip = CODE);
            guest.run_to_halt();
            let regs = guest.regs();
            assert_eq!(regs.rflags & (CF | CLEARED), CF);
            assert_eq!((regs.rbx >> 32, regs.rcx >> 16), (0, 0x5555_0000_0000), "what is above the operand");
            for (all, value) in seen.iter_mut().zip([regs.rax, regs.rbx, regs.rcx & 0xffff]) {
                *all |= value;
            }
        }
        // A bit that is 0 in 64 draws would be a chance of one in 2^57.
        assert_eq!(seen, [u64::MAX, 0xffff_ffff, 0xffff]);
    }
}

#[test]
fn xsetbv_takes_what_the_processor_has_and_faults_otherwise() {
    let set = |guest: &mut Guest, register: u32, value: u64| {
        guest.set_sregs(|sregs| sregs.cr4 |= 1 << 18);
        guest.code(64, CODE, |a| {
            a.mov(ecx, register).unwrap();
            a.mov(eax, value as u32).unwrap();
            a.mov(edx, (value >> 32) as u32).unwrap();
            a.xsetbv().unwrap();
            a.xor(eax, eax).unwrap();
            a.xgetbv().unwrap();
            a.hlt().unwrap();
        });
    };
    let all = cpuid(&mut Guest::long(), 0xd, 0)[0];
    for value in [1, 3, all] {
        let mut guest = Guest::long();
        set(&mut guest, 0, value);
        guest.run_to_halt();
        assert_eq!(guest.regs().rax, value);
    }
    // Without x87; AVX without SSE; bits of nothing; another register.
    for (register, value) in [(0, 0), (0, 2), (0, 5), (0, 1 << 62 | 1), (0, 1 << 31 | 1), (1, 1)] {
        let mut guest = Guest::long();
        set(&mut guest, register, value);
        assert_eq!(guest.run_to_exception(13, true).error, Some(0), "{register} {value:#x}");
    }
    let mut guest = Guest::long();
    guest.code(64, CODE, |a| a.xsetbv().unwrap());
    guest.run_to_exception(6, false);
}

#[test]
fn kvm_clock_page_describes_the_tsc() {
    let mut guest = Guest::long();
    guest.vcpu.set_msr(MsrEntry { index: 0x4b56_4d01, value: 0x9001 }).unwrap();
    guest.vcpu.set_msr(MsrEntry { index: 0x3b, value: 77 }).unwrap();
    assert_eq!((guest.get64(0x9008), guest.get64(0x9010)), (77, 0), "TSC and time of one moment");
    assert_eq!(guest.get64(0x9018), 0x0101_8000_0000, "scale 1, stable");
}

#[test]
fn user_mode_instruction_prevention_hides_the_tables() {
    let mut guest = Guest::long();
    guest.set_sregs(|sregs| sregs.cr4 |= 1 << 11);
    guest.code(64, CODE, enter_user);
    guest.code(64, USER_CODE, |a| a.sgdt(ptr(0x9000)).unwrap());
    guest.run_to_exception(13, true);
}

#[test]
fn reserved_bits_of_control_registers_fault() {
    for write in [
        |a: &mut CodeAssembler| a.mov(cr4, rax),
        |a: &mut CodeAssembler| a.mov(cr3, rax),
        |a: &mut CodeAssembler| a.mov(cr0, rax),
        |a: &mut CodeAssembler| a.mov(cr8, rax),
    ] {
        let mut guest = Guest::long();
        guest.set_regs(|regs| regs.rax = 1 << 60);
        guest.code(64, CODE, |a| write(a).unwrap());
        assert_eq!(guest.run_to_exception(13, true).error, Some(0));
    }
}

#[test]
fn task_priority_is_cr8() {
    let mut guest = Guest::with_irqchip();
    guest.code(64, CODE, |a| {
        a.mov(eax, 9).unwrap();
        a.mov(cr8, rax).unwrap();
        a.mov(rbx, cr8).unwrap();
        a.out(0x10, al).unwrap();
    });
    guest.run();
    assert_eq!((guest.regs().rbx, guest.sregs().cr8), (9, 9));
    assert_eq!(guest.vcpu.lapic().unwrap().regs[0x80], 0x90);
}

#[test]
fn state_survives_a_round_trip() {
    let mut guest = Guest::long();
    let (regs, sregs, xsave) = (guest.regs(), guest.sregs(), guest.vcpu.xsave().unwrap());
    guest.vcpu.set_sregs(&sregs).unwrap();
    guest.vcpu.set_regs(&regs).unwrap();
    guest.vcpu.set_xsave(&xsave).unwrap();
    assert_eq!((guest.regs(), guest.sregs(), guest.vcpu.xsave().unwrap()), (regs, sregs, xsave));
}

#[test]
fn impossible_states_are_refused() {
    let mut guest = Guest::long();
    for change in [
        |sregs: &mut Sregs| sregs.cr0 = 0x8000_0000,
        |sregs: &mut Sregs| sregs.cr4 = 1 << 40,
        |sregs: &mut Sregs| sregs.efer = 0x400,
    ] {
        let mut sregs = guest.sregs();
        change(&mut sregs);
        assert!(guest.vcpu.set_sregs(&sregs).is_err());
    }
}

// What separates ring 3 from ring 0, and the ways between them: SMEP, SMAP, UMIP, privileged
// instructions, SYSCALL, SWAPGS. Intel SDM volumes 2 and 3.

#include "machine.h"

enum { SMEP = 20, SMAP = 21, UMIP = 11, FSGSBASE = 16 };

extern char at_syscall_return[];

static void user_code(void) { __asm__ volatile("int $0x80"); }
static void call_user_code(void) { ((void (*)(void))((uint64_t)user_code + USER_OFFSET))(); }
static void load_user_page(void) { *(volatile uint64_t *)TEST_BASE; }
static void load_user_page_allowed(void)
{
    __asm__ volatile("stac");
    *(volatile uint64_t *)TEST_BASE;
    __asm__ volatile("clac");
}

static void user_cli(void) { __asm__ volatile("cli\n\tint $0x80"); }
static void user_hlt(void) { __asm__ volatile("hlt\n\tint $0x80"); }
static void user_out(void) { __asm__ volatile("mov $0x80, %%dx\n\tout %%al, %%dx\n\tint $0x80" ::: "rdx"); }
static void user_cr0(void) { __asm__ volatile("mov %%cr0, %%rax\n\tint $0x80" ::: "rax"); }
static void user_rdmsr(void) { __asm__ volatile("rdmsr\n\tint $0x80" ::: "rax", "rdx"); }
static void user_sgdt(void) { __asm__ volatile("sgdt -64(%rsp)\n\tint $0x80"); }
static void user_popf(void)
{
    __asm__ volatile("pushq $0x3202\n\tpopfq\n\tpushfq\n\tpop %%rax\n\tint $0x80" ::: "rax"); // IOPL 3, IF
}
static void user_swapgs(void) { __asm__ volatile("swapgs\n\tint $0x80"); }
static void user_syscall(void)
{
    __asm__ volatile("syscall\nat_syscall_return:\n\tint $0x80" ::: "rcx", "r11");
}
static void user_ring(void) { __asm__ volatile("mov %%cs, %%eax\n\tint $0x80" ::: "rax"); }

// Where SYSCALL enters: note what it finds, then go back by SYSRET.
extern char syscall_entry[];
static volatile uint64_t entry_rcx, entry_r11, entry_flags, entry_cs;
__asm__(".text\nsyscall_entry:\n\t"
        "mov %rcx, entry_rcx(%rip)\n\t"
        "mov %r11, entry_r11(%rip)\n\t"
        "mov %rsp, %rdx\n\t"
        "lea stack_top(%rip), %rsp\n\t"
        "pushfq\n\tpop entry_flags(%rip)\n\t"
        "mov %cs, %eax\n\tmov %rax, entry_cs(%rip)\n\t"
        "mov %rdx, %rsp\n\t"
        "sysretq\n\t");

static void modes(void)
{
    uint32_t leaf[4];
    cpuid(7, 0, leaf);
    if (leaf[1] >> 7 & 1) {
        check("call of user code without smep", vector_of(call_user_code), USER_END);
        write_cr4(read_cr4() | 1 << SMEP);
        check("call of user code with smep", vector_of(call_user_code), PF);
        check("call of user code with smep: error", trap.error, P | 0x10);
        write_cr4(read_cr4() & ~(1ULL << SMEP));
    }
    map(0, P | W | U);
    if (leaf[1] >> 20 & 1) {
        check("load of a user page without smap", vector_of(load_user_page), NONE);
        write_cr4(read_cr4() | 1 << SMAP);
        check("load of a user page with smap", vector_of(load_user_page), PF);
        check("load of a user page with smap: error", trap.error, P);
        check("load of a user page with smap and ac", vector_of(load_user_page_allowed), NONE);
        write_cr4(read_cr4() & ~(1ULL << SMAP));
    }
    check("sgdt in ring 3", user_vector_of(user_sgdt), USER_END);
    if (leaf[2] >> 2 & 1) {
        write_cr4(read_cr4() | 1 << UMIP);
        check("sgdt in ring 3 with umip", user_vector_of(user_sgdt), GP);
        write_cr4(read_cr4() & ~(1ULL << UMIP));
    }
}

static void system_calls(void)
{
    wrmsr(0xc0000081, 0x0018000800000000); // STAR: SYSCALL 08, SYSRET 18
    wrmsr(0xc0000082, (uint64_t)syscall_entry);
    wrmsr(0xc0000084, 0x300); // FMASK: IF, TF
    check("syscall and sysret", user_vector_of(user_syscall), USER_END);
    check("syscall: rcx", entry_rcx, (uint64_t)at_syscall_return + USER_OFFSET);
    check("syscall: r11 has the flags", entry_r11 & 0x302, 2);
    check("syscall: cs", entry_cs, 0x08);
    check("sysret: cs", trap.cs, 0x2b);
}

static void bases(void)
{
    wrmsr(0xc0000101, 0x1111);
    wrmsr(0xc0000102, 0x2222);
    __asm__ volatile("swapgs");
    check("swapgs: gs base", rdmsr(0xc0000101), 0x2222);
    check("swapgs: kernel gs base", rdmsr(0xc0000102), 0x1111);
    uint32_t leaf[4];
    cpuid(7, 0, leaf);
    if (leaf[1] & 1) {
        write_cr4(read_cr4() | 1 << FSGSBASE);
        uint64_t base;
        __asm__ volatile("wrgsbase %1\n\trdgsbase %0" : "=r"(base) : "r"(0x4444ULL));
        check("rdgsbase", base, 0x4444);
        check("gs base msr", rdmsr(0xc0000101), 0x4444);
        write_cr4(read_cr4() & ~(1ULL << FSGSBASE));
    }
}

void test_protection(void)
{
    check("cs in ring 3", user_vector_of(user_ring), USER_END);
    check("cs in ring 3: value", trap.rax, 0x2b);
    check("cli in ring 3", user_vector_of(user_cli), GP);
    check("hlt in ring 3", user_vector_of(user_hlt), GP);
    check("mov from cr0 in ring 3", user_vector_of(user_cr0), GP);
    check("rdmsr in ring 3", user_vector_of(user_rdmsr), GP);
    check("swapgs in ring 3", user_vector_of(user_swapgs), GP);
    check("popf in ring 3", user_vector_of(user_popf), USER_END);
    check("popf in ring 3 keeps iopl and if", trap.rax & 0x3200, 0);
    *(uint16_t *)(task_state + 0x66) = 104; // no I/O permission bitmap
    check("out in ring 3", user_vector_of(user_out), GP);
    modes();
    system_calls();
    bases();
}

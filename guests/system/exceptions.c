// Exceptions: vector, error code, and where RIP points. Intel SDM volume 3, chapter 6.

#include "machine.h"

extern char after_int3[], at_ud2[], at_div[];

static void divide(void)
{
    __asm__ volatile("xor %%edx, %%edx\n\txor %%ecx, %%ecx\n\tmov $1, %%eax\n\t"
                     "at_div: div %%ecx" ::: "eax", "ecx", "edx");
}
static void divide_overflow(void)
{
    __asm__ volatile("mov $2, %%edx\n\tmov $1, %%ecx\n\tdiv %%ecx" ::: "eax", "ecx", "edx");
}
static void breakpoint(void) { __asm__ volatile("int3\nafter_int3:"); }
static void undefined(void) { __asm__ volatile("at_ud2: ud2"); }
static void lock_on_register(void) { __asm__ volatile(".byte 0xf0, 0x01, 0xc0"); }
static void not_in_64_bit(void) { __asm__ volatile(".byte 0x06"); } // push %es
static void non_canonical_read(void)
{
    __asm__ volatile("movabs $0x800000000000, %%rax\n\tmov (%%rax), %%rax" ::: "rax");
}
static void non_canonical_stack(void)
{
    __asm__ volatile("push %%rbp\n\tmovabs $0x800000000000, %%rbp\n\tmov (%%rbp), %%rax\n\t"
                     "pop %%rbp" ::: "rax");
}
static void null_selector_limit(void)
{
    __asm__ volatile("mov $0x1000, %%eax\n\tmov %%eax, %%ds" ::: "eax"); // past the GDT
}
static void not_present_segment(void) { __asm__ volatile("mov $0x40, %%eax\n\tmov %%eax, %%ds" ::: "eax"); }
static void not_present_stack(void) { __asm__ volatile("mov $0x40, %%eax\n\tmov %%eax, %%ss" ::: "eax"); }
static void reserved_cr4(void) { write_cr4(read_cr4() | 1ULL << 40); }
static void paging_without_protection(void) { write_cr0(read_cr0() & ~1ULL); }
static void unknown_msr(void) { rdmsr(0x12345); }
static void reserved_efer(void) { wrmsr(0xc0000080, rdmsr(0xc0000080) | 1ULL << 63); }
static void non_canonical_msr(void) { wrmsr(0xc0000100, 0x800000000000); }
static void x87_while_task_switched(void)
{
    write_cr0(read_cr0() | 8);
    __asm__ volatile("fnop");
}
static void sse_without_osfxsr(void) { __asm__ volatile("xorps %xmm0, %xmm0"); }
static void missing_gate(void) { __asm__ volatile("int $0x90"); }
static void interrupt_in_user(void) { __asm__ volatile("int $0x81"); } // a gate of ring 0
static void misaligned_in_user(void)
{
    __asm__ volatile("pushfq\n\torq $0x40000, (%%rsp)\n\tpopfq\n\tlea 1(%%rsp), %%rax\n\t"
                     "mov (%%rax), %%eax" ::: "rax");
}

static void double_fault(void)
{
    // #UD's gate is not there: #NP while delivering #UD... is benign then contributory: serial, #NP
    // comes. A #GP whose own gate is missing is contributory twice: #DF.
    non_canonical_read();
}

static void page_fault_with_ist(void) { *(volatile uint64_t *)TEST_BASE; }

void test_exceptions(void)
{
    check("div by zero", vector_of(divide), DE);
    check("div by zero: rip", trap.rip, (uint64_t)at_div);
    check("div overflow", vector_of(divide_overflow), DE);
    check("int3", vector_of(breakpoint), BP);
    check("int3: rip is after it", trap.rip, (uint64_t)after_int3);
    check("ud2", vector_of(undefined), UD);
    check("ud2: rip", trap.rip, (uint64_t)at_ud2);
    check("lock add to a register", vector_of(lock_on_register), UD);
    check("push es in 64-bit mode", vector_of(not_in_64_bit), UD);
    check("non-canonical read", vector_of(non_canonical_read), GP);
    check("non-canonical read: error", trap.error, 0);
    check("non-canonical load by rbp", vector_of(non_canonical_stack), SS);
    check("selector past the gdt", vector_of(null_selector_limit), GP);
    check("selector past the gdt: error", trap.error, 0x1000);
    check("absent data segment", vector_of(not_present_segment), NP);
    check("absent data segment: error", trap.error, 0x40);
    check("absent stack segment", vector_of(not_present_stack), SS);
    check("absent stack segment: error", trap.error, 0x40);
    check("reserved bit of cr4", vector_of(reserved_cr4), GP);
    check("cr0.pg without pe", vector_of(paging_without_protection), GP);
    check("msr that does not exist", vector_of(unknown_msr), GP);
    check("reserved bit of efer", vector_of(reserved_efer), GP);
    check("non-canonical fs base", vector_of(non_canonical_msr), GP);
    check("x87 with cr0.ts", vector_of(x87_while_task_switched), NM);
    write_cr0(read_cr0() & ~8ULL);
    check("sse without cr4.osfxsr", vector_of(sse_without_osfxsr), UD);

    set_gate(0x90, 0x0e, 0);
    check("int through an absent gate", vector_of(missing_gate), NP);
    check("int through an absent gate: error", trap.error, 0x90 << 3 | 2);
    check("int through a gate of ring 0 in ring 3", user_vector_of(interrupt_in_user), GP);
    check("int through a gate of ring 0: error", trap.error, 0x81 << 3 | 2);

    set_gate(GP, 0x0e, 0);
    check("#GP without a gate", vector_of(double_fault), DF);
    check("#DF: error", trap.error, 0);
    set_gate(GP, 0x8e, 0);

    *(uint64_t *)(task_state + 0x24) = (uint64_t)ist_stack_top; // IST1
    set_gate(PF, 0x8e, 1);
    test_pages[0] = 0;
    check("page fault on its own stack", vector_of(page_fault_with_ist), PF);
    check("page fault on its own stack: rsp", trap.handler_rsp, (uint64_t)ist_stack_top - 8);
    set_gate(PF, 0x8e, 0);

    write_cr0(read_cr0() | 1 << 18); // AM
    check("misaligned load in ring 3 with AC", user_vector_of(misaligned_in_user), AC);
    write_cr0(read_cr0() & ~(1ULL << 18));
}

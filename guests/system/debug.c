// Single-step, breakpoints and watchpoints. Intel SDM volume 3, chapter 18.

#include "machine.h"

extern char step_here[], step_next[], break_here[], after_watched[];
static volatile uint64_t watched;

static void single_step(void)
{
    __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\nstep_here: nop\nstep_next: nop" ::: "memory");
}
static void icebp(void) { __asm__ volatile(".byte 0xf1"); }
static void run_to_breakpoint(void) { __asm__ volatile("nop\nbreak_here: nop"); }
static void store_watched(void) { __asm__ volatile("movq $1, %0\nafter_watched:" : "=m"(watched)); }
static void load_watched(void) { __asm__ volatile("mov %0, %%rax" : : "m"(watched) : "rax"); }
static void resume_flag(void)
{
    // IRET with RF: the breakpoint at its target is passed over once.
    __asm__ volatile("mov %%ss, %%eax\n\tpush %%rax\n\tlea 8(%%rsp), %%rax\n\tpush %%rax\n\t"
                     "pushfq\n\torq $0x10000, (%%rsp)\n\tmov %%cs, %%eax\n\tpush %%rax\n\t"
                     "lea break_here(%%rip), %%rax\n\tpush %%rax\n\tmovq $3, (%%rsp)\n\t"
                     "lea 1f(%%rip), %%rax\n\tmov %%rax, (%%rsp)\n\tiretq\n1:" ::: "rax", "memory");
}
static void general_detect(void)
{
    write_dr7(0x400 | 0x2000); // GD
    read_dr0();
}

void test_debug(void)
{
    check("single step", vector_of(single_step), DB);
    check("single step: after one instruction", trap.rip, (uint64_t)step_next);
    check("single step: dr6.bs", trap.dr6 & 0x400f, 0x4000);
    check("icebp", vector_of(icebp), DB);

    write_dr0((uint64_t)break_here);
    write_dr7(0x401 | 0x2); // enabled, an instruction
    check("execution breakpoint", vector_of(run_to_breakpoint), DB);
    check("execution breakpoint: before the instruction", trap.rip, (uint64_t)break_here);
    check("execution breakpoint: dr6.b0", trap.dr6 & 0x400f, 1);
    write_dr7(0x400);
    check("after the breakpoint is off", vector_of(run_to_breakpoint), NONE);
    check("iret with rf", vector_of(resume_flag), NONE);

    write_dr0((uint64_t)&watched);
    write_dr7(0x401 | 0x2 | 0x90000); // a store of 8 bytes
    check("watched store", vector_of(store_watched), DB);
    check("watched store: after the instruction", trap.rip, (uint64_t)after_watched);
    check("watched store: dr6.b0", trap.dr6 & 0x400f, 1);
    check("watched load of a store watchpoint", vector_of(load_watched), NONE);
    write_dr7(0x401 | 0x2 | 0xb0000); // loads too
    check("watched load", vector_of(load_watched), DB);
    check("general detect", vector_of(general_detect), DB);
    check("general detect: dr6.bd", trap.dr6 & 0x2000, 0x2000);
    write_dr7(0x400);
}

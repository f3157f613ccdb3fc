// Interrupts: when they come, and the timers that send them. Intel SDM volume 3, chapters 6 and 11.

#include "machine.h"

enum { VECTOR = 0x40, APIC = 0x800 }; // x2APIC MSRs start there

static void wait_in_hlt(void)
{
    for (;;)
        __asm__ volatile("sti\n\thlt\n\tcli");
}
static volatile uint64_t spins;
static void spin(void)
{
    __asm__ volatile("sti");
    for (;;)
        spins++;
}
static void shadow_of_sti(void) { __asm__ volatile("sti\n\tnop\n\tcli"); }
extern char after_shadow[];
static void taken_after_shadow(void) { __asm__ volatile("sti\n\tnop\nafter_shadow: nop\n\tcli"); }

static uint64_t apic(int reg) { return rdmsr(APIC + reg); }

static void own_interrupt(void) { wrmsr(APIC + 0x3f, VECTOR); } // SELF IPI
static void end_of_interrupt(void) { wrmsr(APIC + 0x0b, 0); }

static void one_shot(uint32_t count)
{
    wrmsr(APIC + 0x3e, 3); // divide by 16
    wrmsr(APIC + 0x32, VECTOR);
    wrmsr(APIC + 0x38, count);
}

static void in_service(uint64_t want)
{
    check("in service", apic(0x10 + VECTOR / 32) >> VECTOR % 32 & 1, want);
}

void test_interrupts(void)
{
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    wrmsr(0x1b, rdmsr(0x1b) | 0xc00); // xAPIC on, then x2APIC
    check("x2apic mode", rdmsr(0x1b) >> 10 & 3, 3);
    wrmsr(APIC + 0x0f, 0x1ff); // software enable
    wrmsr(APIC + 0x08, 0);

    own_interrupt();
    check("requested", apic(0x20 + VECTOR / 32) >> VECTOR % 32 & 1, 1);
    check("in the shadow of sti, for one instruction", vector_of(shadow_of_sti), VECTOR);
    in_service(1);
    end_of_interrupt();
    in_service(0);
    own_interrupt();
    check("after the shadow", vector_of(taken_after_shadow), VECTOR);
    check("after the shadow: rip", trap.rip, (uint64_t)after_shadow);
    end_of_interrupt();

    wrmsr(APIC + 0x08, VECTOR); // a task priority that holds it back
    own_interrupt();
    check("held back by the task priority", vector_of(shadow_of_sti), NONE);
    wrmsr(APIC + 0x08, 0);
    check("when the priority falls", vector_of(shadow_of_sti), VECTOR);
    end_of_interrupt();

    one_shot(10000);
    check("timer wakes from hlt", vector_of(wait_in_hlt), VECTOR);
    end_of_interrupt();
    one_shot(100000);
    check("timer interrupts a loop", vector_of(spin), VECTOR);
    check("timer interrupts a loop that ran", spins > 0, 1);
    end_of_interrupt();

    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    if (leaf[2] >> 24 & 1) {
        uint32_t low, high;
        wrmsr(APIC + 0x32, VECTOR | 2 << 17); // TSC deadline
        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        wrmsr(0x6e0, ((uint64_t)high << 32 | low) + 3000000);
        check("tsc deadline wakes from hlt", vector_of(wait_in_hlt), VECTOR);
        check("tsc deadline is disarmed", rdmsr(0x6e0), 0);
        end_of_interrupt();
    }
}

// The bare machine of the system-mode tests: traps, pages, registers and a way to report.

#pragma once
#include <stdint.h>

struct trap {
    uint64_t vector, error, rip, cs, rflags, rsp, rax, handler_rsp, cr2, dr6;
};
extern volatile struct trap trap;

enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, AC = 17, USER_END = 0x80 };
enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80 };
#define NX (1ULL << 63)

#define TEST_BASE 0x80000000ULL
#define USER_OFFSET 0x40000000ULL
#define NONE 0x1000 // the vector of no trap

extern uint64_t kernel_directory[512], user_directory[512], test_pages[512];
extern uint8_t test_frame[4096], ist_stack_top[], stubs[256][16], task_state[104];

int try(void (*body)(void));
void to_user(void (*body)(void));

// Report one result; a test has passed when what it got is what it wants.
void check(const char *name, uint64_t got, uint64_t want);
// The vector that ended `body`, or NONE; from ring 0 and from ring 3.
uint64_t vector_of(void (*body)(void));
uint64_t user_vector_of(void (*body)(void));
// Map page `index` of the test area with these bits; the frame is `test_frame`. Flushes the TLB.
volatile uint64_t *map(int index, uint64_t bits);
void set_gate(int vector, uint64_t attributes, int ist);

#define SYSTEM_REGISTER(name)                                                                      \
    static inline uint64_t read_##name(void)                                                       \
    {                                                                                              \
        uint64_t value;                                                                            \
        __asm__ volatile("mov %%" #name ", %0" : "=r"(value));                                     \
        return value;                                                                              \
    }                                                                                              \
    static inline void write_##name(uint64_t value)                                                \
    {                                                                                              \
        __asm__ volatile("mov %0, %%" #name : : "r"(value) : "memory");                            \
    }
SYSTEM_REGISTER(cr0)
SYSTEM_REGISTER(cr3)
SYSTEM_REGISTER(cr4)
SYSTEM_REGISTER(dr0)
SYSTEM_REGISTER(dr6)
SYSTEM_REGISTER(dr7)

static inline uint64_t rdmsr(uint32_t index)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(sub));
}

void test_exceptions(void);
void test_paging(void);
void test_protection(void);
void test_debug(void);
void test_interrupts(void);
void test_code_changes(void);

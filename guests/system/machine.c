#include "machine.h"

enum { COM1 = 0x3f8, LSR = 5, LSR_THR_EMPTY = 0x20, DEBUG_EXIT = 0xf4 };

static struct gate {
    uint64_t low, high;
} idt[256];

static int failures, checks;

static void put(char c)
{
    while (!(inb(COM1 + LSR) & LSR_THR_EMPTY))
        ;
    outb(COM1, c);
}

static void print(const char *text)
{
    for (; *text; text++)
        put(*text);
}

static void print_hex(uint64_t value)
{
    print("0x");
    for (int shift = 60; shift >= 0; shift -= 4)
        if (value >> shift || shift == 0)
            put("0123456789abcdef"[value >> shift & 15]);
}

void check(const char *name, uint64_t got, uint64_t want)
{
    checks++;
    if (got == want)
        return;
    failures++;
    print("FAILED ");
    print(name);
    print(": got ");
    print_hex(got);
    print(", want ");
    print_hex(want);
    print("\n");
}

uint64_t vector_of(void (*body)(void))
{
    write_dr6(0xffff0ff0);
    return try(body) ? trap.vector : NONE;
}

static void (*user_body)(void);

static void enter_user(void)
{
    to_user((void (*)(void))((uint64_t)user_body + USER_OFFSET));
}

uint64_t user_vector_of(void (*body)(void))
{
    user_body = body;
    return vector_of(enter_user);
}

volatile uint64_t *map(int index, uint64_t bits)
{
    test_pages[index] = (uint64_t)test_frame | bits;
    write_cr3(read_cr3());
    return (volatile uint64_t *)(TEST_BASE + index * 4096);
}

void set_gate(int vector, uint64_t attributes, int ist)
{
    uint64_t at = (uint64_t)stubs[vector];
    idt[vector].low =
        (at & 0xffff) | 8 << 16 | (uint64_t)ist << 32 | attributes << 40 | (at >> 16 & 0xffff) << 48;
    idt[vector].high = at >> 32;
}

static void load_idt(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (uint64_t)idt};
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

int main(void)
{
    for (int vector = 0; vector < 256; vector++)
        set_gate(vector, 0x8e, 0);
    set_gate(BP, 0xee, 0);
    set_gate(USER_END, 0xee, 0);
    load_idt();
    print("system mode\n");
    test_exceptions();
    test_paging();
    test_protection();
    test_debug();
    test_code_changes();
    test_interrupts();
    print("checks ");
    print_hex(checks);
    print(failures ? " with failures\n" : " all passed\n");
    outb(DEBUG_EXIT, failures != 0);
    return 0;
}

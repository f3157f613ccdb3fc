// Code that changes while it runs: its own next instruction, a function that ran before, another
// page's alias of it. Intel SDM volume 3, 8.1.3 (on x86 all of these are seen at once).

#include "machine.h"

typedef uint64_t function(void);

// mov $VALUE, %eax; ret
static void write_function(volatile uint8_t *at, uint32_t value)
{
    at[0] = 0xb8;
    *(volatile uint32_t *)(at + 1) = value;
    at[5] = 0xc3;
}

static uint64_t change_next(void)
{
    uint64_t value;
    __asm__ volatile("lea 1f(%%rip), %%rdx\n\t"
                     "movl $2, 1(%%rdx)\n\t"
                     "jmp 1f\n\t"
                     "1: mov $1, %%eax\n\t"
                     "movl $1, 1(%%rdx)"
                     : "=a"(value)
                     :
                     : "rdx", "memory");
    return (uint32_t)value;
}

static uint64_t change_following(void)
{
    uint64_t value;
    __asm__ volatile("lea 1f(%%rip), %%rdx\n\t"
                     "movl $2, 1(%%rdx)\n"
                     "1: mov $1, %%eax\n\t"
                     "movl $1, 1(%%rdx)"
                     : "=a"(value)
                     :
                     : "rdx", "memory");
    return (uint32_t)value;
}

void test_code_changes(void)
{
    uint64_t sum = 0;
    for (int i = 0; i < 3; i++)
        sum += change_next();
    check("code changed before a jump to it", sum, 6);
    sum = 0;
    for (int i = 0; i < 3; i++)
        sum += change_following();
    check("the very next instruction changed", sum, 6);

    map(0, P | W);
    map(1, P | W);
    volatile uint8_t *first = (volatile uint8_t *)TEST_BASE, *alias = first + 4096;
    for (uint32_t i = 1; i < 200; i++) {
        write_function(i & 1 ? first : alias, i);
        if (((function *)first)() != i || ((function *)alias)() != i) {
            check("code changed through an alias", ((function *)first)(), i);
            break;
        }
    }
    write_function(first + 4096 - 3, 0x12345678); // an instruction in two pages of one frame
    check("code across a page's end", ((function *)(first + 4096 - 3))(), 0x12345678);
    write_function(first + 4096 - 3, 0x87654321);
    check("code across a page's end, changed", ((function *)(first + 4096 - 3))(), 0x87654321);
}

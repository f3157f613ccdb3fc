// Page faults and their error codes, accessed and dirty bits, and what keeps a translation alive.
// Intel SDM volume 3, chapter 4.

#include "machine.h"

#define PAGE(index) ((volatile uint64_t *)(TEST_BASE + (index)*4096ULL))

static void load(void) { *PAGE(0); }
static void store(void) { *PAGE(0) = 1; }
static void load_across(void) { *(volatile uint64_t *)(TEST_BASE + 4096 - 4); }
static void store_across(void) { *(volatile uint64_t *)(TEST_BASE + 4096 - 4) = 0x1122334455667788; }
static void fetch(void) { __asm__ volatile("call *%0" : : "r"(TEST_BASE)); }
static void user_load(void)
{
    __asm__ volatile("mov %0, %%rax\n\tmov (%%rax), %%rax\n\tint $0x80" : : "i"(TEST_BASE) : "rax");
}
static void user_store(void)
{
    __asm__ volatile("mov %0, %%rax\n\tmov %%rax, (%%rax)\n\tint $0x80" : : "i"(TEST_BASE) : "rax");
}
static void user_fetch(void) { __asm__ volatile("mov %0, %%rax\n\tjmp *%%rax" : : "i"(TEST_BASE) : "rax"); }
static void flush_page(void) { __asm__ volatile("invlpg (%0)" : : "r"(TEST_BASE) : "memory"); }

static void faults(void)
{
    test_pages[0] = 0;
    flush_page();
    check("load of an absent page", vector_of(load), PF);
    check("load of an absent page: error", trap.error, 0);
    check("load of an absent page: cr2", trap.cr2, TEST_BASE);
    check("store to an absent page", vector_of(store), PF);
    check("store to an absent page: error", trap.error, W);
    check("fetch from an absent page", vector_of(fetch), PF);
    check("fetch from an absent page: error", trap.error, 0x10);
    check("fetch from an absent page: rip", trap.rip, TEST_BASE);
    check("ring 3 load of an absent page", user_vector_of(user_load), PF);
    check("ring 3 load of an absent page: error", trap.error, U);

    map(0, P);
    check("load of a read-only page", vector_of(load), NONE);
    check("store to a read-only page", vector_of(store), PF);
    check("store to a read-only page: error", trap.error, P | W);
    write_cr0(read_cr0() & ~(1ULL << 16));
    check("store to a read-only page without wp", vector_of(store), NONE);
    write_cr0(read_cr0() | 1 << 16);
    check("store to a read-only page, wp again", vector_of(store), PF);
    check("ring 3 load of a page of ring 0", user_vector_of(user_load), PF);
    check("ring 3 load of a page of ring 0: error", trap.error, P | U);

    map(0, P | U);
    check("ring 3 load of its page", user_vector_of(user_load), USER_END);
    check("ring 3 store to its read-only page", user_vector_of(user_store), PF);
    check("ring 3 store to its read-only page: error", trap.error, P | W | U);
    map(0, P | W | U | NX);
    check("ring 3 store to its page", user_vector_of(user_store), USER_END);
    check("ring 3 fetch from a page that is not code", user_vector_of(user_fetch), PF);
    check("ring 3 fetch from a page that is not code: error", trap.error, P | U | 0x10);
    check("fetch from a page that is not code", vector_of(fetch), PF);
    check("fetch from a page that is not code: error", trap.error, P | 0x10);

    map(0, P | W | 1ULL << 51);
    check("load through a reserved bit", vector_of(load), PF);
    check("load through a reserved bit: error", trap.error, P | 8);
}

static void pages_side_by_side(void)
{
    map(0, P | W);
    test_pages[1] = 0;
    write_cr3(read_cr3());
    test_frame[4095] = 0x5a;
    check("load across into an absent page", vector_of(load_across), PF);
    check("load across: cr2", trap.cr2, TEST_BASE + 4096);
    check("store across into an absent page", vector_of(store_across), PF);
    check("store across: error", trap.error, W);
    check("store across leaves the first page alone", test_frame[4095], 0x5a);
    map(1, P | W);
    check("store across two pages of one frame", vector_of(store_across), NONE);
    check("store across: low half", *(uint32_t *)(test_frame + 4092), 0x55667788);
    check("store across: high half", *(uint32_t *)test_frame, 0x11223344);
}

static void accessed_and_dirty(void)
{
    map(0, P | W);
    check("a and d before", test_pages[0] & (A | D), 0);
    *PAGE(0);
    check("a after a load", test_pages[0] & (A | D), A);
    *PAGE(0) = 1;
    check("a and d after a store", test_pages[0] & (A | D), A | D);
    map(0, P);
    vector_of(store);
    check("d after a store that faults", test_pages[0] & D, 0);
    map(0, P | W | D | A);
    test_pages[0] &= ~(uint64_t)(A | D);
    flush_page();
    *PAGE(0) = 2;
    check("a and d after invlpg and a store", test_pages[0] & (A | D), A | D);
}

static void translations(void)
{
    map(0, P | W);
    *PAGE(0);
    test_pages[0] = 0;
    flush_page();
    check("load after invlpg", vector_of(load), PF);

    map(0, P | W | 0x100); // global
    write_cr4(read_cr4() | 1 << 7);
    *PAGE(0);
    write_cr4(read_cr4() & ~(1ULL << 7)); // drops global translations too
    test_pages[0] = 0;
    write_cr3(read_cr3());
    check("load of a global page after cr4.pge was cleared", vector_of(load), PF);

    map(0, P); // a fault drops the translation that caused it: no invlpg is needed to allow more
    vector_of(store);
    test_pages[0] |= W;
    check("store after the entry allowed it, no invlpg", vector_of(store), NONE);
    test_pages[0] = 0;
    flush_page();
    vector_of(load);
    test_pages[0] = (uint64_t)test_frame | P;
    check("load after the entry became present, no invlpg", vector_of(load), NONE);
}

static void large_pages(void)
{
    volatile uint64_t *small = map(0, P | W);
    *small = 0x1234;
    volatile uint64_t *through_large = (volatile uint64_t *)(uint64_t)test_frame;
    check("a 2 MiB page shows the same frame", *through_large, 0x1234);
    int entry = (uint64_t)test_frame >> 21;
    check("a 2 MiB page has its d bit", kernel_directory[entry] & (A | D | PS), A | D | PS);
}

static void process_contexts(void)
{
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    if (!(leaf[2] >> 17 & 1))
        return;
    write_cr4(read_cr4() | 1 << 17);
    uint64_t cr3 = read_cr3();
    map(0, P | W);
    *PAGE(0);
    write_cr3(cr3 | 5);
    *PAGE(0);
    test_pages[0] = 0;
    write_cr3(cr3 | 5); // flushes context 5
    check("load after the context's flush", vector_of(load), PF);
    map(0, P);
    check("read-only in this context", vector_of(store), PF);
    write_cr3(cr3);
    cpuid(7, 0, leaf);
    if (leaf[1] >> 10 & 1) {
        struct {
            uint64_t context, address;
        } all = {0, 0};
        map(0, P | W);
        *PAGE(0);
        test_pages[0] = 0;
        __asm__ volatile("invpcid %0, %1" : : "m"(all), "r"(2ULL) : "memory");
        check("load after invpcid of everything", vector_of(load), PF);
    }
    write_cr4(read_cr4() & ~(1ULL << 17));
}

void test_paging(void)
{
    faults();
    pages_side_by_side();
    accessed_and_dirty();
    translations();
    large_pages();
    process_contexts();
}

// Reads and writes the guest's disks around its page cache: /dev/vda is raw, /dev/vdb is qcow2 on the
// host. Each measurement runs for about SLICE_NS with as many requests under way as fio would have,
// and prints one line: "bench NAME VALUE us", where VALUE is microseconds per request.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEPTH = 16, SMALL = 4096, LARGE = 1 << 20 };
static const int64_t SLICE_NS = 1500000000;

struct load {
    const char *name;
    int is_write, is_random, depth;
    size_t bytes;
};

static const struct load LOADS[] = {
    {"read4k", 0, 1, 16, SMALL},
    {"write4k", 1, 1, 16, SMALL},
    {"read1m", 0, 0, 4, LARGE},
    {"write1m", 1, 0, 4, LARGE},
};

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what)
{
    printf("diskbench: %s: %s\n", what, strerror(errno));
    exit(1);
}

// The place of request `number` on a disk of `places`.
static uint64_t place(const struct load *load, uint64_t number, uint64_t places)
{
    if (!load->is_random)
        return number % places;
    uint64_t word = (number + 1) * 0x9E3779B97F4A7C15u;
    return (word ^ word >> 29) * 0xBF58476D1CE4E5B9u % places;
}

static void submit(aio_context_t context, struct iocb *request, const struct load *load, uint64_t at)
{
    request->aio_lio_opcode = load->is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    request->aio_offset = at * load->bytes;
    if (syscall(SYS_io_submit, context, 1, &request) != 1)
        die("io_submit");
}

static void run(const struct load *load, const char *disk, const char *path)
{
    static unsigned char *buffers;
    static struct iocb requests[MAX_DEPTH];
    struct io_event events[MAX_DEPTH];
    aio_context_t context = 0;
    uint64_t size, next = 0, done = 0;
    int file = open(path, O_RDWR | O_DIRECT);
    if (file < 0 || ioctl(file, BLKGETSIZE64, &size))
        die(path);
    if (!buffers && posix_memalign((void **)&buffers, SMALL, 4 * LARGE))
        die("memory");
    memset(buffers, 0x5a, 4 * LARGE);
    if (syscall(SYS_io_setup, MAX_DEPTH, &context))
        die("io_setup");
    int64_t start = now_ns(), end = start + SLICE_NS;
    for (int slot = 0; slot < load->depth; slot++) {
        requests[slot] = (struct iocb){
            .aio_fildes = file, .aio_buf = (uintptr_t)(buffers + slot * load->bytes), .aio_nbytes = load->bytes};
        submit(context, &requests[slot], load, place(load, next++, size / load->bytes));
    }
    for (int pending = load->depth; pending;) {
        int count = syscall(SYS_io_getevents, context, 1, MAX_DEPTH, events, NULL);
        if (count <= 0)
            die("io_getevents");
        int more = now_ns() < end;
        for (int at = 0; at < count; at++) {
            if (events[at].res != (int64_t)load->bytes)
                die("a request failed");
            done++;
            if (more)
                submit(context, (struct iocb *)(uintptr_t)events[at].obj, load, place(load, next++, size / load->bytes));
            else
                pending--;
        }
    }
    double us = (now_ns() - start) / 1e3 / done;
    syscall(SYS_io_destroy, context);
    close(file);
    printf("bench disk_%s_%s %.2f us\n", load->name, disk, us);
    fflush(stdout);
}

int main(void)
{
    for (size_t at = 0; at < sizeof LOADS / sizeof *LOADS; at++) {
        run(&LOADS[at], "raw", "/dev/vda");
        run(&LOADS[at], "qcow2", "/dev/vdb");
    }
    puts("bench done 1 s");
    return 0;
}

/*
 * Steps the wall clock of the process that preloads it by what stands in the file named by RINGFENCE_WALL_CLOCK: seconds,
 * as one signed 64-bit number. Clocks that nobody can set (CLOCK_MONOTONIC, CLOCK_BOOTTIME) stay true.
 *
 * It replaces the functions of the vDSO and not those of libc, because they are where everybody ends up: libc, and
 * programs that go around it. What it does not catch is a program that makes the system call by hand.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

/* As the vDSO's own, these return a negative errno and leave errno alone. */

static int stepped_clock_gettime(clockid_t clock, struct timespec *now) {
    int before = errno;
    if (syscall(SYS_clock_gettime, clock, now) != 0) {
        int error = -errno;
        errno = before;
        return error;
    }
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI)
        now->tv_sec += *offset;
    return 0;
}

static int stepped_gettimeofday(struct timeval *now, void *zone) {
    if (zone)
        memset(zone, 0, sizeof(struct timezone));
    struct timespec precise;
    if (now && stepped_clock_gettime(CLOCK_REALTIME, &precise) == 0)
        *now = (struct timeval){ .tv_sec = precise.tv_sec, .tv_usec = precise.tv_nsec / 1000 };
    return 0;
}

/* A jump to an address that follows it. */
#if defined(__x86_64__)
#define PREFIX "__vdso_"
static const unsigned char jump[] = { 0xff, 0x25, 0, 0, 0, 0 }; /* jmp *0(%rip) */

static time_t stepped_time(time_t *place) {
    struct timespec now;
    stepped_clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
#elif defined(__aarch64__)
#define PREFIX "__kernel_"
static const unsigned char jump[] = { 0x50, 0, 0, 0x58, 0, 2, 0x1f, 0xd6 }; /* ldr x16, .+8; br x16 */
#else
#error "the jump into the stepped clock is written for x86-64 and AArch64 only"
#endif

static void fail(const char *what) {
    dprintf(STDERR_FILENO, "the wall clock of this process cannot be stepped: %s: %s\n", what, strerror(errno));
    _exit(EXIT_FAILURE);
}

static void replace(void *vdso, int memory, const char *name, const void *with) {
    unsigned char code[sizeof jump + sizeof with];
    memcpy(code, jump, sizeof jump);
    memcpy(code + sizeof jump, &with, sizeof with);
    void *function = dlsym(vdso, name);
    if (!function || pwrite(memory, code, sizeof code, (off_t)(uintptr_t)function) != sizeof code)
        fail(name);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("RINGFENCE_WALL_CLOCK");
    int file = open(path ? path : "", O_RDONLY | O_CLOEXEC);
    void *map = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        fail("RINGFENCE_WALL_CLOCK");
    close(file);
    offset = map;
    void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
    /* Not mprotect: the kernel may have sealed these pages. What is written here is this process's own copy of them. */
    int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    if (!vdso || memory < 0)
        fail("the vDSO");
    replace(vdso, memory, PREFIX "clock_gettime", stepped_clock_gettime);
    replace(vdso, memory, PREFIX "gettimeofday", stepped_gettimeofday);
#if defined(__x86_64__)
    replace(vdso, memory, PREFIX "time", stepped_time);
#endif
    close(memory);
}

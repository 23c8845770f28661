/* Writing a batch of files: the system calls, and nothing that decides anything.

   No path is walked here.  A name is one component, below a directory that the caller has
   opened; O_EXCL and O_NOFOLLOW are his rules, and so are the names and the order of the files.
   At the first error all ends, and he goes on from that file by his own rules. */

#include "native.h"

/* The same numbers for x86-64 and aarch64 but O_NOFOLLOW (include/uapi/asm-generic/fcntl.h,
   arch/arm64/include/uapi/asm/fcntl.h). */
#define O_WRONLY 01
#define O_CREAT 0100
#define O_EXCL 0200
#define O_CLOEXEC 02000000
#define EINTR 4
#define EIO 5

#if defined(__x86_64__)

#define O_NOFOLLOW 0400000
#define SYS_WRITE 1
#define SYS_CLOSE 3
#define SYS_OPENAT 257
#define SYS_UTIMENSAT 280

static inline long call(long number, long a, long b, long c, long d)
{
    register long fourth __asm__("r10") = d;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
}

#elif defined(__aarch64__)

#define O_NOFOLLOW 0100000
#define SYS_WRITE 64
#define SYS_CLOSE 57
#define SYS_OPENAT 56
#define SYS_UTIMENSAT 88

static inline long call(long number, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

#endif

/* Write all of a piece; 0, or the error as the kernel says it, below zero. */
static long write_all(long handle, const uint8_t *data, uint64_t size)
{
    while (size) {
        long count = call(SYS_WRITE, handle, (long)data, (long)size, 0);
        if (count == -EINTR)
            continue;
        if (count <= 0)
            return count ? count : -EIO; /* 0 is nothing that a file says; no endless loop */
        data += count;
        size -= (uint64_t)count;
    }
    return 0;
}

/* There is a name for each piece that begins a file, and each ends with a NUL: that bounds the walk
   over them. The first piece begins one. */
uint64_t ppr_write(const struct ppr_piece *pieces, uint64_t count, const char *names,
                   const volatile int32_t *stop, int32_t *error)
{
    uint64_t files = 0;
    *error = 0;
    for (uint64_t at = 0; at < count; files++) {
        const struct ppr_piece *file = &pieces[at];
        long handle, failed = 0;
        if (*stop)
            return files;
        do
            handle = call(SYS_OPENAT, file->directory, (long)names,
                          O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, file->mode);
        while (handle == -EINTR);
        if (handle < 0) {
            *error = (int32_t)-handle;
            return files;
        }
        do {
            failed = write_all(handle, pieces[at].data, pieces[at].size);
            at++;
        } while (!failed && at < count && pieces[at].directory < 0);
        if (!failed && file->nanoseconds >= 0) {
            int64_t times[4] = {file->seconds, file->nanoseconds, file->seconds, file->nanoseconds};
            failed = call(SYS_UTIMENSAT, handle, 0, (long)times, 0);
        }
        /* What close says is the last word of some file systems about what was written. */
        long closed = call(SYS_CLOSE, handle, 0, 0, 0);
        if (!failed && closed != -EINTR)
            failed = closed;
        if (failed) {
            *error = (int32_t)failed;
            return files;
        }
        while (*names++) {
        }
    }
    return files;
}

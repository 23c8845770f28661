"""How the C library deals with memory that is used and freed again and again."""


def keep() -> None:
    """Have freed memory kept for the next chunk or file, not given back to the system.

    Else each chunk is paid for page by page: 140,000 page faults a gigabyte, 0.2 seconds.  With
    glibc it is done by freeing a large block, which need not be used (mallopt(3), "the dynamic
    mmap threshold"; 32 MiB is the most that counts); elsewhere nothing changes.
    """
    try:
        bytes(31 << 20)
    except MemoryError:
        pass  # a limit on the address space: then memory is better given back


def share() -> None:
    """Have threads that are started from now on share one heap, as far as there is a way.

    glibc gives each thread a heap of its own, and each keeps what its thread once held at most:
    eight decoders came to 97 MB, and to 43 with one heap, in no more time (mallopt(3),
    M_ARENA_MAX).  Other C libraries have one heap, or no such call.  It takes 5 ms.
    """
    try:
        from ctypes import CDLL

        CDLL(None).mallopt(-8, 1)
    except (ImportError, OSError, AttributeError):
        pass  # it takes more memory then, that is all

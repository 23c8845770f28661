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

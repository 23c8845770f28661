/* The native library: what its callers may rely on.

   Freestanding C for little-endian 64-bit processors: no C library, no allocation, no global state.
   Every function works on what it is given and returns. */

#ifndef PPR_NATIVE_H
#define PPR_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "little-endian only: words are loaded from the stream as they lie"
#endif
_Static_assert(sizeof(void *) == 8, "64-bit only: the layout below is shared with ctypes");

#define PPR_EXPORT __attribute__((visibility("default")))

/* What ppr_inflate returns. */
enum { PPR_MORE_INPUT = 0, PPR_MORE_OUTPUT = 1, PPR_DONE = 2, PPR_BAD = 3 };

/* Sizes of the decoding tables: the first level, indexed by the next bits of the stream, and all
   levels together for the worst complete code ("enough 288 11 15" and "enough 32 8 15" of zlib's
   examples/enough.c). build_table() refuses what would not fit, so that nothing depends on them
   but which streams can be decoded. */
#define PPR_LITLEN_BITS 11
#define PPR_LITLEN_ENTRIES 2342
#define PPR_DISTANCE_BITS 8
#define PPR_DISTANCE_ENTRIES 402
#define PPR_PRECODE_BITS 7

#define PPR_INFLATE_BYTES 12288

/* One raw deflate stream (RFC 1951). All-zero bytes are a new stream. It holds no pointer but the
   caller's three, so that a copy of its bytes is a copy of the stream's state. */
struct ppr_inflate {
    const uint8_t *input; /* advanced by the call */
    uint64_t input_left;
    uint8_t *output; /* the present chunk: constant while it is filled */
    uint64_t output_size;
    uint64_t output_at;     /* bytes of it that are written; beyond them, its bytes are undefined */
    const uint8_t *history; /* the bytes before output[0], read only; 32768 of them are enough, */
    uint64_t history_size;  /* and fewer only where the stream is no longer than that */
    uint64_t bits_left;     /* bits that are taken from the input but not used */
    uint64_t at_block;      /* 1 between two blocks: the next bit is the first of a header */

    /* Private from here on. */
    uint64_t bit_buffer; /* the next bit is the lowest; zero from bits_left on */
    uint32_t phase;
    uint32_t last_block;
    uint32_t length;   /* of the match at hand, or what is left of a stored block */
    uint32_t distance; /* of the match at hand */
    uint32_t litlen_count;
    uint32_t distance_count;
    uint32_t precode_count;
    uint32_t lengths_read;
    uint32_t fixed_tables; /* 1 if the tables are those of fixed blocks */
    uint32_t processor;    /* what was found out about it; 0: nothing yet */
    uint8_t precode[1 << PPR_PRECODE_BITS];
    uint8_t precode_lengths[20];
    uint8_t lengths[320];
    uint32_t litlen_table[PPR_LITLEN_ENTRIES];
    uint32_t distance_table[PPR_DISTANCE_ENTRIES];
    uint8_t padding[PPR_INFLATE_BYTES - 588 - 4 * (PPR_LITLEN_ENTRIES + PPR_DISTANCE_ENTRIES)];
};

_Static_assert(sizeof(struct ppr_inflate) == PPR_INFLATE_BYTES, "the size that callers allocate");

/* Decode until the input is used up (PPR_MORE_INPUT: input_left is 0), the chunk is full and there
   is a byte to be written (PPR_MORE_OUTPUT: output_at is output_size; pass another chunk, and as
   history what now precedes it), the final block has ended (PPR_DONE: input stands exactly behind
   the stream's last byte), or the stream is none (PPR_BAD: exactly where zlib's inflate says so;
   what is in the chunk is then of no use). DONE and BAD are for good.

   Where history ends at output[0], in one buffer with it, no match has to be put together from two
   places, which is a little faster. */
PPR_EXPORT int32_t ppr_inflate(struct ppr_inflate *state);

/* zlib's crc32(data, crc). */
PPR_EXPORT uint32_t ppr_crc32(uint32_t crc, const uint8_t *data, uint64_t size);

/* A file to make, or more of the body of the one before it. */
struct ppr_piece {
    int32_t directory; /* an open descriptor; below zero: more of the same file */
    uint32_t mode;     /* permission bits; the kernel takes the umask from them */
    const uint8_t *data;
    uint64_t size;
    int64_t seconds;     /* the time of access and of modification */
    int64_t nanoseconds; /* below zero: it keeps the present time */
};

/* Make files, each below its directory, where none may be: their names stand one behind the other,
   each ended by a NUL, and are of one component.

   Returns how many are whole. If these are not all, *error is what the system said of the next one:
   above zero if that was not created, below zero if it was; or 0 where *stop, which another thread
   may set, is not. */
PPR_EXPORT uint64_t ppr_write(const struct ppr_piece *pieces, uint64_t count, const char *names,
                              const volatile int32_t *stop, int32_t *error);

#endif

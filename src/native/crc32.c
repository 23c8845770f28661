/* The CRC-32 of gzip and zip, as zlib's crc32() counts it: reflected, polynomial 0x04c11db7. */

#include "native.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

/* The CRC of one bit followed by 0, 1, 2, ... 63 others: each is the one before it, multiplied by x
   and reduced. The tables below are sums of these. */
#define TIMES_X(v) ((v) >> 1 ^ ((v) & 1 ? 0xedb88320u : 0))
#define POWERS_8(name, before) \
    name##0 = TIMES_X(before), name##1 = TIMES_X(name##0), name##2 = TIMES_X(name##1), \
    name##3 = TIMES_X(name##2), name##4 = TIMES_X(name##3), name##5 = TIMES_X(name##4), \
    name##6 = TIMES_X(name##5), name##7 = TIMES_X(name##6)
__extension__ enum powers : uint32_t {
    POWERS_8(a, 1u),
    POWERS_8(b, a7),
    POWERS_8(c, b7),
    POWERS_8(d, c7),
    POWERS_8(e, d7),
    POWERS_8(f, e7),
    POWERS_8(g, f7),
    POWERS_8(h, g7)
};

/* The lowest bit of a byte is the first, which is followed by seven. */
#define SUM(name, n) \
    (((n) & 1 ? name##7 : 0u) ^ ((n) & 2 ? name##6 : 0u) ^ ((n) & 4 ? name##5 : 0u) ^ \
     ((n) & 8 ? name##4 : 0u) ^ ((n) & 16 ? name##3 : 0u) ^ ((n) & 32 ? name##2 : 0u) ^ \
     ((n) & 64 ? name##1 : 0u) ^ ((n) & 128 ? name##0 : 0u))
#define SUMS_4(name, n) SUM(name, n), SUM(name, (n) + 1), SUM(name, (n) + 2), SUM(name, (n) + 3)
#define SUMS_16(name, n) \
    SUMS_4(name, n), SUMS_4(name, (n) + 4), SUMS_4(name, (n) + 8), SUMS_4(name, (n) + 12)
#define SUMS_64(name, n) \
    SUMS_16(name, n), SUMS_16(name, (n) + 16), SUMS_16(name, (n) + 32), SUMS_16(name, (n) + 48)
#define SUMS_256(name) \
    { SUMS_64(name, 0), SUMS_64(name, 64), SUMS_64(name, 128), SUMS_64(name, 192) }

/* tables[k][n] is the CRC of byte n followed by k zero bytes. */
static const uint32_t tables[8][256] = {
    SUMS_256(a), SUMS_256(b), SUMS_256(c), SUMS_256(d),
    SUMS_256(e), SUMS_256(f), SUMS_256(g), SUMS_256(h),
};

/* Here and below, crc is what zlib's is before its last step: inverted. */
static uint32_t crc32_by_tables(uint32_t crc, const uint8_t *data, uint64_t size)
{
    for (; size >= 8; data += 8, size -= 8) { /* loads what is left, or less */
        uint64_t word;

        __builtin_memcpy(&word, data, 8);
        word ^= crc;
        crc = tables[7][word & 255] ^ tables[6][word >> 8 & 255] ^ tables[5][word >> 16 & 255] ^
              tables[4][word >> 24 & 255] ^ tables[3][word >> 32 & 255] ^
              tables[2][word >> 40 & 255] ^ tables[1][word >> 48 & 255] ^ tables[0][word >> 56];
    }
    for (; size; data++, size--)
        crc = crc >> 8 ^ tables[0][(crc ^ *data) & 255];
    return crc;
}

#ifdef __x86_64__
/* Below that, asking for the processor costs more than it gains: under a hypervisor, CPUID is a
   trap of a microsecond or more, and the tables do 2 KB in one. */
#ifndef WORTH_ASKING
#define WORTH_ASKING 4096
#endif

/* PCLMULQDQ. It works on the registers that every x86-64 system saves. */
static int can_multiply(void)
{
    uint32_t a = 1, b, c = 0, d;

    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c >> 1 & 1;
}

static inline __attribute__((always_inline)) __m128i load_16(const uint8_t *from)
{
    return _mm_loadu_si128((const __m128i *)(const void *)from);
}

/* Move a vector's 128 bits ahead in the stream, by as far as the two powers of x in `by` say, and
   add what is there: carry-less products of its halves, each below 97 bits. */
__attribute__((target("pclmul"), always_inline)) static inline __m128i
fold(__m128i vector, __m128i by, __m128i there)
{
    return _mm_xor_si128(there, _mm_xor_si128(_mm_clmulepi64_si128(vector, by, 0x00),
                                              _mm_clmulepi64_si128(vector, by, 0x11)));
}

/* Fold all whole 16 bytes into 16 that have the same CRC. Needs 64 bytes. Loads end at data + size:
   each is preceded by a look at how many are left. */
__attribute__((target("pclmul"))) static uint32_t
crc32_by_multiplication(uint32_t crc, const uint8_t *data, uint64_t size)
{
    /* x to the powers of 4 * 128 + 32 and 4 * 128 - 32, 128 + 32 and 128 - 32, modulo the
       polynomial; reflected, and shifted by one bit, since the reflected product is short by it. */
    const __m128i by_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i by_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    __m128i lane_0 = _mm_xor_si128(load_16(data), _mm_cvtsi32_si128((int)crc));
    __m128i lane_1 = load_16(data + 16);
    __m128i lane_2 = load_16(data + 32);
    __m128i lane_3 = load_16(data + 48);
    uint8_t rest[16];

    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
        lane_0 = fold(lane_0, by_64, load_16(data));
        lane_1 = fold(lane_1, by_64, load_16(data + 16));
        lane_2 = fold(lane_2, by_64, load_16(data + 32));
        lane_3 = fold(lane_3, by_64, load_16(data + 48));
    }
    lane_1 = fold(lane_0, by_16, lane_1);
    lane_2 = fold(lane_1, by_16, lane_2);
    lane_3 = fold(lane_2, by_16, lane_3);
    for (; size >= 16; data += 16, size -= 16)
        lane_3 = fold(lane_3, by_16, load_16(data));
    _mm_storeu_si128((__m128i *)(void *)rest, lane_3);
    return crc32_by_tables(crc32_by_tables(0, rest, 16), data, size);
}
#endif

PPR_EXPORT uint32_t ppr_crc32(uint32_t crc, const uint8_t *data, uint64_t size)
{
#ifdef __x86_64__
    if (size >= WORTH_ASKING && can_multiply())
        return ~crc32_by_multiplication(~crc, data, size);
#endif
    return ~crc32_by_tables(~crc, data, size);
}

/* Raw deflate (RFC 1951), resumable at every input and output boundary.

   The stream is decoded by two loops. The fast one runs while there is a margin on both sides, so
   that it may load and store whole words without looking; it is what the time goes into. The other
   takes one symbol at a time and can stop anywhere; it decodes the block headers, what is near the
   end of a piece of input or of a chunk of output, and what the fast one leaves.

   Bits that are taken but not used. An element is what is used in one go or not at all: a header of
   three bits, a code with its extra bits, ... . At every return, one of two things holds:

     (a) fewer than 8 bits are left, or
     (b) the next element needs more bits than are left.

   MORE_INPUT is returned only where all input is taken and (b) holds. Other returns give back all
   whole bytes that were taken in this call; let n be the bits left at its start, t the bytes taken,
   u the bits used, so that n + 8t - u are left, of which min((n + 8t - u) / 8, t) bytes go back.
   If u is 0, that is t or (n < 8) t: n bits stay, and what held of them holds still. Otherwise u is
   at least what the first element needs: by (b) more than n, or n is below 8 by (a); either way
   (n + 8t - u) / 8 <= t, so all whole bytes go back and (a) holds. So no byte of an earlier call
   has ever to be given back, and at DONE, where u > 0 or (a) holds since the last block ended in an
   element, exactly what is behind the stream is left over. */

#include "native.h"

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define NEVER_INLINE __attribute__((noinline))
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

enum phase {
    HEADER, /* 0: where a new stream begins */
    STORED_LENGTHS,
    STORED,
    COUNTS,
    PRECODE_LENGTHS,
    CODE_LENGTHS,
    SYMBOL,
    DISTANCE,
    COPY,
    DONE,
    BAD
};

/* An entry of a decoding table:

     bits 0..7    how many bits to use: the code's and its extra bits', at most 28
     bits 8..11   of these the code's; in a POINTER, the index bits of the second level
     bits 16..30  the literal, the base of length or distance, the place of the second level
     bit 31       LITERAL

   An EXCEPTION is a POINTER, an END_OF_BLOCK, or else a code that stands for nothing. Entries of a
   second level count the bits beyond the first level's. */
#define LITERAL 0x80000000u
#define EXCEPTION 0x8000u
#define POINTER 0x4000u
#define END_OF_BLOCK 0x2000u
#define CODE_BITS(bits) ((uint32_t)(bits) * 0x101u)
#define USED(entry) ((uint8_t)(entry))

#define BASE(base, extra) ((uint32_t)(base) << 16 | (extra))
#define NOTHING EXCEPTION
#define LITERAL_1(value) (LITERAL | (uint32_t)(value) << 16)
#define LITERAL_4(value) \
    LITERAL_1(value), LITERAL_1((value) + 1), LITERAL_1((value) + 2), LITERAL_1((value) + 3)
#define LITERAL_16(value) \
    LITERAL_4(value), LITERAL_4((value) + 4), LITERAL_4((value) + 8), LITERAL_4((value) + 12)
#define LITERAL_64(value) \
    LITERAL_16(value), LITERAL_16((value) + 16), LITERAL_16((value) + 32), LITERAL_16((value) + 48)

/* The entries of all symbols, to which their code's bits are added. */
static const uint32_t litlen_entries[288] = {
    LITERAL_64(0), LITERAL_64(64), LITERAL_64(128), LITERAL_64(192),
    EXCEPTION | END_OF_BLOCK,
    BASE(3, 0), BASE(4, 0), BASE(5, 0), BASE(6, 0), BASE(7, 0), BASE(8, 0), BASE(9, 0), BASE(10, 0),
    BASE(11, 1), BASE(13, 1), BASE(15, 1), BASE(17, 1),
    BASE(19, 2), BASE(23, 2), BASE(27, 2), BASE(31, 2),
    BASE(35, 3), BASE(43, 3), BASE(51, 3), BASE(59, 3),
    BASE(67, 4), BASE(83, 4), BASE(99, 4), BASE(115, 4),
    BASE(131, 5), BASE(163, 5), BASE(195, 5), BASE(227, 5),
    BASE(258, 0),
    NOTHING, NOTHING,
};

static const uint32_t distance_entries[32] = {
    BASE(1, 0), BASE(2, 0), BASE(3, 0), BASE(4, 0),
    BASE(5, 1), BASE(7, 1), BASE(9, 2), BASE(13, 2),
    BASE(17, 3), BASE(25, 3), BASE(33, 4), BASE(49, 4),
    BASE(65, 5), BASE(97, 5), BASE(129, 6), BASE(193, 6),
    BASE(257, 7), BASE(385, 7), BASE(513, 8), BASE(769, 8),
    BASE(1025, 9), BASE(1537, 9), BASE(2049, 10), BASE(3073, 10),
    BASE(4097, 11), BASE(6145, 11), BASE(8193, 12), BASE(12289, 12),
    BASE(16385, 13), BASE(24577, 13),
    NOTHING, NOTHING,
};

static const uint8_t precode_order[19] = {
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
};

/* Where the two loops stand. */
struct cursor {
    const uint8_t *input;
    const uint8_t *input_end;
    uint8_t *output;
    uint8_t *output_end;
    uint64_t bit_buffer; /* from bits_left on: zero, or the bits that follow in the input */
    uint64_t bits_left;
};

/* Words of any alignment. */
static ALWAYS_INLINE uint64_t load_8(const uint8_t *from)
{
    uint64_t word;
    __builtin_memcpy(&word, from, 8);
    return word;
}

static ALWAYS_INLINE void store_8(uint8_t *to, uint64_t word)
{
    __builtin_memcpy(to, &word, 8);
}

typedef uint8_t vector_16 __attribute__((vector_size(16)));

static ALWAYS_INLINE void copy_16(uint8_t *to, const uint8_t *from)
{
    vector_16 vector;
    __builtin_memcpy(&vector, from, 16);
    __builtin_memcpy(to, &vector, 16);
}

/* A null pointer and 0 is allowed here, as it is not in C's own addition. */
static ALWAYS_INLINE uint8_t *advance(const uint8_t *from, uint64_t bytes)
{
    return (uint8_t *)((uintptr_t)from + bytes);
}

static ALWAYS_INLINE uint64_t low_bits(uint64_t word, uint32_t count)
{
    return word & (((uint64_t)1 << count) - 1);
}

/* The code after this one of as many bits, both with their first bit lowest. Must not be the last,
   whose bits are all ones. */
static ALWAYS_INLINE uint32_t next_code(uint32_t code, uint32_t bits)
{
    uint32_t zeros = code ^ ((1u << bits) - 1);
    uint32_t carry = 1u << (31 - __builtin_clz(zeros));
    return (code & (carry - 1)) | carry;
}

/* Count the codes of each length, and sort the symbols that have one by its length.
   Return how much of the code space is left, or a negative number if it is over-subscribed. */
static ALWAYS_INLINE int32_t sort_symbols(const uint8_t *lengths, uint32_t symbols,
                                          uint16_t count[16], uint16_t *sorted)
{
    uint16_t place[16];
    int32_t left = 1;

    for (uint32_t bits = 0; bits < 16; bits++)
        count[bits] = 0;
    for (uint32_t symbol = 0; symbol < symbols; symbol++)
        count[lengths[symbol]]++;
    place[0] = 0; /* those without a code come first, and are not looked at */
    for (uint32_t bits = 1; bits < 16; bits++) {
        place[bits] = (uint16_t)(place[bits - 1] + count[bits - 1]);
        left = left * 2 - count[bits];
        if (left < 0)
            return left;
    }
    for (uint32_t symbol = 0; symbol < symbols; symbol++)
        sorted[place[lengths[symbol]]++] = (uint16_t)symbol;
    return left;
}

/* Build the table of a literal/length or distance code. Return 0 if zlib would refuse the lengths:
   a code has to be complete, but for one of a single bit, and for none at all; what is missing then
   is refused when it is met. */
static ALWAYS_INLINE int build_table(uint32_t *table, uint32_t capacity, const uint32_t first_bits,
                                     const uint8_t *lengths, uint32_t symbols,
                                     const uint32_t *entries)
{
    uint16_t count[16];
    uint16_t sorted[288];
    const uint16_t *symbol = sorted;
    uint32_t longest = 15;
    uint32_t code = 0;
    uint32_t bits;
    uint32_t end = 1u << first_bits;
    int32_t left = sort_symbols(lengths, symbols, count, sorted);

    if (left < 0)
        return 0;
    while (longest && !count[longest])
        longest--;
    symbol += count[0];
    if (left > 0) {
        if (longest > 1)
            return 0;
        for (uint32_t at = 0; at < end; at++)
            table[at] = NOTHING + CODE_BITS(1);
        if (longest == 1)
            for (uint32_t at = 0; at < end; at += 2)
                table[at] = entries[*symbol] + CODE_BITS(1);
        return 1;
    }

    /* First level. After the codes of a length, the table is filled up to two to the power of it,
       but for the places that belong to longer codes; these are filled later. Doubling it then
       makes it one for the next length. All writes are below 1 << first_bits: codes are below
       1 << bits. The code is complete, so next_code() is not called on all ones before the last. */
    for (bits = 1; bits <= first_bits; bits++) {
        uint32_t half = 1u << (bits - 1);
        uint32_t codes = count[bits];

        for (uint32_t at = 0; at < half; at++)
            table[half + at] = table[at];
        while (codes--) {
            table[code] = entries[*symbol++] + CODE_BITS(bits);
            if (code == (1u << bits) - 1)
                goto all_codes;
            code = next_code(code, bits);
        }
    }

    /* Second levels: one for each of the remaining prefixes, of as many bits as its longest code
       needs. Longer codes follow in order, so a level is full when the prefix changes. */
    for (uint32_t prefix = end, start = 0, level_bits = 0; bits < 16;) {
        uint32_t entry;

        if (!count[bits]) {
            bits++;
            continue;
        }
        if ((code & ((1u << first_bits) - 1)) != prefix) {
            int32_t room;

            prefix = code & ((1u << first_bits) - 1);
            level_bits = bits - first_bits;
            room = (1 << level_bits) - count[bits];
            while (room > 0 && level_bits + first_bits < longest) {
                level_bits++;
                room = room * 2 - count[level_bits + first_bits];
            }
            start = end;
            end += 1u << level_bits;
            if (end > capacity)
                return 0; /* cannot happen, see the header */
            table[prefix] = EXCEPTION | POINTER | start << 16 | level_bits << 8 | first_bits;
        }
        /* code >> first_bits is below the step, and steps stop at 1 << level_bits: inside the
           level, which is inside the table. */
        entry = entries[*symbol++] + CODE_BITS(bits - first_bits);
        for (uint32_t at = code >> first_bits; at < 1u << level_bits;
             at += 1u << (bits - first_bits))
            table[start + at] = entry;
        count[bits]--;
        if (code == (1u << bits) - 1)
            return 1;
        code = next_code(code, bits);
    }
    return 1;

all_codes:
    for (; bits < first_bits; bits++)
        for (uint32_t at = 0; at < 1u << bits; at++)
            table[(1u << bits) + at] = table[at];
    return 1;
}

static NEVER_INLINE int build_litlen_table(struct ppr_inflate *state)
{
    return build_table(state->litlen_table, PPR_LITLEN_ENTRIES, PPR_LITLEN_BITS, state->lengths,
                       state->litlen_count, litlen_entries);
}

static NEVER_INLINE int build_distance_table(struct ppr_inflate *state)
{
    return build_table(state->distance_table, PPR_DISTANCE_ENTRIES, PPR_DISTANCE_BITS,
                       state->lengths + state->litlen_count, state->distance_count,
                       distance_entries);
}

/* The table of the code in which code lengths are written: symbol << 3 | bits. Return 0 if zlib
   would refuse it. */
static int build_precode(struct ppr_inflate *state)
{
    uint16_t count[16];
    uint16_t sorted[19];
    const uint16_t *symbol = sorted;
    uint32_t code = 0;
    int32_t left = sort_symbols(state->precode_lengths, 19, count, sorted);

    if (count[0] == 19) { /* zlib reads zeros then, of one bit each */
        for (uint32_t at = 0; at < 1u << PPR_PRECODE_BITS; at++)
            state->precode[at] = 1;
        return 1;
    }
    if (left)
        return 0;
    symbol += count[0];
    for (uint32_t bits = 1; bits <= PPR_PRECODE_BITS; bits++)
        for (uint32_t codes = count[bits]; codes; codes--) {
            /* code < 1 << bits <= 1 << PPR_PRECODE_BITS: inside the table */
            for (uint32_t at = code; at < 1u << PPR_PRECODE_BITS; at += 1u << bits)
                state->precode[at] = (uint8_t)(*symbol << 3 | bits);
            symbol++;
            if (code == (1u << bits) - 1)
                return 1;
            code = next_code(code, bits);
        }
    return 1;
}

static void use_fixed_tables(struct ppr_inflate *state)
{
    if (state->fixed_tables)
        return;
    for (uint32_t symbol = 0; symbol < 288; symbol++)
        state->lengths[symbol] = symbol < 144 ? 8 : symbol < 256 ? 9 : symbol < 280 ? 7 : 8;
    for (uint32_t symbol = 288; symbol < 320; symbol++)
        state->lengths[symbol] = 5;
    state->litlen_count = 288;
    state->distance_count = 32;
    build_litlen_table(state);
    build_distance_table(state);
    state->fixed_tables = 1;
}

/* What the fast loop needs before each turn. Input: two refills load 8 bytes each and take 7 at
   most. Output: three literals, a match of 258 bytes, and what copy_match() stores beyond it. */
#define FAST_INPUT 16
#define COPY_BEYOND 32
#define FAST_OUTPUT (3 + 258 + COPY_BEYOND)

/* Copy a match inside the chunk. The caller has proved that distance bytes precede `to` and that
   length + COPY_BEYOND can be written from it; loads end where stores do, or before. */
static ALWAYS_INLINE void copy_match(uint8_t *to, uint32_t length, uint64_t distance)
{
    const uint8_t *from = to - distance;
    uint8_t *end = to + length;

    if (likely(distance >= 16)) {
        /* Each load is of bytes before the store that goes with it. Stores begin before
           max(to + 32, end), so they end less than COPY_BEYOND behind it. */
        copy_16(to, from);
        copy_16(to + 16, from + 16);
        for (to += 32, from += 32; unlikely(to < end); to += 16, from += 16)
            copy_16(to, from);
    } else if (distance >= 8) {
        do { /* as above, by 8 */
            store_8(to, load_8(from));
            store_8(to + 8, load_8(from + 8));
            to += 16, from += 16;
        } while (to < end);
    } else {
        /* A pattern of less than a word: repeat it through the word by multiplication, and advance
           by as many whole repetitions as the word has. The load ends at from + 8 <= to + 7. */
        static const uint64_t repeat[8] = {
            0,           0x0101010101010101, 0x0001000100010001, 0x0001000001000001,
            0x100000001, 0x10000000001,      0x1000000000001,    0x100000000000001,
        };
        static const uint8_t steps[8] = {8, 8, 8, 6, 8, 5, 6, 7};
        uint64_t word = low_bits(load_8(from), 8 * (uint32_t)distance) * repeat[distance];

        do {
            store_8(to, word); /* begins before end, so it ends less than 8 behind it */
            to += steps[distance];
        } while (to < end);
    }
}

/* Copy the part of a match that is in the history, and return its size, at most length.
   back: how far before the chunk the match begins; the caller has proved back <= history_size and
   that length + COPY_BEYOND can be written from `to`. */
static NEVER_INLINE uint32_t copy_history(const uint8_t *history_end, uint8_t *to, uint32_t length,
                                          uint64_t back)
{
    const uint8_t *from = history_end - back;

    if (likely(back >= length + 15)) { /* words end less than 16 behind the match: in the history */
        for (uint32_t at = 0; at < length; at += 16)
            copy_16(to + at, from + at);
        return length;
    }
    if (length > back)
        length = (uint32_t)back;
    for (uint32_t at = 0; at < length; at++)
        to[at] = from[at];
    return length;
}

/* Decode symbols of the present block while there is a margin in input and output. Return SYMBOL if
   there is none any more, HEADER at the block's end, or BAD. */
static ALWAYS_INLINE enum phase decode_fast(const struct ppr_inflate *state, struct cursor *cursor)
{
    const uint8_t *input = cursor->input;
    const uint8_t *input_limit = cursor->input_end - FAST_INPUT;
    uint8_t *output = cursor->output;
    uint8_t *output_limit = cursor->output_end - FAST_OUTPUT;
    const uint8_t *history_end = advance(state->history, state->history_size);
    uint64_t bits = cursor->bit_buffer;
    uint32_t left = (uint32_t)cursor->bits_left; /* only the lowest 8 bits count */
    enum phase phase = SYMBOL;
    uint32_t entry;
    /* From where matches can be copied in one piece. */
    const uint8_t *floor = history_end == state->output ? state->history : state->output;

/* At least 56 bits are left then. ORs bits that were there already with themselves. Loads 8 bytes
   and takes at most 7; FAST_INPUT proves them. */
#define REFILL() \
    do { \
        bits |= load_8(input) << (left & 63); \
        input += 7 - (left >> 3 & 7); \
        left |= 56; \
    } while (0)
/* Entries' upper bits are subtracted from bits of `left` that do not count. */
#define USE() (saved = bits, bits >>= USED(entry), left -= entry)
#define LOOK_UP() (entry = state->litlen_table[low_bits(bits, PPR_LITLEN_BITS)])

    REFILL();
    LOOK_UP();
    while (input <= input_limit && output <= output_limit) {
        uint64_t saved;
        uint64_t distance;
        uint32_t length;

        /* Of 56 bits, three literals use 33; a length with its extra bits 20. Any lookup has its
           11 bits then. */
        USE();
        if (entry & LITERAL) {
            *output++ = (uint8_t)(entry >> 16);
            LOOK_UP();
            USE();
            if (entry & LITERAL) {
                *output++ = (uint8_t)(entry >> 16);
                LOOK_UP();
                USE();
                if (entry & LITERAL) {
                    *output++ = (uint8_t)(entry >> 16);
                    LOOK_UP();
                    REFILL();
                    continue;
                }
            }
        }
        if (unlikely(entry & EXCEPTION)) {
            if (likely(entry & POINTER)) {
                /* A level has 1 << level_bits entries: inside it. */
                entry = state->litlen_table[(entry >> 16) + low_bits(bits, entry >> 8 & 15)];
                USE();
                if (entry & LITERAL) {
                    *output++ = (uint8_t)(entry >> 16);
                    LOOK_UP();
                    REFILL();
                    continue;
                }
            }
            if (unlikely(entry & EXCEPTION)) {
                phase = entry & END_OF_BLOCK ? HEADER : BAD;
                break;
            }
        }
        length = (entry >> 16) + (uint32_t)(low_bits(saved, USED(entry)) >> (entry >> 8 & 15));

        /* A distance with its extra bits uses 28, the lookup after it 11. Refilling here only where
           that is needed is 3 percent faster than always. */
        if (unlikely((uint8_t)left < 28 + PPR_LITLEN_BITS))
            REFILL();
        entry = state->distance_table[low_bits(bits, PPR_DISTANCE_BITS)];
        if (unlikely(entry & EXCEPTION)) {
            if (!(entry & POINTER)) {
                phase = BAD;
                break;
            }
            USE();
            entry = state->distance_table[(entry >> 16) + low_bits(bits, entry >> 8 & 15)];
            if (unlikely(entry & EXCEPTION)) {
                phase = BAD;
                break;
            }
        }
        USE();
        distance = (entry >> 16) + (low_bits(saved, USED(entry)) >> (entry >> 8 & 15));
        /* The next entry need not wait for what is loaded here. */
        LOOK_UP();
        REFILL();

        /* distance bytes precede output, or the copy is put together; length <= 258 and
           output <= output_limit + 3. */
        if (likely(distance <= (uint64_t)(output - floor))) {
            copy_match(output, length, distance);
            output += length;
        } else {
            uint64_t back = distance - (uint64_t)(output - state->output);
            uint32_t copied;

            if (unlikely(back > state->history_size)) {
                phase = BAD;
                break;
            }
            copied = copy_history(history_end, output, length, back);
            output += copied;
            /* What is left begins at the chunk's first byte, distance before output. */
            for (const uint8_t *from = state->output; copied < length; copied++)
                *output++ = *from++;
        }
    }

    cursor->input = input;
    cursor->output = output;
    cursor->bits_left = left & 63;
    cursor->bit_buffer = low_bits(bits, left & 63);
    return phase;
#undef REFILL
#undef USE
#undef LOOK_UP
}

#ifdef __x86_64__
/* Three-operand shifts, and masks in one instruction: 8 percent faster than without them. */
__attribute__((target("bmi,bmi2"))) static NEVER_INLINE enum phase
decode_fast_bmi2(const struct ppr_inflate *state, struct cursor *cursor)
{
    return decode_fast(state, cursor);
}

/* 1: neither; 2: BMI and BMI2, which use general registers only, so nobody has to enable them. */
static uint32_t find_processor(void)
{
    uint32_t a = 0, b, c = 0, d;

    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (a < 7)
        return 1;
    a = 7, c = 0;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (b & 0x108) == 0x108 ? 2 : 1;
}
#endif

static NEVER_INLINE enum phase decode_fast_anywhere(const struct ppr_inflate *state,
                                                    struct cursor *cursor)
{
    return decode_fast(state, cursor);
}

/* Take what fits into the bit buffer: at least 56 bits are left then, or no input is. */
static ALWAYS_INLINE void refill(struct cursor *cursor)
{
    if (likely(cursor->input_end - cursor->input >= 8)) {
        cursor->bit_buffer |= load_8(cursor->input) << cursor->bits_left;
        cursor->input += (63 - cursor->bits_left) >> 3;
        cursor->bits_left |= 56;
        return;
    }
    while (cursor->bits_left < 56 && cursor->input < cursor->input_end) {
        cursor->bit_buffer |= (uint64_t)*cursor->input++ << cursor->bits_left;
        cursor->bits_left += 8;
    }
}

static ALWAYS_INLINE void use(struct cursor *cursor, uint32_t bits)
{
    cursor->bit_buffer >>= bits;
    cursor->bits_left -= bits;
}

/* Give back whole bytes, at most those that lie between `start` and the input. */
static ALWAYS_INLINE void give_back(struct cursor *cursor, const uint8_t *start)
{
    uint64_t bytes = cursor->bits_left >> 3;

    if (bytes > (uint64_t)(cursor->input - start))
        bytes = (uint64_t)(cursor->input - start);
    cursor->input -= bytes;
    cursor->bits_left -= 8 * bytes;
    cursor->bit_buffer = low_bits(cursor->bit_buffer, (uint32_t)cursor->bits_left);
}

PPR_EXPORT int32_t ppr_inflate(struct ppr_inflate *state)
{
    const uint8_t *const start = state->input;
    struct cursor cursor = {
        .input = start,
        .input_end = advance(start, state->input_left),
        .output = advance(state->output, state->output_at),
        .output_end = advance(state->output, state->output_size),
        .bit_buffer = state->bit_buffer,
        .bits_left = state->bits_left,
    };
    enum phase phase = (enum phase)state->phase;
    int32_t result;

/* An element is used as a whole, or not at all: see the top. Once `needed` is known to be more than
   is left after a refill, all input is taken. */
#define NEED(needed) \
    do { \
        if (cursor.bits_left < (needed)) { \
            refill(&cursor); \
            if (cursor.bits_left < (needed)) \
                goto more_input; \
        } \
    } while (0)

    for (;;) {
        switch (phase) {
        case HEADER:
            if (state->last_block) {
                phase = DONE;
                continue;
            }
            NEED(3);
            state->last_block = cursor.bit_buffer & 1;
            switch (cursor.bit_buffer >> 1 & 3) {
            case 0:
                phase = STORED_LENGTHS;
                break;
            case 1:
                use_fixed_tables(state);
                phase = SYMBOL;
                break;
            case 2:
                phase = COUNTS;
                break;
            default:
                phase = BAD;
            }
            use(&cursor, 3);
            if (phase == STORED_LENGTHS)
                use(&cursor, cursor.bits_left & 7);
            continue;

        case STORED_LENGTHS:
            NEED(32);
            state->length = cursor.bit_buffer & 0xffff;
            if (state->length != (~cursor.bit_buffer >> 16 & 0xffff)) {
                phase = BAD;
                continue;
            }
            use(&cursor, 32);
            /* An element was used, so this leaves no bits at all: the block begins at a byte. */
            give_back(&cursor, start);
            phase = STORED;
            /* fall through */

        case STORED: {
            uint64_t size = state->length;

            if (size > (uint64_t)(cursor.input_end - cursor.input))
                size = (uint64_t)(cursor.input_end - cursor.input);
            if (size > (uint64_t)(cursor.output_end - cursor.output))
                size = (uint64_t)(cursor.output_end - cursor.output);
            state->length -= (uint32_t)size;
            /* size is at most what is left of either. Words first, then the last bytes. */
            for (; size >= 16; size -= 16, cursor.output += 16, cursor.input += 16)
                copy_16(cursor.output, cursor.input);
            for (; size; size--)
                *cursor.output++ = *cursor.input++;
            if (!state->length) {
                phase = HEADER;
                continue;
            }
            if (cursor.input == cursor.input_end)
                goto more_input;
            goto more_output;
        }

        case COUNTS:
            NEED(14);
            state->litlen_count = 257 + (cursor.bit_buffer & 31);
            state->distance_count = 1 + (cursor.bit_buffer >> 5 & 31);
            state->precode_count = 4 + (cursor.bit_buffer >> 10 & 15);
            use(&cursor, 14);
            state->lengths_read = 0;
            state->fixed_tables = 0;
            if (state->litlen_count > 286 || state->distance_count > 30) {
                phase = BAD;
                continue;
            }
            phase = PRECODE_LENGTHS;
            /* fall through */

        case PRECODE_LENGTHS:
            while (state->lengths_read < state->precode_count) { /* at most 19 */
                NEED(3);
                state->precode_lengths[precode_order[state->lengths_read++]] =
                    cursor.bit_buffer & 7;
                use(&cursor, 3);
            }
            while (state->lengths_read < 19)
                state->precode_lengths[precode_order[state->lengths_read++]] = 0;
            if (!build_precode(state)) {
                phase = BAD;
                continue;
            }
            state->lengths_read = 0;
            phase = CODE_LENGTHS;
            /* fall through */

        case CODE_LENGTHS: {
            uint32_t all = state->litlen_count + state->distance_count; /* at most 286 + 30 */
            uint32_t at = state->lengths_read;

            while (at < all) {
                uint32_t entry, used, symbol, repeat;
                uint8_t value = 0;

                if (cursor.bits_left < PPR_PRECODE_BITS + 7)
                    refill(&cursor);
                entry = state->precode[low_bits(cursor.bit_buffer, PPR_PRECODE_BITS)];
                used = entry & 7;
                symbol = entry >> 3;
                state->lengths_read = at; /* in case that it stops here */
                if (symbol < 16) {
                    NEED(used);
                    use(&cursor, used);
                    state->lengths[at++] = (uint8_t)symbol;
                    continue;
                }
                if (symbol == 16) {
                    NEED(used + 2);
                    if (!at)
                        break;
                    value = state->lengths[at - 1];
                    repeat = 3 + (cursor.bit_buffer >> used & 3);
                    used += 2;
                } else if (symbol == 17) {
                    NEED(used + 3);
                    repeat = 3 + (cursor.bit_buffer >> used & 7);
                    used += 3;
                } else {
                    NEED(used + 7);
                    repeat = 11 + (cursor.bit_buffer >> used & 127);
                    used += 7;
                }
                use(&cursor, used);
                if (repeat > all - at)
                    break;
                while (repeat--) /* ends at `all` or before, inside the array of 320 */
                    state->lengths[at++] = value;
            }
            if (at < all || !state->lengths[256] || !build_litlen_table(state) ||
                !build_distance_table(state)) {
                phase = BAD;
                continue;
            }
            phase = SYMBOL;
        }
            /* fall through */

        case SYMBOL: {
            uint32_t entry, used;

            /* The margins, and the refill of at most 7 bytes before the first turn. */
            if (cursor.input_end - cursor.input >= FAST_INPUT + 8 &&
                cursor.output_end - cursor.output >= FAST_OUTPUT) {
#ifdef __x86_64__
                if (!state->processor)
                    state->processor = find_processor();
                if (state->processor == 2)
                    phase = decode_fast_bmi2(state, &cursor);
                else
#endif
                    phase = decode_fast_anywhere(state, &cursor);
                if (phase != SYMBOL)
                    continue;
            }
            /* One symbol. Where fewer bits are left than are looked at, zeros follow: an entry that
               needs no more than are left is right, another says that more are needed. */
            refill(&cursor);
            entry = state->litlen_table[low_bits(cursor.bit_buffer, PPR_LITLEN_BITS)];
            used = 0;
            if (entry & POINTER) {
                NEED(PPR_LITLEN_BITS);
                used = PPR_LITLEN_BITS;
                entry = state->litlen_table[(entry >> 16) +
                                            low_bits(cursor.bit_buffer >> PPR_LITLEN_BITS,
                                                     entry >> 8 & 15)];
            }
            if (entry & EXCEPTION) {
                NEED(used + USED(entry));
                use(&cursor, used + USED(entry));
                phase = entry & END_OF_BLOCK ? HEADER : BAD;
                continue;
            }
            NEED(used + USED(entry));
            if (entry & LITERAL) {
                if (cursor.output == cursor.output_end)
                    goto more_output; /* nothing of it is used yet */
                *cursor.output++ = (uint8_t)(entry >> 16);
                use(&cursor, used + USED(entry));
                continue;
            }
            state->length = (entry >> 16) + (uint32_t)(low_bits(cursor.bit_buffer >> used,
                                                                USED(entry)) >>
                                                       (entry >> 8 & 15));
            use(&cursor, used + USED(entry));
            phase = DISTANCE;
        }
            /* fall through */

        case DISTANCE: {
            uint32_t entry, used = 0;

            refill(&cursor);
            entry = state->distance_table[low_bits(cursor.bit_buffer, PPR_DISTANCE_BITS)];
            if (entry & POINTER) {
                NEED(PPR_DISTANCE_BITS);
                used = PPR_DISTANCE_BITS;
                entry = state->distance_table[(entry >> 16) +
                                              low_bits(cursor.bit_buffer >> PPR_DISTANCE_BITS,
                                                       entry >> 8 & 15)];
            }
            NEED(used + USED(entry));
            if (entry & EXCEPTION) {
                phase = BAD;
                continue;
            }
            state->distance = (entry >> 16) + (uint32_t)(low_bits(cursor.bit_buffer >> used,
                                                                  USED(entry)) >>
                                                         (entry >> 8 & 15));
            use(&cursor, used + USED(entry));
            phase = COPY;
        }
            /* fall through */

        case COPY: {
            uint64_t written = (uint64_t)(cursor.output - state->output);
            uint64_t room = (uint64_t)(cursor.output_end - cursor.output);
            uint64_t back = state->distance > written ? state->distance - written : 0;
            uint32_t size = state->length < room ? state->length : (uint32_t)room;

            if (back > state->history_size) {
                phase = BAD;
                continue;
            }
            state->length -= size;
            /* One byte at a time: size is at most the room; `back` bytes of it are in the history,
               the others `distance` before the output and so in the chunk. */
            for (; back && size; back--, size--)
                *cursor.output++ = state->history[state->history_size - back];
            for (; size; size--, cursor.output++)
                *cursor.output = cursor.output[-(int64_t)state->distance];
            if (state->length)
                goto more_output;
            phase = SYMBOL;
            continue;
        }

        case DONE:
            give_back(&cursor, start);
            result = PPR_DONE;
            goto leave;

        default:
            phase = BAD;
            result = PPR_BAD;
            goto leave;
        }
    }

more_input:
    result = PPR_MORE_INPUT;
    goto leave;

more_output:
    give_back(&cursor, start);
    result = PPR_MORE_OUTPUT;

leave:
    state->input = cursor.input;
    state->input_left = (uint64_t)(cursor.input_end - cursor.input);
    state->output_at = (uint64_t)(cursor.output - state->output);
    state->bit_buffer = low_bits(cursor.bit_buffer, (uint32_t)cursor.bits_left);
    state->bits_left = cursor.bits_left;
    state->phase = phase;
    state->at_block = phase == HEADER;
    return result;
#undef NEED
}

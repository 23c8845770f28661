/* The native library beside zlib, on mutated streams, at random splits of input and output.

       fuzz [--runs N] [--seed N] [--jobs N] [--only INDEX]

   Built with the address and undefined-behaviour sanitizers (make fuzz-native). Every piece of
   input, chunk of output and history is an allocation of exactly its size, so that a byte read or
   written beside it ends the run. SIGINT and SIGTERM end it too, with the counts so far. An input's index and the seed say all about it, whatever the
   number of jobs. What is compared: the verdict, every byte of the output where the stream is not
   refused, the bytes left over behind its end, where it stands between two blocks, and crc32 at
   any alignment. */

#include "../../src/native/native.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#define MOST_OUTPUT (1u << 19) /* of an input; beyond, its streams are not followed */
#define MOST_INPUT (1u << 18)
#define STREAMS 1500
#define SOURCE (1u << 20)
#define WINDOW 32768u

const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    /* Allocations are most of the time: keep fewer freed ones, and no stacks of them. */
    return "detect_leaks=0:quarantine_size_mb=8:malloc_context_size=0:max_redzone=64";
}

struct random {
    uint64_t state;
};

static uint64_t next(struct random *random) /* splitmix64 */
{
    uint64_t z = (random->state += 0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint32_t below(struct random *random, uint32_t limit)
{
    return (uint32_t)((next(random) >> 32) * limit >> 32);
}

/* A size up to the limit, small ones as often as large ones. */
static uint32_t size_below(struct random *random, uint32_t limit)
{
    uint32_t bits = 1 + below(random, 32 - (uint32_t)__builtin_clz(limit));
    uint32_t size = below(random, 1u << bits);

    return size < limit ? size : limit - 1;
}

struct bytes {
    uint8_t *data;
    uint32_t size;
};

static struct bytes streams[STREAMS];
static uint8_t *source;
static uint8_t *input;          /* the present one */
static uint8_t *expected;       /* zlib's output of it */
static uint8_t *output;         /* ours */
static z_stream inflater;

static void *need(void *pointer)
{
    if (!pointer) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
    return pointer;
}

/* Words, repetitions from every distance, counters, noise: what there is to be found in files. */
static void make_source(struct random *random)
{
    uint8_t words[256][12];
    uint32_t at = 0;

    for (uint32_t word = 0; word < 256; word++)
        for (uint32_t letter = 0; letter < 12; letter++)
            words[word][letter] = (uint8_t)('a' + below(random, 26));
    while (at < SOURCE) {
        uint32_t kind = below(random, 10);
        uint32_t size = 1 + size_below(random, kind == 9 ? 4000 : 300);
        uint32_t from = at ? at - 1 - size_below(random, at < 60000 ? at : 60000) : 0;
        uint8_t *word = words[below(random, 1 + below(random, 256))];

        if (size > SOURCE - at)
            size = SOURCE - at;
        for (uint32_t end = at + size, start = at; at < end; at++) {
            switch (kind) {
            case 0:
                source[at] = (uint8_t)next(random);
                break;
            case 1:
                source[at] = (uint8_t)(at >> 3);
                break;
            case 2:
                source[at] = *word;
                break;
            case 3:
            case 4:
            case 5:
                source[at] = start ? source[from + (at - start)] : 0;
                break;
            default:
                source[at] = word[(at - start) % 12];
                if ((at - start) % 12 == 11)
                    word = words[below(random, 1 + below(random, 256))];
            }
        }
    }
}

static void make_stream(struct random *random, struct bytes *stream)
{
    static const uint32_t limits[] = {64, 1024, 4096, 8192, 16384, 16384, 65536, 200000};
    uint32_t kind = below(random, 200);
    uint32_t size = kind < 80 ? below(random, limits[kind % 6])
        : kind < 190 ? size_below(random, limits[kind % 6])
                     : below(random, limits[6 + kind % 2]);
    uint8_t *from = source + below(random, SOURCE - size);
    int strategy = (int)below(random, 5);
    int window = below(random, 4) ? 15 : 9 + (int)below(random, 7);
    z_stream deflater = {0};

    if (deflateInit2(&deflater, (int)below(random, 10), Z_DEFLATED, -window,
                     1 + (int)below(random, 9), strategy) != Z_OK)
        exit(2);
    stream->data = need(malloc(2 * size + 4096));
    deflater.next_out = stream->data;
    deflater.avail_out = 2 * size + 4096;
    while (size) {
        static const int flushes[] = {Z_NO_FLUSH, Z_SYNC_FLUSH, Z_FULL_FLUSH, Z_PARTIAL_FLUSH};
        uint32_t part = below(random, 3) ? size : 1 + below(random, size);

        deflater.next_in = from;
        deflater.avail_in = part;
        deflate(&deflater, flushes[below(random, 4)]);
        from += part - deflater.avail_in;
        size -= part - deflater.avail_in;
        if (deflater.avail_out < 1024)
            break;
        if (below(random, 8) == 0)
            deflateParams(&deflater, (int)below(random, 10), (int)below(random, 5));
    }
    deflate(&deflater, Z_FINISH);
    stream->size = (uint32_t)(deflater.next_out - stream->data);
    deflateEnd(&deflater);
}

/* Streams that are written bit by bit. */
struct writer {
    uint8_t *data;
    uint32_t bits;
};

static void put(struct writer *writer, uint32_t value, uint32_t count)
{
    for (; count; count--, value >>= 1, writer->bits++) {
        if (writer->bits >= 8 * MOST_INPUT)
            return;
        if (!(writer->bits & 7))
            writer->data[writer->bits >> 3] = 0;
        writer->data[writer->bits >> 3] |= (uint8_t)((value & 1) << (writer->bits & 7));
    }
}

/* The canonical code of lengths, first bit lowest. */
static void make_code(const uint8_t *lengths, uint32_t symbols, uint32_t *codes)
{
    uint32_t code = 0;

    for (uint32_t bits = 1; bits < 16; bits++, code <<= 1)
        for (uint32_t symbol = 0; symbol < symbols; symbol++)
            if (lengths[symbol] == bits) {
                codes[symbol] = 0;
                for (uint32_t bit = 0; bit < bits; bit++)
                    codes[symbol] |= (code >> bit & 1) << (bits - 1 - bit);
                code++;
            }
}

/* Lengths of a complete code for some of the symbols: leaves of a tree that is grown by splitting,
   anywhere or mostly at its deepest. */
static void make_lengths(struct random *random, uint8_t *lengths, uint32_t symbols, uint32_t used,
                         uint32_t deepest)
{
    uint8_t leaves[320] = {0};
    uint32_t count = 1;
    uint32_t deep = below(random, 3);

    memset(lengths, 0, symbols);
    for (uint32_t tries = 0; count < used && tries < 4000; tries++) {
        uint32_t leaf = deep && below(random, 4) < deep ? count - 1 : below(random, count);

        if (leaves[leaf] < deepest) {
            leaves[count++] = ++leaves[leaf];
        }
    }
    for (uint32_t leaf = 0; leaf < count;) {
        uint32_t symbol = below(random, symbols);

        while (lengths[symbol])
            symbol = (symbol + 1) % symbols;
        lengths[symbol] = leaves[leaf] ? leaves[leaf] : (uint8_t)(1 + below(random, 2));
        leaf++;
    }
}

static void spoil(struct random *random, uint8_t *lengths, uint32_t symbols)
{
    for (uint32_t times = 1 + below(random, 2); times; times--) {
        uint32_t symbol = below(random, symbols);

        for (uint32_t tries = 0; !lengths[symbol] && tries < 40; tries++)
            symbol = below(random, symbols);
        if (below(random, 2))
            lengths[symbol] = (uint8_t)below(random, 16);
        else
            lengths[symbol] = (uint8_t)((lengths[symbol] + below(random, 3) - 1) & 15);
    }
}

static void put_dynamic_block(struct random *random, struct writer *writer, uint32_t last)
{
    static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                      11, 4,  12, 3, 13, 2, 14, 1, 15};
    static const uint8_t length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                             2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    uint8_t lengths[320];
    uint8_t precode[19];
    uint32_t codes[288], distance_codes[32], precodes[19];
    uint32_t litlens = 257 + below(random, below(random, 30) ? 30 : 32);
    uint32_t distances = 1 + below(random, below(random, 30) ? 30 : 32);
    uint32_t all = litlens + distances;
    uint32_t symbols;

    make_lengths(random, lengths, litlens, 1 + size_below(random, litlens), 15);
    if (!lengths[256] && below(random, 20)) { /* take another's code for the end */
        uint32_t symbol = below(random, litlens);

        while (!lengths[symbol])
            symbol = (symbol + 1) % litlens;
        lengths[256] = lengths[symbol];
        lengths[symbol] = 0;
    }
    switch (below(random, 8)) {
    case 0:
        memset(lengths + litlens, 0, distances);
        break;
    case 1:
        memset(lengths + litlens, 0, distances);
        lengths[litlens + below(random, distances)] = 1;
        break;
    default:
        make_lengths(random, lengths + litlens, distances, 1 + below(random, distances), 15);
    }
    if (below(random, 8) == 0)
        spoil(random, lengths, litlens);
    if (below(random, 8) == 0)
        spoil(random, lengths + litlens, distances);

    /* 13 / 16 + 6 / 32 is 1. */
    for (uint32_t symbol = 0; symbol < 19; symbol++)
        precode[symbol] = symbol < 13 ? 4 : 5;
    for (uint32_t symbol = 0; symbol < 19; symbol++) {
        uint32_t other = below(random, 19);
        uint8_t bits = precode[symbol];

        precode[symbol] = precode[other];
        precode[other] = bits;
    }
    if (below(random, 20) == 0)
        spoil(random, precode, 19);
    for (uint32_t symbol = 0; symbol < 19; symbol++)
        precode[symbol] &= 7;
    memset(precodes, 0, sizeof precodes);
    memset(codes, 0, sizeof codes);
    memset(distance_codes, 0, sizeof distance_codes);
    make_code(precode, 19, precodes);
    make_code(lengths, litlens, codes);
    make_code(lengths + litlens, distances, distance_codes);

    put(writer, last | 2 << 1, 3);
    put(writer, litlens - 257, 5);
    /* One too few: a repetition may go beyond the end then, just. */
    put(writer, distances - 1 - (distances > 1 && !below(random, 16)), 5);
    put(writer, 15, 4);
    for (uint32_t at = 0; at < 19; at++)
        put(writer, precode[order[at]], 3);
    for (uint32_t at = 0, run; at < all; at += run) {
        for (run = 1; at + run < all && lengths[at + run] == lengths[at] && run < 138; run++)
            ;
        if (!lengths[at] && run >= 11 && below(random, 8)) {
            put(writer, precodes[18], precode[18]);
            put(writer, run - 11, 7);
        } else if (!lengths[at] && run >= 3 && below(random, 8)) {
            run = run < 10 ? run : 10;
            put(writer, precodes[17], precode[17]);
            put(writer, run - 3, 3);
        } else if (at && run >= 3 && lengths[at] == lengths[at - 1] && below(random, 8)) {
            run = run < 6 ? run : 6;
            put(writer, precodes[16], precode[16]);
            put(writer, run - 3, 2);
        } else {
            run = 1;
            put(writer, precodes[lengths[at]], precode[lengths[at]]);
        }
    }

    symbols = size_below(random, 2000);
    if (below(random, 3) == 0) { /* any bits will mean something */
        while (symbols--)
            put(writer, (uint32_t)next(random), 16);
        return;
    }
    while (symbols--) {
        uint32_t symbol = below(random, below(random, 4) ? 256 : litlens);

        for (uint32_t tries = 0; !lengths[symbol] && tries < litlens; tries++)
            symbol = (symbol + 1) % litlens;
        if (symbol == 256)
            continue;
        put(writer, codes[symbol], lengths[symbol]);
        if (symbol > 256) {
            uint32_t distance = below(random, 3) ? size_below(random, distances)
                                                 : below(random, distances);

            if (symbol > 285)
                return;
            put(writer, (uint32_t)next(random), length_extra[symbol - 257]);
            for (uint32_t tries = 0; !lengths[litlens + distance] && tries < 60; tries++)
                distance = distance ? distance - 1 : below(random, distances);
            put(writer, distance_codes[distance], lengths[litlens + distance]);
            if (distance > 3)
                put(writer, below(random, 2) ? 0 : (uint32_t)next(random), distance / 2 - 1);
        }
    }
    put(writer, codes[256], lengths[256]);
}

static uint32_t append(uint32_t size, const uint8_t *data, uint32_t count)
{
    if (count > MOST_INPUT - size)
        count = MOST_INPUT - size;
    memcpy(input + size, data, count);
    return size + count;
}

static uint32_t make_input(struct random *random)
{
    const struct bytes *stream = &streams[below(random, STREAMS)];
    uint32_t size = 0;
    uint32_t kind = below(random, 16);

    /* The large ones are worth it less often. */
    if (stream->size > 6000 && below(random, 8))
        stream = &streams[below(random, STREAMS)];
    if (kind == 0) {
        for (uint32_t count = size_below(random, 400); size < count; size++)
            input[size] = (uint8_t)next(random);
        if (size)
            input[0] = (uint8_t)((input[0] & ~7) | (below(random, 4) << 1) | below(random, 2));
    } else if (kind < 5) {
        struct writer writer = {input, 0};

        while (below(random, 4) == 0)
            put_dynamic_block(random, &writer, 0);
        put_dynamic_block(random, &writer, 1);
        size = (writer.bits + 7) / 8;
    } else {
        size = append(0, stream->data, stream->size);
    }

    if (below(random, 4))
        for (uint32_t times = 1 + size_below(random, 6); times && size; times--) {
            /* The first bytes are headers. */
            uint32_t at = below(random, below(random, 2) && size > 90 ? 90 : size);

            switch (below(random, 10)) {
            default:
                input[at] ^= (uint8_t)(1u << below(random, 8));
                break;
            case 4:
                input[at] = (uint8_t)next(random);
                break;
            case 5:
                size = at;
                break;
            case 6: /* another stream goes on there */
                stream = &streams[below(random, STREAMS)];
                if (stream->size) {
                    uint32_t from = below(random, stream->size);

                    size = append(at, stream->data + from, stream->size - from);
                }
                break;
            case 7:
                memmove(input + at, input + at + 1, size - at - 1);
                size--;
                break;
            case 8:
                memset(input + at, below(random, 2) ? 0 : 255,
                       size_below(random, size - at + 1));
                break;
            case 9:
                for (uint32_t end = at + 1 + below(random, 8); at < end && at < size; at++)
                    input[at] = (uint8_t)next(random);
                break;
            }
        }
    for (uint32_t behind = below(random, 2) ? size_below(random, 40) : 0;
         behind && size < MOST_INPUT; behind--)
        input[size++] = (uint8_t)next(random);
    return size;
}

struct result {
    int32_t verdict;
    uint32_t output;
    uint32_t left;
    int at_block; /* with no bits pending; where more input is wanted */
};

static struct result ask_zlib(uint32_t size)
{
    struct result result = {0};
    int status;

    inflateReset(&inflater);
    inflater.next_in = input;
    inflater.avail_in = size;
    inflater.next_out = expected;
    inflater.avail_out = MOST_OUTPUT;
    status = inflate(&inflater, Z_SYNC_FLUSH);
    result.output = MOST_OUTPUT - inflater.avail_out;
    result.left = inflater.avail_in;
    result.verdict = status == Z_STREAM_END ? PPR_DONE
        : status == Z_DATA_ERROR ? PPR_BAD
        : inflater.avail_out ? PPR_MORE_INPUT : PPR_MORE_OUTPUT;
    /* The first block's header is no such place for zlib. */
    result.at_block = (inflater.data_type & 128) && !(inflater.data_type & 63);
    return result;
}

/* How streams are cut: whole, in bytes, and between. */
static uint32_t cut(struct random *random, uint32_t kind, uint32_t all)
{
    switch (kind) {
    case 0:
        return 1;
    case 1:
        return 1 + below(random, 20);
    case 2:
        return 1 + below(random, 700);
    case 3:
        return 1 + size_below(random, all + 1);
    case 4:
        return all + 1 + below(random, 400);
    case 5: /* about the margins of the fast loop */
        return below(random, 2) ? 16 + below(random, 20) : 256 + below(random, 80);
    default:
        return all ? all : 1;
    }
}

static struct result ask_native(struct random *random, uint32_t size, uint32_t total)
{
    struct result result = {0};
    struct ppr_inflate *state = need(calloc(1, sizeof *state));
    uint32_t pieces = below(random, size > 3000 ? 20 : 8);
    uint32_t chunks = below(random, total > 3000 ? 20 : 8);
    uint32_t joined = below(random, 4) == 0; /* the history lies before the chunk */
    uint32_t taken = 0;
    uint8_t *piece = need(malloc(0));
    uint8_t *history = need(malloc(0));
    uint8_t *chunk = need(malloc(0));

    if (pieces == 0 && size > 3000)
        pieces = 1;
    if (chunks == 0 && total > 3000)
        chunks = 1;
#ifdef __x86_64__
    if (below(random, 2))
        state->processor = 1; /* without BMI2 */
#endif
    state->input = piece;
    state->output = chunk;
    state->history = history;
    for (;;) {
        result.verdict = ppr_inflate(state);
        if (state->output_at > state->output_size ||
            (result.verdict == PPR_MORE_INPUT && state->input_left) ||
            (result.verdict == PPR_MORE_OUTPUT && state->output_at != state->output_size)) {
            result.verdict = -1;
            break;
        }
        if (below(random, 16) == 0) { /* a copy is as good */
            struct ppr_inflate *copy = need(malloc(sizeof *copy));

            memcpy(copy, state, sizeof *copy);
            free(state);
            state = copy;
        }
        if (result.verdict == PPR_MORE_INPUT) {
            uint32_t next_size = cut(random, pieces, size);

            if (taken == size)
                break;
            if (next_size > size - taken)
                next_size = size - taken;
            free(piece);
            piece = need(malloc(next_size));
            memcpy(piece, input + taken, next_size);
            taken += next_size;
            state->input = piece;
            state->input_left = next_size;
        } else if (result.verdict == PPR_MORE_OUTPUT) {
            uint32_t next_size = cut(random, chunks, total);

            memcpy(output + result.output, state->output, state->output_at);
            result.output += (uint32_t)state->output_at;
            if (result.output == MOST_OUTPUT)
                break;
            if (next_size > MOST_OUTPUT - result.output)
                next_size = MOST_OUTPUT - result.output;
            free(history);
            free(chunk);
            state->history_size = result.output < WINDOW ? result.output : WINDOW;
            history = need(malloc(state->history_size + (joined ? next_size : 0)));
            memcpy(history, output + result.output - state->history_size, state->history_size);
            chunk = joined ? NULL : need(malloc(next_size));
            state->history = history;
            state->output = joined ? history + state->history_size : chunk;
            state->output_size = next_size;
            state->output_at = 0;
        } else {
            break;
        }
    }
    if (result.verdict == PPR_MORE_INPUT || result.verdict == PPR_DONE) {
        memcpy(output + result.output, state->output, state->output_at);
        result.output += (uint32_t)state->output_at;
    }
    result.left = (uint32_t)state->input_left + size - taken;
    result.at_block = state->at_block && !state->bits_left;
    free(state);
    free(piece);
    free(history);
    free(chunk);
    return result;
}

static int crc_differs(struct random *random, const uint8_t *data, uint32_t size)
{
    uint32_t start = below(random, 64);
    uint32_t crc = below(random, 2) ? 0 : (uint32_t)next(random);
    uint8_t *copy;
    int differs;

    if (size > 20000 && below(random, 8))
        size = below(random, 20000);
    copy = need(malloc(start + size));
    memcpy(copy + start, data, size);
    differs = ppr_crc32(crc, copy + start, size) != crc32(crc, copy + start, size);
    free(copy);
    return differs;
}

struct counts {
    uint64_t inputs, decoded, refused, unfinished, differences, bytes;
};

static void try_input(uint64_t seed, uint64_t index, struct counts *counts)
{
    struct random random = {seed * 0x9e3779b97f4a7c15 + index};
    struct result theirs, ours;
    uint32_t size;
    const char *what = NULL;

    next(&random);
    size = make_input(&random);
    theirs = ask_zlib(size);
    ours = ask_native(&random, size, theirs.output);
    if (theirs.verdict == PPR_MORE_OUTPUT) {
        /* Filled to the limit: zlib does not say for what it waits. */
        if (ours.output != MOST_OUTPUT || memcmp(output, expected, MOST_OUTPUT))
            what = "bytes up to the limit";
    } else if (ours.verdict != theirs.verdict)
        what = "verdict";
    else if (theirs.verdict != PPR_BAD &&
             (ours.output != theirs.output || memcmp(output, expected, ours.output)))
        what = "bytes";
    else if (theirs.verdict == PPR_DONE && ours.left != theirs.left)
        what = "bytes left over";
    else if (theirs.verdict == PPR_MORE_INPUT && theirs.at_block && !ours.at_block)
        what = "place between blocks";
    else if (theirs.verdict == PPR_MORE_INPUT && ours.at_block && !theirs.at_block && size)
        what = "no place between blocks";
    if (!what && crc_differs(&random, expected, theirs.output))
        what = "crc32";
    counts->inputs++;
    counts->bytes += theirs.output;
    counts->decoded += theirs.verdict == PPR_DONE;
    counts->refused += theirs.verdict == PPR_BAD;
    counts->unfinished += theirs.verdict == PPR_MORE_INPUT || theirs.verdict == PPR_MORE_OUTPUT;
    if (what) {
        counts->differences++;
        fprintf(stderr, "%s: --seed %llu --only %llu (%d, %d; %u, %u bytes; %u, %u left)\n", what,
                (unsigned long long)seed, (unsigned long long)index, ours.verdict, theirs.verdict,
                ours.output, theirs.output, ours.left, theirs.left);
    }
}

static void work(uint64_t seed, uint64_t runs, uint64_t job, uint64_t jobs, uint64_t only,
                 struct counts *counts)
{
    struct random random = {seed};

    source = need(malloc(SOURCE));
    input = need(malloc(MOST_INPUT));
    expected = need(malloc(MOST_OUTPUT));
    output = need(malloc(MOST_OUTPUT));
    make_source(&random);
    for (uint32_t stream = 0; stream < STREAMS; stream++)
        make_stream(&random, &streams[stream]);
    if (inflateInit2(&inflater, -15) != Z_OK)
        exit(2);
    if (only != UINT64_MAX) {
        try_input(seed, only, counts);
        return;
    }
    for (uint64_t index = job; index < runs; index += jobs)
        try_input(seed, index, counts);
}

static volatile sig_atomic_t stopped;

static void stop(int number)
{
    (void)number;
    stopped = 1;
}

int main(int argc, char **argv)
{
    struct sigaction action = {0}; /* without SA_RESTART: wait() returns */
    uint64_t runs = 10000000, seed = 1, jobs = 2, only = UINT64_MAX;
    struct counts *counts, sum = {0};
    pid_t children[256];
    int failed = 0;

    for (int at = 1; at < argc; at += 2) {
        uint64_t value = at + 1 < argc ? strtoull(argv[at + 1], NULL, 10) : 0;

        if (!strcmp(argv[at], "--runs") && value)
            runs = value;
        else if (!strcmp(argv[at], "--seed"))
            seed = value;
        else if (!strcmp(argv[at], "--jobs") && value && value <= 256)
            jobs = value;
        else if (!strcmp(argv[at], "--only"))
            only = value;
        else {
            fprintf(stderr, "fuzz [--runs N] [--seed N] [--jobs N] [--only INDEX]\n");
            return 2;
        }
    }
    if (only != UINT64_MAX)
        jobs = 1;
    counts = mmap(NULL, jobs * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                  -1, 0);
    if (counts == MAP_FAILED)
        return 2;
    action.sa_handler = stop;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    for (uint64_t job = 0; job < jobs; job++) {
        pid_t child = children[job] = fork();

        if (child < 0)
            return 2;
        if (!child) {
            signal(SIGINT, SIG_IGN); /* whoever is at the terminal stops all at once */
            signal(SIGTERM, SIG_DFL);
            work(seed, runs, job, jobs, only, &counts[job]);
            _exit(0);
        }
    }
    for (uint64_t job = 0; job < jobs;) {
        int status;

        if (wait(&status) >= 0) {
            failed |= status != 0;
            job++;
        } else if (stopped) {
            break;
        }
    }
    for (uint64_t job = 0; stopped && job < jobs; job++)
        kill(children[job], SIGKILL);
    for (uint64_t job = 0; job < jobs; job++) {
        sum.inputs += counts[job].inputs;
        sum.decoded += counts[job].decoded;
        sum.refused += counts[job].refused;
        sum.unfinished += counts[job].unfinished;
        sum.differences += counts[job].differences;
        sum.bytes += counts[job].bytes;
    }
    printf("%llu inputs, %llu decoded, %llu refused, %llu unfinished, %llu differences "
           "(seed %llu, %llu MB)\n",
           (unsigned long long)sum.inputs, (unsigned long long)sum.decoded,
           (unsigned long long)sum.refused, (unsigned long long)sum.unfinished,
           (unsigned long long)sum.differences, (unsigned long long)seed,
           (unsigned long long)sum.bytes / 1000000);
    if (stopped)
        fprintf(stderr, "stopped\n");
    else if (failed)
        fprintf(stderr, "a job ended early: its last input is the one after as many as it did\n");
    return failed || stopped || sum.differences;
}

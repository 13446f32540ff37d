/* The kernel alone, fuzzed: any bytes as a block, under any of the rules of `fuzz_rules.h`, which fuzz_kernel.py writes.
 *
 * An input is two bytes, the rules and the flags, and the block. Every room has exactly the size that the kernel was told,
 * so that AddressSanitizer sees each byte that is touched beside it; what comes out must keep the promises of `judge`.
 *
 * `LLVMFuzzerTestOneInput` is what libFuzzer calls. Without it (-DALONE) `main` fuzzes: it keeps the inputs that reach a
 * place of the kernel that none reached before (gcc's -fsanitize-coverage=trace-pc) and changes them further. The input
 * that is being tried lies in a file, and stays there if the process dies:
 *
 *     fuzz_kernel SECONDS SEED CURRENT-INPUT [FILE ...]
 *
 * With -DREPLAY it tries the given files alone, and writes all that the kernel makes of them to standard output: two
 * builds, for two processors or by two compilers, must write the same bytes (.ci/variants).
 */
#include "../../server/convert/kernel.c"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "fuzz_rules.h" /* RULES, RULES_COUNT, NAMES, NAME_COUNT, CATALOGUE, CATALOGUE_COUNT */

#if defined(REPLAY)
#define SHOW(what, size) fwrite((what), 1, (size_t)(size), stdout)
#else
#define SHOW(what, size) (void)0
#endif
#if defined(ALONE)
#define UNSEEN __attribute__((no_sanitize_coverage)) /* no place of the kernel */
#else
#define UNSEEN
#endif

enum { ARRAY = 1, BY_PODCAST = 2, INDEX_ROWS = 4, SOME_IDS = 8, SMALL_ROOM = 16, NO_FEATURES = 32, NO_CATALOGUE = 64, FRESH_AFTER = 128 };

#define HOLDS(what) do { if (!(what)) { fprintf(stderr, "broken promise, line %d: %s\n", __LINE__, #what); abort(); } } while (0)

UNSEEN static void *room(int64_t size) {
    void *memory = malloc((size_t)size + !size);
    HOLDS(memory);
    return memory;
}

/* What the caller relies on. */
UNSEEN static void judge(const struct rules *rules, const struct block *block) {
    int64_t lines = 0, filtered = 0, ends = 0;
    HOLDS(block->taken > 0 && block->taken <= block->size && block->text[block->taken - 1] == '\n');
    HOLDS(block->written >= 0 && block->written <= block->out_room && block->id_count <= block->most_ids);
    HOLDS(block->odd_count <= block->most_odd && block->podcast_count <= MOST_PODCASTS);
    for (int64_t i = 0; i < block->taken; i++) ends += block->text[i] == '\n';
    HOLDS(ends == block->line_count && block->row_count + block->odd_count <= ends);
    for (int64_t i = 0; i < block->written; i++) {
        uint8_t byte = block->out[i];
        HOLDS(byte >= 0x20 || byte == '\t' || byte == '\n');
        HOLDS(byte != 0x7F && byte != '"' && byte != '\\');
        if (!i || block->out[i - 1] == '\n') HOLDS(byte != '#');
        lines += byte == '\n';
    }
    HOLDS(is_utf8(block->out, block->out + block->written));
    for (int i = 0; i < FILTERS; i++) filtered += block->filtered[i];
    HOLDS(rules->index_rows ? !block->written : lines == block->lines);
    HOLDS(block->row_count == block->lines + filtered && block->reporting <= block->row_count);
    HOLDS(block->seen_slots ? block->id_count <= block->row_count : block->id_count == block->row_count);
    HOLDS(block->seen_count >= 0 && block->seen_count <= block->most_seen);
    for (int64_t i = 0, end = 0; i < block->odd_count; i++) {
        const struct odd_row *odd = &block->odd[i];
        HOLDS(odd->begin >= end && odd->end > odd->begin && odd->end <= block->taken && block->text[odd->end - 1] == '\n');
        HOLDS(odd->written <= block->written && odd->ids <= block->id_count && odd->rows <= block->row_count && odd->line < block->line_count);
        end = odd->end;
    }
    for (int64_t i = 0; i < block->podcast_count; i++) {
        const struct podcast *podcast = &block->podcasts[i];
        HOLDS(podcast->begin >= 0 && podcast->length > 0 && podcast->begin + podcast->length < block->taken);
    }
}

UNSEEN int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3) return 0;
    struct rules rules = RULES[data[0] % RULES_COUNT];
    static uint32_t catalogue_slots[4096];
    static int64_t indexed = 0;
    int flags = data[1];
    if (!indexed) HOLDS((indexed = index_catalogue(CATALOGUE, CATALOGUE_SIZE, catalogue_slots, 4096)) == CATALOGUE_COUNT);
    rules.by_podcast = !!(flags & BY_PODCAST);
    rules.index_rows = !!(flags & INDEX_ROWS);
    rules.has_fresh_after = !!(flags & FRESH_AFTER); /* not always: most rows of the corpus would be filtered, and no line written */
    rules.features = flags & NO_FEATURES ? 0 : kernel_features();
    if (!(flags & NO_CATALOGUE)) {
        rules.catalogue = CATALOGUE;
        rules.catalogue_slots = catalogue_slots;
        rules.catalogue_slot_count = 4096;
    }
    int64_t length = (int64_t)size - 2, ends = data[size - 1] == '\n';
    uint8_t *text = room(length + !ends + PADDING), *names = room(sizeof NAMES + 8), id[16] = { 0 };
    memcpy(text, data + 2, (size_t)length);
    if (!ends) text[length++] = '\n';
    memset(text + length, 0, PADDING);
    memcpy(names, NAMES, sizeof NAMES);
    memset(names + sizeof NAMES, 0, 8);
    struct block block = { 0 };
    /* A small room is full at another byte of a line with each length of the input. */
    int64_t out_room = CELL_ROOM + (flags & SMALL_ROOM ? 37 * length % 1500 : 4 * length + 8192), most = flags & SMALL_ROOM ? 3 : length / 64 + 1;
    uint8_t *out = room(out_room), *ids = room(16 * most), *digests = room(8 * most), last_id[16] = { 0 };
    uint32_t slots[4] = { 0 };
    int64_t seen_slot_count = 2, seen_count = 0;
    while (seen_slot_count <= most) seen_slot_count *= 2;
    uint32_t *seen_slots = room(4 * seen_slot_count);
    uint8_t *seen = room(16 * most);
    uint64_t *seen_numbers = room(8 * most), numbered = 0, rows_with_ids = 0;
    memset(seen_slots, 0, (size_t)(4 * seen_slot_count));
    struct odd_row *odd = room(most * (int64_t)sizeof *odd);
    struct podcast *podcasts = room(rules.by_podcast * MOST_PODCASTS * (int64_t)sizeof *podcasts);
    for (int64_t at = 0; at < length; at += block.taken) {
        memset(&block, 0, sizeof block);
        block.text = text + at;
        block.size = length - at;
        block.array = flags & ARRAY;
        if (rules.typed && at % 2 == 0) { /* of the kind that may lack ids, now the one and now the other */
            block.seen_slots = seen_slots;
            block.seen_slot_count = seen_slot_count;
            block.seen = seen;
            block.seen_numbers = seen_numbers;
            block.seen_count = seen_count;
            block.most_seen = most;
        }
        block.names = names;
        block.name_count = NAME_COUNT;
        block.out = out;
        block.out_room = out_room;
        block.ids = ids;
        block.digests = digests;
        block.most_ids = block.most_odd = most;
        block.odd = odd;
        block.podcasts = podcasts;
        if (flags & SOME_IDS) { /* the last row's id comes again, and it alone was not sent */
            memcpy(id, last_id, 16);
            memset(slots, 0, sizeof slots);
            index_ids(id, 1, slots, 4);
            block.fresh = block.repeated = id;
            block.fresh_slots = block.repeated_slots = slots;
            block.fresh_slot_count = block.repeated_slot_count = 4;
        }
        convert_block(&rules, &block);
        judge(&rules, &block);
        if (block.seen_slots) { /* each row that has an id is counted, under one of them */
            seen_count = block.seen_count;
            rows_with_ids += (uint64_t)block.id_count;
            numbered = 0;
            for (int64_t i = 0; i < seen_count; i++) numbered += seen_numbers[i];
            HOLDS(numbered == rows_with_ids);
        }
        SHOW(&block.taken, (uint8_t *)(&block + 1) - (uint8_t *)&block.taken);
        SHOW(out, block.written);
        SHOW(ids, 16 * block.id_count);
        SHOW(digests, rules.index_rows * 8 * block.id_count);
        SHOW(odd, block.odd_count * (int64_t)sizeof *odd);
        SHOW(podcasts, block.podcast_count * (int64_t)sizeof *podcasts);
        if (block.id_count) memcpy(last_id, ids + 16 * (block.id_count - 1), 16);
        if (!rules.index_rows && block.written) { /* what was written is a log: it can be indexed */
            int64_t lines;
            uint8_t *log = room(block.written), *cells = room(16 * block.lines), *sums = room(8 * block.lines);
            memcpy(log, out, (size_t)block.written);
            HOLDS(index_lines(log, block.written, 0, cells, sums, &lines) == block.lines && lines == block.lines);
            SHOW(cells, 16 * lines);
            SHOW(sums, 8 * lines);
            free(log); free(cells); free(sums);
        }
        uint32_t counts[64];
        uint8_t *sorted = room(24 * block.id_count);
        partition_ids(ids, rules.index_rows ? digests : NULL, block.id_count, counts, sorted);
        free(sorted);
    }
    free(text); free(names); free(out); free(ids); free(digests); free(odd); free(podcasts); free(seen_slots); free(seen); free(seen_numbers);
    return 0;
}

enum { LONGEST_INPUT = 4096 };

#if defined(REPLAY)

int main(int count, char **files) {
    for (int i = 1; i < count; i++) {
        uint8_t data[LONGEST_INPUT];
        FILE *input = fopen(files[i], "rb");
        HOLDS(input);
        size_t size = fread(data, 1, sizeof data, input);
        fclose(input);
        LLVMFuzzerTestOneInput(data, size);
    }
    return fflush(stdout) != 0;
}

#endif
#if defined(ALONE)

enum { LONGEST = LONGEST_INPUT, MOST_KEPT = 20000, PLACES = 1 << 14 };

static uint8_t reached[PLACES], times_class[256], now[PLACES];
static uintptr_t before;
static struct { uint8_t *data; size_t size; } kept[MOST_KEPT];
static int kept_count;
static uint64_t state;

/* gcc calls this wherever the kernel branches. */
UNSEEN void __sanitizer_cov_trace_pc(void) {
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    uint8_t *count = &now[(here ^ before) & (PLACES - 1)];
    if (*count < 255) ++*count;
    before = here >> 1;
}

UNSEEN static uint32_t dice(uint32_t sides) {
    state ^= state << 13; state ^= state >> 7; state ^= state << 17;
    return (uint32_t)(state >> 16) % sides;
}

static const char *const WORDS[] = {
    "\"id\":", "\"ip\":", "\"created_at\":", "\"podcast_id\":", "\"episode_id\":", "\"filesize\":", "\"bytes_sent\":",
    "\"seconds_downloaded\":", "\"user_agent\":", "\"city\":", "\"blacklisted_ip\":", "\"delivery_type\":", "\"download\"", "\"play\"", "\"x\":", "\\u0000", "\\ud83d\\ude00",
    "\\ud83d", "\\u2028", "\\\"", "\\\\", "\\n", "\\x", "\xC3\xA9", "\xE2\x80\xA8", "\xF0\x9F\x8E\xA7", "\xED\xA0\x80", "\xFF",
    "\"", "\\", "{", "}", ",", ":", "\n", "\r\n", " ", "\t", "\x7F", "null", "true", "false", "0", "-0", "-1", "1e5", "59.99999999999999999",
    "9223372036854775807", "9999999999999999", "0.0001", "::", "2001:db8::1", "1.2.3.0", "255.255.255.256", "::ffff:1.2.3.4",
    "2026-11-20T23:59:59.999Z", "2024-02-29 00:00:00+00:00", "11111111-2222-4333-8444-555555555555",
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789", "#", "?", "%", "]", "[",
};

UNSEEN static size_t mutate(uint8_t *data, size_t size) {
    for (int times = 1 + (int)dice(4); times--;) {
        size_t at = dice((uint32_t)size + 1), length = 1 + dice(dice(8) ? 12 : 400);
        const uint8_t *from = NULL;
        uint8_t many[LONGEST];
        switch (dice(8)) {
        case 0: if (at < size) data[at] ^= (uint8_t)(1 << dice(8)); continue;
        case 1: if (at < size) data[at] = (uint8_t)dice(256); continue;
        case 2: /* take away */
            if (length > size - at) length = size - at;
            memmove(data + at, data + at + length, size - at - length);
            size -= length;
            continue;
        case 3: case 4: { /* a word, now and then very often */
            const char *word = WORDS[dice(sizeof WORDS / sizeof *WORDS)];
            size_t one = strlen(word), often = dice(12) ? 1 : 1 + dice(2000);
            for (length = 0; often-- && length + one <= LONGEST / 2; length += one) memcpy(many + length, word, one);
            from = many;
            break;
        }
        case 5: { /* a piece of another input */
            int other = (int)dice((uint32_t)kept_count);
            size_t begin = dice((uint32_t)kept[other].size);
            from = kept[other].data + begin;
            if (length > kept[other].size - begin) length = kept[other].size - begin;
            break;
        }
        case 6: /* the same once more */
            if (length > size - at) length = size - at;
            from = data + at;
            break;
        default: if (size > 1) data[dice(2)] = (uint8_t)dice(256); continue;
        }
        if (size + length > LONGEST) continue;
        uint8_t piece[LONGEST];
        memcpy(piece, from, length);
        memmove(data + at + length, data + at, size - at);
        memcpy(data + at, piece, length);
        size += length;
    }
    return size;
}

/* Tries an input; keeps it if it reached something new. */
UNSEEN static void try_input(uint8_t *shown, const uint8_t *data, size_t size) {
    uint32_t length = (uint32_t)size;
    memcpy(shown, &length, 4);
    memcpy(shown + 4, data, size);
    memset(now, 0, sizeof now);
    before = 0;
    LLVMFuzzerTestOneInput(data, size);
    int new = 0;
    for (int i = 0; i < PLACES; i++) {
        if (!now[i]) continue;
        uint8_t class = times_class[now[i]];
        new |= !(reached[i] & class);
        reached[i] |= class;
    }
    if (!new || kept_count == MOST_KEPT) return;
    kept[kept_count].data = room((int64_t)size);
    memcpy(kept[kept_count].data, data, size);
    kept[kept_count++].size = size;
}

UNSEEN int main(int count, char **arguments) {
    if (count < 4) { fprintf(stderr, "fuzz_kernel SECONDS SEED CURRENT-INPUT [FILE ...]\n"); return 2; }
    double seconds = atof(arguments[1]);
    state = strtoull(arguments[2], NULL, 10) * 0x9E3779B97F4A7C15ull | 1;
    int file = open(arguments[3], O_RDWR | O_CREAT | O_TRUNC, 0600);
    HOLDS(file >= 0 && !ftruncate(file, LONGEST + 4));
    uint8_t *shown = mmap(NULL, LONGEST + 4, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), data[LONGEST];
    HOLDS(shown != MAP_FAILED);
    for (int i = 0, class = 0; i < 256; i++) { /* once, twice, 3, 4 to 7, 8 to 15, …: as AFL has it */
        if (i == 2 || i == 3 || i == 4 || i == 8 || i == 16 || i == 32 || i == 128) class++;
        times_class[i] = (uint8_t)(1 << class);
    }
    for (int i = 4; i < count; i++) {
        FILE *input = fopen(arguments[i], "rb");
        HOLDS(input);
        size_t size = fread(data, 1, LONGEST, input);
        fclose(input);
        if (size) try_input(shown, data, size);
    }
    if (!kept_count) { try_input(shown, (const uint8_t *)"\0\0{}\n", 5); }
    HOLDS(kept_count);
    time_t end = time(NULL) + (time_t)seconds;
    long tried = 0;
    while (time(NULL) < end)
        for (int i = 0; i < 200; i++, tried++) {
            int which = (int)(dice(3) ? dice((uint32_t)kept_count) : (uint32_t)kept_count - 1 - dice((uint32_t)(kept_count < 50 ? kept_count : 50)));
            memcpy(data, kept[which].data, kept[which].size);
            try_input(shown, data, mutate(data, kept[which].size));
        }
    int edges = 0;
    for (int i = 0; i < PLACES; i++) edges += reached[i] != 0;
    printf("tried %ld kept %d branches %d\n", tried, kept_count, edges);
    return 0;
}

#endif

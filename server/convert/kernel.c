/* Turns a block of export rows into log lines: every row that is certainly ordinary. All others are left alone.
 *
 * This is the fast way to do what `row.py`, the reference, does by the exact rules: for each row converted here, those
 * rules write the same line and count it alike. A row for which that is not proven is *odd*: nothing is written or counted
 * for it; its position is noted, and the caller converts it by the exact rules and splices its line in. Any row may be
 * called odd, so doubt costs time but never gives a wrong line.
 *
 * A BLOCK is `size` bytes of whole lines at `text`: its last byte is a newline, and PADDING zero bytes follow it. Pointers
 * into it lie between its beginning and that newline.
 *
 * READING stays in [text, text + size + PADDING). No scan passes a newline: strings end at a control character, numbers
 * and blanks at the first other byte, names and words compare at most LONGEST_NAME + 8 bytes. So a scan gets no further
 * than the block's last newline, and what it loads ahead (16 bytes at a time; an escape and its pair, 12) is padding.
 *
 * WRITING stays in the caller's rooms (buffers). A cell of a line begins only if CELL_ROOM bytes are left in `out`; what
 * may be longer (texts: at most 3 bytes for one byte of the row; literals) checks the room for itself. Copies write 16
 * bytes at a time, so up to 15 too many, which the bounds include. Ids, odd rows and podcasts are counted against their
 * rooms before they are written. What does not fit ends the call: `taken` says how far it came, and the caller calls again.
 *
 * PROVEN of an ordinary row, each in the function named:
 *   - it is one JSON object of scalars; its names are among those given by the caller, none twice     read_row
 *   - strings are strict UTF-8 with strict escapes and no lone surrogate                              read_string, is_utf8
 *   - numbers have at most 16 digits before the point, and no exponent                                read_number
 *   - created_at is a real instant in UTC                                                             is_instant
 *   - ip is an IPv4 or IPv6 address, written as `ipaddress` writes it, or certainly neither           judge_address
 *   - id, podcast_id and episode_id are of characters that no column or URL changes                   is_plain
 *   - where rows have no id, the six fields that are hashed for one are texts or absent               write_identity
 *   - where rows have no id, it is numbered among the equal ones that are counted in `seen`: the caller  convert_row
 *     looks whether an odd row is equal to one of them, and has the block converted anew
 *   - the URL has at most 2048 bytes, the line does not begin with #                                  write_url, convert_row
 *
 * TRUSTED is what kernel.py builds: `struct rules` and everything it points to, the names, the rooms and their sizes.
 *
 * There is no allocation, no writable global, no recursion, no callback; two threads share nothing but `rules`.
 * It is portable C11 (GNU dialect: __builtin_ctz and attributes); SSE2 and the SHA instructions have portable twins.
 */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "eight bytes are looked at as a number whose lowest byte comes first"
#endif

/* ---- What the caller and the kernel exchange; kernel.py declares the same, and compares `kernel_layout` ------------ */

enum {
    PADDING = 256, /* zero bytes after a block */
    LONGEST_NAME = 200, /* bytes of a field's name with quotes and colon */
    MOST_NAMES = 120,
    LONGEST_ID = 200, /* bytes of an ordinary id, of a podcast, an episode, a row */
    LONGEST_TOKEN = 200, /* bytes of an `ip` that is no address */
    LONGEST_SIZE = 32, /* digits of an enclosure's size */
    URL_LIMIT = 2048,
    URL_ROOM = 4096, /* bytes of a URL, before it is known to be too long */
    CELL_ROOM = URL_ROOM, /* more bytes than any cell but a text or a literal has */
    MOST_PODCASTS = 1024, /* in one call */
    NO_FIELD = 20, /* the index of a field that no rule knows */
    IDENTITY_ROOM = 2048, /* bytes of what tells a row without an id from others */
};

enum field { /* in the order of megaphone.exports.EXPORT_FIELDS */
    COUNTRY, DMA_NAME, NORMALIZED_USER_AGENT, CITY, IP, CREATED_AT, PODCAST_ID, SOURCE, FILESIZE, BYTES_SENT,
    SECONDS_DOWNLOADED, DURATION, BLACKLISTED_IP, EPISODE_ID, BLACKLISTED_UA, ID, REGION, USER_AGENT, DELIVERY_TYPE, MEDIA_TYPE,
};

enum part { /* what a cell of a line, or a part of a URL, consists of */
    LITERAL, /* bytes of `literals` */
    FIELD_TEXT, /* a field as text, cleaned in a line, percent-encoded in a URL */
    DATE_CELL, TIME_CELL, IP_CELL, HASH_CELL, URL_CELL, STEM_CELL, QUERY_CELL, STATUS_CELL, BYTES_CELL, SIZE_CELL, RANGE_CELL,
    PLAIN_ID, /* a field that is_plain has accepted */
    METRIC_ID, /* the row's id, its own or a derived one */
    GUID, /* the catalogue's guid, else the episode_id */
    TOKEN, ENCLOSURE, /* the catalogue's, already percent-encoded if the template wants that */
};

enum filter { SENT_BEFORE, PLAY, NO_BYTES, BY_IP, BY_UA, SHORT, TOO_FRESH, FILTERS, KEPT = FILTERS };
enum rows_rule { NOT_BLACKLISTED, ALL_ROWS, REPORTING_ROWS };
enum feature { SHA_INSTRUCTIONS = 1 };

struct part_of { int64_t part, field, offset, length; };

struct rules { /* of a conversion: read-only, shared by all threads */
    int64_t rows, truncated, partial, clamp, percent, hashes, has_day, has_fresh_after, by_podcast, index_rows, features;
    int64_t known, required; /* the fields of this kind of export, and those that an ordinary row has, besides its id: bits */
    int64_t typed, sizeless, rss_size; /* rows have a delivery_type; may lack their sizes; have then the catalogue's */
    uint8_t day[16]; /* YYYY-MM-DD */
    uint8_t fresh_after[32]; /* YYYY-MM-DD HH:MM:SS */
    uint8_t hash_key[32], id_key[32];
    const uint8_t *literals; /* with 16 bytes more than the parts use */
    const struct part_of *cells, *url, *other_url; /* `other_url` if the catalogue lacks what `url` needs */
    int64_t cell_count, url_count, other_url_count, wants_token, wants_enclosure;
    const uint8_t *catalogue; /* NULL: none; else entries as index_catalogue reads them, with 16 bytes more */
    const uint32_t *catalogue_slots; /* a power of two of them: 1 + an entry's offset / 4, or 0 */
    int64_t catalogue_slot_count;
};

struct odd_row { int64_t begin, end, written, ids, rows, line; }; /* from `written` on: what came before it */

struct podcast { int64_t begin, length, rows, reporting, lines, filtered[FILTERS]; }; /* begin, length: its id in the block */

struct block {
    /* set by the caller */
    const uint8_t *text;
    int64_t size, array; /* array: one comma may follow each row */
    uint32_t *seen_slots; /* not NULL: rows have no id, and get one (one with an id is odd); a table of the ids in `seen` */
    int64_t seen_slot_count;
    uint8_t *seen; /* the ids of rows as the first of their equals, 16 bytes each, and how many of those became lines: */
    uint64_t *seen_numbers;
    int64_t most_seen;
    const uint8_t *names; /* a byte of field, a byte of length, the name in quotes with its colon, …; with 8 bytes more */
    int64_t name_count;
    uint8_t *out;
    int64_t out_room;
    uint8_t *ids, *digests; /* 16 bytes a row and, for index_rows, 8; of derived ids, those of rows that may be lines */
    int64_t most_ids;
    struct odd_row *odd;
    int64_t most_odd;
    struct podcast *podcasts; /* MOST_PODCASTS, if by_podcast */
    const uint8_t *fresh; /* NULL: every row is new; else the packed ids of those that are */
    const uint32_t *fresh_slots;
    int64_t fresh_slot_count;
    const uint8_t *repeated; /* NULL: none; else packed ids that come more than once: their rows are odd */
    const uint32_t *repeated_slots;
    int64_t repeated_slot_count;
    /* set by the caller and the kernel: the next call goes on with it */
    int64_t seen_count;
    /* set by the kernel */
    int64_t taken, written, line_count, row_count, id_count, odd_count, podcast_count;
    int64_t lines, reporting, clamped, not_an_address, ends_in_zero, outside_day, unmapped, fallback_urls, unmatched, filtered[FILTERS];
};

typedef const uint8_t *text;

/* ---- Reading bytes ------------------------------------------------------------------------------------------------- */

#define EVERY(byte) (0x0101010101010101ull * (byte))
/* Marks in the high bits of bytes: correct up to and including the lowest mark, the only one that is used. */
#define BELOW(x, byte) (((x) - EVERY(byte)) & ~(x) & EVERY(0x80)) /* of bytes without a high bit */
#define EQUAL(x, byte) BELOW((x) ^ EVERY(byte), 1)

static inline uint64_t load8(text at) { uint64_t x; memcpy(&x, at, 8); return x; }
static inline int first_mark(uint64_t marks) { return __builtin_ctzll(marks) >> 3; }
/* Marks the bytes that are not decimal digits: they differ from '0' by ten or more, or have a high bit. */
static inline uint64_t no_digits(uint64_t x) { x ^= EVERY('0'); return ((x + EVERY(0x76)) | x) & EVERY(0x80); }
static inline int is_digit(uint8_t byte) { return (uint8_t)(byte - '0') < 10; }
static inline text skip_blanks(text at) { while (*at == ' ') at++; return at; }

/* Returns whether `length` bytes are equal; loads up to 7 more. */
static inline int same(text a, text b, int64_t length) {
    uint64_t differences = 0;
    int64_t i = 0;
    for (; i + 8 <= length; i += 8) differences |= load8(a + i) ^ load8(b + i);
    if (i < length) differences |= (load8(a + i) ^ load8(b + i)) << (8 * (8 - (length - i)));
    return !differences;
}

static int is_utf8(text at, text end) {
    while (at < end) {
        uint8_t lead = *at;
        if (lead < 0x80) { at++; continue; }
        int length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
        if (!length || end - at < length) return 0;
        for (int i = 1; i < length; i++) if ((at[i] & 0xC0) != 0x80) return 0;
        if ((lead == 0xE0 && at[1] < 0xA0) || (lead == 0xED && at[1] > 0x9F)) return 0; /* too long a form; surrogates */
        if ((lead == 0xF0 && at[1] < 0x90) || (lead == 0xF4 && at[1] > 0x8F)) return 0; /* too long; over U+10FFFF */
        at += length;
    }
    return 1;
}

static inline int hex_digit(uint8_t byte) {
    if (is_digit(byte)) return byte - '0';
    uint8_t letter = (byte | 0x20) - 'a';
    return letter < 6 ? letter + 10 : -1;
}

/* Returns the value of four hex digits, or -1. */
static int four_hex_digits(text at) {
    int number = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(at[i]);
        if (digit < 0) return -1;
        number = number << 4 | digit;
    }
    return number;
}

/* Returns the end of an escape, or NULL if it is not valid. */
static text read_escape(text at) {
    switch (at[1]) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't': return at + 2;
    case 'u': break;
    default: return NULL;
    }
    int unit = four_hex_digits(at + 2);
    if (unit < 0 || (unit >= 0xDC00 && unit < 0xE000)) return NULL;
    if (unit < 0xD800 || unit >= 0xE000) return at + 6;
    if (at[6] != '\\' || at[7] != 'u') return NULL;
    unit = four_hex_digits(at + 8);
    return unit >= 0xDC00 && unit < 0xE000 ? at + 12 : NULL;
}

/* ---- JSON values --------------------------------------------------------------------------------------------------- */

enum kind { NOTHING, NO, YES, STRING, WHOLE, FRACTION };

struct value { /* a string without its quotes, as it came; a number without zeros at the end of its fraction */
    text at;
    int64_t whole; /* the whole part of a number */
    uint32_t length;
    uint8_t kind;
    uint8_t escapes, foreign; /* of a string: whether it has any; whether it has anything beyond ASCII */
    uint8_t exact; /* of a number: whether its JSON text is what the exact rules would write */
};

/* Reads from after the opening quote to after the closing one; returns that, or NULL. */
static inline text read_string(text at, struct value *value) {
    text begin = at;
    int foreign = 0;
    value->escapes = 0;
    for (;;) {
#if defined(__SSE2__)
        __m128i some = _mm_loadu_si128((const __m128i *)at);
        __m128i low = _mm_cmpeq_epi8(_mm_min_epu8(some, _mm_set1_epi8(0x1F)), some);
        __m128i special = _mm_or_si128(_mm_cmpeq_epi8(some, _mm_set1_epi8('"')), _mm_cmpeq_epi8(some, _mm_set1_epi8('\\')));
        unsigned stop = (unsigned)_mm_movemask_epi8(_mm_or_si128(special, low)), high = (unsigned)_mm_movemask_epi8(some);
        if (!stop) { foreign |= high != 0; at += 16; continue; }
        int before = __builtin_ctz(stop);
        foreign |= (high & ((1u << before) - 1)) != 0;
#else
        uint64_t some = load8(at), stop = EQUAL(some, '"') | EQUAL(some, '\\') | BELOW(some, 0x20);
        if (!stop) { foreign |= (some & EVERY(0x80)) != 0; at += 8; continue; }
        int before = first_mark(stop);
        foreign |= before && (some << (64 - 8 * before) & EVERY(0x80));
#endif
        at += before;
        if (*at == '"') break;
        if (*at != '\\' || !(at = read_escape(at))) return NULL; /* a control character, at the latest the newline */
        value->escapes = 1;
    }
    value->at = begin;
    value->length = (uint32_t)(at - begin);
    value->kind = STRING;
    value->foreign = (uint8_t)foreign;
    return !foreign || is_utf8(begin, at) ? at + 1 : NULL;
}

/* Reads the digits that stand here, at most `most` (a multiple of 8) of them, and their value. */
static inline text read_digits(text at, int most, int64_t *number) {
    int64_t value = 0;
    for (int i = 0; i < most; i += 8) {
        uint64_t some = load8(at), stop = no_digits(some);
        int count = stop ? first_mark(stop) : 8;
        if (!count) break;
        some = (some ^ EVERY('0')) << (64 - 8 * count); /* the last digit comes last, zeros before the first one */
        some = (some * 10 + (some >> 8)) & 0x00FF00FF00FF00FFull; /* two digits each */
        some = (some * 100 + (some >> 16)) & 0x0000FFFF0000FFFFull; /* four */
        some = (some * 10000 + (some >> 32)) & 0xFFFFFFFFull;
        static const int32_t TENS[9] = { 1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000 };
        value = value * TENS[count] + (int64_t)some;
        at += count;
        if (stop) break;
    }
    *number = value;
    return at;
}

/* Reads a number with at most 16 digits before the point; returns its end, or NULL. */
static inline text read_number(text at, struct value *value) {
    text begin = at;
    int negative = *at == '-';
    text digits = at + negative;
    int64_t whole;
    at = read_digits(digits, 16, &whole);
    int64_t places = at - digits;
    if (!places || (*digits == '0' && places > 1)) return NULL;
    value->kind = WHOLE;
    value->exact = !(negative && !whole);
    if (*at == '.') {
        text fraction = ++at;
        while (is_digit(*at)) at++;
        text last = at; /* the last digit that counts: zeros after it do not, but one digit stays */
        if (at == fraction) return NULL;
        while (last - fraction > 1 && last[-1] == '0') last--;
        value->kind = FRACTION;
        /* A decimal of up to 15 digits survives the way through a double; far from where exponents begin, Python also
         * spells it as it was. */
        int near_zero = !whole && fraction[0] == '0' && fraction[1] == '0' && fraction[2] == '0';
        value->exact = places + (last - fraction) <= 15 && (last - fraction == 1 || !near_zero);
        value->length = (uint32_t)(last - begin);
    } else value->length = (uint32_t)(at - begin);
    if (is_digit(*at) || *at == '.' || (*at | 0x20) == 'e') return NULL;
    value->at = begin;
    value->whole = negative ? -whole : whole;
    return at;
}

static inline text read_value(text at, struct value *value) {
    switch (*at) {
    case '"': return read_string(at + 1, value);
    case 'n': value->kind = NOTHING; value->at = at; value->length = 0; return !memcmp(at, "null", 4) ? at + 4 : NULL;
    case 't': value->kind = YES; value->at = at; value->length = 4; return !memcmp(at, "true", 4) ? at + 4 : NULL;
    case 'f': value->kind = NO; value->at = at; value->length = 5; return !memcmp(at, "false", 5) ? at + 5 : NULL;
    default: return read_number(at, value);
    }
}

/* ---- What values mean ---------------------------------------------------------------------------------------------- */

static inline int two_digits(text at, int most) {
    int number = 10 * (at[0] - '0') + (at[1] - '0');
    return is_digit(at[0]) && is_digit(at[1]) && number <= most ? number : -1;
}

/* Returns whether this is YYYY-MM-DD, a day that exists. */
static int is_date(text at) {
    int century = two_digits(at, 99), year = two_digits(at + 2, 99), month = two_digits(at + 5, 12), day = two_digits(at + 8, 31);
    if (century < 0 || year < 0 || month < 1 || day < 1) return 0;
    year += 100 * century;
    int leap = year % 4 == 0 && (year % 100 || year % 400 == 0);
    return year >= 1 && day <= (month == 2 ? 28 + leap : 30 + ((month + (month > 7)) & 1)) && at[4] == '-' && at[7] == '-';
}

/* Returns whether this is HH:MM:SS: no byte exceeds 00:00:00 by more than it may, and the hour is at most 23. */
static inline int is_time(text at) {
    uint64_t far = load8(at) ^ load8((text)"00:00:00");
    uint64_t beyond = (far + EVERY(0x7F) - load8((text)"\2\11\0\5\11\0\5\11")) | far;
    return !(beyond & EVERY(0x80)) && !(at[0] == '2' && at[1] > '3');
}

/* A day, T or a blank, a time, perhaps a fraction, perhaps Z or +00:00: export_row.parse_created_at. Nearly all rows have
 * the export's own day, which exists. */
static int is_instant(const struct rules *rules, const struct value *value, int *outside_day) {
    if (value->kind != STRING || value->length < 19 || value->escapes || value->foreign) return 0;
    text at = value->at, end = at + value->length;
    *outside_day = rules->has_day && !same(at, rules->day, 10);
    if ((!rules->has_day || *outside_day) && !is_date(at)) return 0;
    if ((at[10] != 'T' && at[10] != ' ') || !is_time(at + 11)) return 0;
    at += 19;
    if (*at == '.') {
        text fraction = ++at;
        while (is_digit(*at)) at++;
        if (at == fraction) return 0;
    }
    return at == end || (end - at == 1 && *at == 'Z') || (end - at == 6 && !memcmp(at, "+00:00", 6));
}

/* What no text and no URL changes: letters, digits, and four more. */
static inline int stays(uint8_t byte) {
    return (uint8_t)((byte | 0x20) - 'a') < 26 || is_digit(byte) || byte == '-' || byte == '.' || byte == '_' || byte == '~';
}

/* Returns whether a string consists of these and of `more`; 16 bytes at a time, the last ones twice rather than too many. */
static inline int is_plain(const struct value *value, uint8_t more) {
    typedef uint8_t sixteen __attribute__((vector_size(16)));
    if (value->kind != STRING || !value->length || value->length > LONGEST_ID) return 0;
    if (value->length < 16) {
        int all = 1;
        for (uint32_t i = 0; i < value->length; i++) all &= stays(value->at[i]) | (value->at[i] == more);
        return all;
    }
    sixteen all = ~(sixteen){ 0 };
    for (uint32_t i = 0; i < value->length; i += 16) {
        sixteen some;
        memcpy(&some, value->at + (i + 16 <= value->length ? i : value->length - 16), 16);
        all &= (sixteen)(((some | 0x20) - 'a') < 26) | (sixteen)((some - '0') < 10) | (sixteen)(some == '-')
            | (sixteen)(some == '.') | (sixteen)(some == '_') | (sixteen)(some == '~') | (sixteen)(some == more);
    }
    uint64_t halves[2];
    memcpy(halves, &all, 16);
    return !~(halves[0] & halves[1]);
}

static inline int is_flag_set(const struct value *value) {
    return value->kind == YES || (value->kind == STRING && value->length == 4 && !memcmp(value->at, "true", 4));
}

struct address {
    enum { TOKEN_ADDRESS, IPV4, IPV6 } is;
    int ends_in_zero;
    uint16_t groups[8]; /* of IPv6 */
};

/* Four numbers up to 255 without leading zeros, as `ipaddress` demands; `value` is ASCII. */
static int read_ipv4(const struct value *value, int *ends_in_zero) {
    text at = value->at, end = at + value->length;
    for (int i = 0; i < 4; i++) {
        text begin = at;
        int number = 0;
        while (at < end && is_digit(*at) && at - begin < 3) number = number * 10 + (*at++ - '0');
        if (at == begin || number > 255 || (*begin == '0' && at - begin > 1)) return 0;
        if (i < 3 && (at == end || *at++ != '.')) return 0;
        *ends_in_zero = number == 0;
    }
    return at == end;
}

/* Groups of up to four hex digits, one `::` for one group or more; without an IPv4 tail or a zone. */
static int read_ipv6(const struct value *value, uint16_t groups[8]) {
    text at = value->at, end = at + value->length;
    int count = 0, gap = -1;
    if (end - at < 2 || end - at > 39) return 0;
    if (*at == ':') {
        if (at[1] != ':') return 0;
        gap = 0;
        at += 2;
    }
    while (at < end) {
        text begin = at;
        int number = 0;
        for (; at < end && at - begin < 4; at++) {
            int digit = hex_digit(*at);
            if (digit < 0) break;
            number = number << 4 | digit;
        }
        if (at == begin || count == 8) return 0;
        groups[count++] = (uint16_t)number;
        if (at == end) break;
        if (*at++ != ':' || at == end) return 0;
        if (*at == ':') {
            if (gap >= 0) return 0;
            gap = count;
            at++;
        }
    }
    if (gap < 0 ? count != 8 : count > 7) return 0;
    if (gap >= 0) {
        int missing = 8 - count;
        for (int i = 7; i >= gap + missing; i--) groups[i] = groups[i - missing];
        for (int i = gap; i < gap + missing; i++) groups[i] = 0;
    }
    return 1;
}

/* Returns whether it is certain what `ip` is. Without a colon it is IPv4 or a token; with one it is IPv6, or odd (it may
 * have a port or an IPv4 tail); a comma may separate a list. */
static int judge_address(const struct value *value, struct address *address) {
    if (value->kind != STRING || !value->length || value->escapes || value->foreign) return 0;
    address->ends_in_zero = 0;
    if (read_ipv4(value, &address->ends_in_zero)) { address->is = IPV4; return 1; }
    address->ends_in_zero = 0;
    if (value->length > LONGEST_TOKEN) return 0;
    int colon = 0;
    for (uint32_t i = 0; i < value->length; i++) {
        uint8_t byte = value->at[i];
        if (byte <= 0x20 || byte >= 0x7F || byte == ',' || byte == '[' || byte == ']') return 0;
        colon |= byte == ':';
    }
    if (!colon) { address->is = TOKEN_ADDRESS; return 1; }
    if (!read_ipv6(value, address->groups)) return 0;
    text groups = (text)address->groups; /* ten bytes of 0 and two of FF: a mapped IPv4 address */
    if (!(load8(groups) | groups[8] | groups[9]) && address->groups[5] == 0xFFFF) return 0;
    address->is = IPV6;
    return 1;
}

/* Returns the four bytes of eight lower-case hex digits; anything else sets bits in `wrong`. */
static inline uint32_t pack_digits(uint64_t digits, uint64_t *wrong) {
    uint64_t letters = digits >> 6 & EVERY(1);
    uint64_t nibbles = (digits & EVERY(0x0F)) + letters * 9;
    *wrong |= (nibbles + EVERY('0') + letters * ('a' - '0' - 10)) ^ digits; /* spelled back, they must be the same */
    *wrong |= (nibbles & EVERY(0xF0)) | (((nibbles + EVERY(6)) ^ letters << 4) & EVERY(0x10)); /* a letter exactly from 10 on */
    uint64_t bytes = (nibbles << 4 | nibbles >> 8) & 0x00FF00FF00FF00FFull;
    bytes = (bytes | bytes >> 8) & 0x0000FFFF0000FFFFull;
    return (uint32_t)(bytes | bytes >> 16);
}

/* Packs an id into 16 bytes as row_ids.pack_id does, if it is a UUID in its canonical form. */
static inline int pack_uuid(const struct value *id, uint8_t packed[16]) {
    text at = id->at;
    if (id->length != 36 || at[8] != '-' || at[13] != '-' || at[18] != '-' || at[23] != '-') return 0;
    uint64_t wrong = 0, second = (load8(at + 9) & 0xFFFFFFFF) | load8(at + 14) << 32, third = (load8(at + 19) & 0xFFFFFFFF) | load8(at + 24) << 32;
    uint32_t parts[4] = {
        pack_digits(load8(at), &wrong), pack_digits(second, &wrong), pack_digits(third, &wrong), pack_digits(load8(at + 28), &wrong),
    };
    memcpy(packed, parts, 16);
    return !wrong;
}

/* ---- Hashes: SHA-256 (FIPS 180-4) for HMAC (RFC 2104), BLAKE2b (RFC 7693) ------------------------------------------ */

static const uint32_t SHA_ROUNDS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};
static const uint32_t SHA_START[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static inline uint32_t rotate32(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block_portable(uint32_t state[8], text data) {
    uint32_t schedule[64], v[8];
    for (int i = 0; i < 16; i++) {
        uint32_t word;
        memcpy(&word, data + 4 * i, 4);
        schedule[i] = __builtin_bswap32(word);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t near = schedule[i - 2], far = schedule[i - 15];
        schedule[i] = schedule[i - 16] + (rotate32(far, 7) ^ rotate32(far, 18) ^ far >> 3) + schedule[i - 7]
            + (rotate32(near, 17) ^ rotate32(near, 19) ^ near >> 10);
    }
    memcpy(v, state, 32);
    for (int i = 0; i < 64; i++) {
        uint32_t first = v[7] + (rotate32(v[4], 6) ^ rotate32(v[4], 11) ^ rotate32(v[4], 25))
            + (v[6] ^ (v[4] & (v[5] ^ v[6]))) + SHA_ROUNDS[i] + schedule[i];
        uint32_t second = (rotate32(v[0], 2) ^ rotate32(v[0], 13) ^ rotate32(v[0], 22)) + ((v[0] & v[1]) | (v[2] & (v[0] | v[1])));
        v[7] = v[6]; v[6] = v[5]; v[5] = v[4]; v[4] = v[3] + first;
        v[3] = v[2]; v[2] = v[1]; v[1] = v[0]; v[0] = first + second;
    }
    for (int i = 0; i < 8; i++) state[i] += v[i];
}

#if defined(__x86_64__)
__attribute__((target("sha,sse4.1,ssse3"))) static void sha256_block_x86(uint32_t state[8], text data) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xB1); /* CDAB */
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1B); /* EFGH */
    __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xF0), abef_before = abef, cdgh_before = cdgh;
    __m128i words[4];
    for (int i = 0; i < 4; i++) words[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(data + 16 * i)), big_endian);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        __m128i now = words[i & 3], next = words[(i + 1) & 3], third = words[(i + 2) & 3], last = words[(i + 3) & 3];
        __m128i round = _mm_add_epi32(now, _mm_loadu_si128((const __m128i *)(SHA_ROUNDS + 4 * i)));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, round);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(round, 0x0E));
        words[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, next), _mm_alignr_epi8(last, third, 4)), last);
    }
    low = _mm_shuffle_epi32(_mm_add_epi32(abef, abef_before), 0x1B); /* FEBA */
    high = _mm_shuffle_epi32(_mm_add_epi32(cdgh, cdgh_before), 0xB1); /* DCHG */
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(low, high, 0xF0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(high, low, 8));
}
#endif

static void sha256_block(uint32_t state[8], text data, int64_t features) {
#if defined(__x86_64__)
    if (features & SHA_INSTRUCTIONS) { sha256_block_x86(state, data); return; }
#endif
    (void)features;
    sha256_block_portable(state, data);
}

struct hmac { uint32_t inner[8], outer[8]; int64_t features; }; /* the states after the key's two blocks */

static void begin_hmac(struct hmac *hmac, const uint8_t key[32], int64_t features) {
    uint8_t inner[64], outer[64];
    for (int i = 0; i < 64; i++) { inner[i] = (i < 32 ? key[i] : 0) ^ 0x36; outer[i] = (i < 32 ? key[i] : 0) ^ 0x5C; }
    memcpy(hmac->inner, SHA_START, 32);
    memcpy(hmac->outer, SHA_START, 32);
    hmac->features = features;
    sha256_block(hmac->inner, inner, features);
    sha256_block(hmac->outer, outer, features);
}

/* The hash after the last `length` bytes, if one block went before them. */
static void end_sha256(uint32_t state[8], text data, int64_t length, int64_t features) {
    uint8_t last[128] = { 0 };
    int64_t whole = length & ~63ll, rest = length - whole, blocks = rest < 56 ? 1 : 2;
    for (int64_t i = 0; i < whole; i += 64) sha256_block(state, data + i, features);
    memcpy(last, data + whole, (size_t)rest);
    last[rest] = 0x80;
    uint64_t bits = __builtin_bswap64((uint64_t)(64 + length) * 8);
    memcpy(last + 64 * blocks - 8, &bits, 8);
    for (int64_t i = 0; i < blocks; i++) sha256_block(state, last + 64 * i, features);
}

/* Writes so many words of it, each as 8 hex digits. */
static void write_hmac(const struct hmac *hmac, text data, int64_t length, uint8_t *hex, int words) {
    uint32_t state[8];
    uint8_t inner[32];
    memcpy(state, hmac->inner, 32);
    end_sha256(state, data, length, hmac->features);
    for (int i = 0; i < 8; i++) { uint32_t word = __builtin_bswap32(state[i]); memcpy(inner + 4 * i, &word, 4); }
    memcpy(state, hmac->outer, 32);
    end_sha256(state, inner, 32, hmac->features);
    for (int i = 0; i < words; i++) { /* eight digits at a time: first a nibble in each byte, then its character */
        uint64_t digits = __builtin_bswap32(state[i]);
        digits = (digits | digits << 16) & 0x0000FFFF0000FFFFull;
        digits = (digits | digits << 8) & 0x00FF00FF00FF00FFull;
        digits = (digits >> 4 | digits << 8) & EVERY(0x0F);
        digits += EVERY('0') + ((digits + EVERY(6)) >> 4 & EVERY(1)) * ('a' - '0' - 10);
        memcpy(hex + 8 * i, &digits, 8);
    }
}

static const uint64_t BLAKE_START[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};
static const uint8_t BLAKE_ORDER[10][16] = {
    { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 }, { 14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3 },
    { 11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4 }, { 7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8 },
    { 9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13 }, { 2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9 },
    { 12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11 }, { 13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10 },
    { 6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5 }, { 10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0 },
};

static inline uint64_t rotate64(uint64_t x, int n) { return x >> n | x << (64 - n); }

#define BLAKE_MIX(a, b, c, d, x, y) \
    (v[a] += v[b] + (x), v[d] = rotate64(v[d] ^ v[a], 32), v[c] += v[d], v[b] = rotate64(v[b] ^ v[c], 24), \
     v[a] += v[b] + (y), v[d] = rotate64(v[d] ^ v[a], 16), v[c] += v[d], v[b] = rotate64(v[b] ^ v[c], 63))

static void blake2b_block(uint64_t state[8], text data, uint64_t bytes, int last) {
    uint64_t v[16], m[16];
    memcpy(v, state, 64);
    memcpy(v + 8, BLAKE_START, 64);
    memcpy(m, data, 128);
    v[12] ^= bytes;
    if (last) v[14] = ~v[14];
    for (int round = 0; round < 12; round++) {
        const uint8_t *s = BLAKE_ORDER[round % 10];
        BLAKE_MIX(0, 4, 8, 12, m[s[0]], m[s[1]]); BLAKE_MIX(1, 5, 9, 13, m[s[2]], m[s[3]]);
        BLAKE_MIX(2, 6, 10, 14, m[s[4]], m[s[5]]); BLAKE_MIX(3, 7, 11, 15, m[s[6]], m[s[7]]);
        BLAKE_MIX(0, 5, 10, 15, m[s[8]], m[s[9]]); BLAKE_MIX(1, 6, 11, 12, m[s[10]], m[s[11]]);
        BLAKE_MIX(2, 7, 8, 13, m[s[12]], m[s[13]]); BLAKE_MIX(3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++) state[i] ^= v[i] ^ v[i + 8];
}

/* BLAKE2b of `size` bytes (8 or 16), for this person or for none. */
static void blake2b(uint8_t *digest, int size, const char person[16], text data, int64_t length) {
    uint64_t state[8], who[2] = { 0, 0 };
    uint8_t last[128] = { 0 };
    if (person) memcpy(who, person, 16);
    memcpy(state, BLAKE_START, 64);
    state[0] ^= 0x01010000 ^ (uint64_t)size;
    state[6] ^= who[0];
    state[7] ^= who[1];
    int64_t done = 0;
    for (; length - done > 128; done += 128) blake2b_block(state, data + done, (uint64_t)(done + 128), 0);
    memcpy(last, data + done, (size_t)(length - done));
    blake2b_block(state, last, (uint64_t)length, 1);
    memcpy(digest, state, (size_t)size);
}

static const char ID_PERSON[16] = "pickup-point id"; /* and a zero: see row_ids.pack_id */

static inline void pack_id(const struct value *id, uint8_t packed[16]) {
    if (!pack_uuid(id, packed)) blake2b(packed, 16, ID_PERSON, id->at, id->length);
}

/* ---- Hash tables: a power of two of slots, more than there are entries; a slot is 1 + where its entry is, or 0 ----- */

static inline uint64_t hash_id(text id) { return (load8(id) ^ load8(id + 8) * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull >> 32; }

/* Returns whether 16 bytes are among the ids; `*slot` is where they are, or belong. */
static inline int find_id(text ids, const uint32_t *slots, int64_t slot_count, text id, int64_t *slot) {
    uint64_t mask = (uint64_t)slot_count - 1, at = hash_id(id) & mask;
    while (slots[at] && !same(ids + 16ull * (slots[at] - 1), id, 16)) at = (at + 1) & mask;
    *slot = (int64_t)at;
    return slots[at] != 0;
}

/* Hashes `length` bytes. The loads reach up to 7 bytes further; those are masked, or equal texts might hash differently. */
static uint64_t hash_text(text at, int64_t length) {
    uint64_t hash = (uint64_t)length;
    for (int64_t i = 0; i < length; i += 8) {
        uint64_t some = load8(at + i);
        if (length - i < 8) some &= (1ull << 8 * (length - i)) - 1;
        hash = (hash ^ some) * 0x9E3779B97F4A7C15ull;
        hash ^= hash >> 32;
    }
    return hash;
}

/* An entry of the catalogue: seven lengths, 4 bytes each, then as many texts one after the other. */
enum { KEY, GUID_CELL, GUID_IN_URL, WHOLE_URL, TOKEN_IN_URL, ENCLOSURE_IN_URL, ENCLOSURE_SIZE, TEXTS };

struct episode { text texts[TEXTS]; uint32_t lengths[TEXTS]; };

static text read_episode(text entry, struct episode *episode) {
    memcpy(episode->lengths, entry, 4 * TEXTS);
    text at = entry + 4 * TEXTS;
    for (int i = 0; i < TEXTS; i++) { episode->texts[i] = at; at += episode->lengths[i]; }
    return at;
}

/* Finds the catalogue's entry for a plain episode_id, whatever its case. */
static int find_episode(const struct rules *rules, const struct value *id, struct episode *episode) {
    uint8_t key[LONGEST_ID + 8];
    for (uint32_t i = 0; i < id->length; i++) { uint8_t byte = id->at[i]; key[i] = byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte; }
    memset(key + id->length, 0, 8);
    uint64_t mask = (uint64_t)rules->catalogue_slot_count - 1, at = hash_text(key, id->length) & mask;
    for (; rules->catalogue_slots[at]; at = (at + 1) & mask) {
        read_episode(rules->catalogue + 4ull * (rules->catalogue_slots[at] - 1), episode);
        if (episode->lengths[KEY] == id->length && same(episode->texts[KEY], key, id->length)) return 1;
    }
    return 0;
}

/* ---- Writing: each returns where the next byte goes ---------------------------------------------------------------- */

/* Copies 16 bytes at a time, so up to 15 too many. */
static inline uint8_t *put(uint8_t *out, text from, int64_t length) {
    for (int64_t i = 0; i < length; i += 16) memcpy(out + i, from + i, 16);
    return out + length;
}

static inline uint8_t *put_byte(uint8_t *out, uint8_t byte) { *out = byte; return out + 1; }

static uint8_t *put_percent(uint8_t *out, uint8_t byte) {
    out[0] = '%';
    out[1] = (uint8_t)"0123456789ABCDEF"[byte >> 4];
    out[2] = (uint8_t)"0123456789ABCDEF"[byte & 15];
    return out + 3;
}

static uint8_t *put_number(uint8_t *out, int64_t number) {
    uint8_t digits[20];
    int at = 20;
    do digits[--at] = (uint8_t)('0' + number % 10); while (number /= 10);
    memcpy(out, digits + at, (size_t)(20 - at));
    return out + (20 - at);
}

/* As ipaddress writes it (RFC 5952): lower case; the first of the longest runs of two or more zeros is `::`. */
static uint8_t *put_ipv6(uint8_t *out, const uint16_t groups[8]) {
    int gap = -1, longest = 1;
    for (int i = 0; i < 8; i++) {
        int end = i;
        while (end < 8 && !groups[end]) end++;
        if (end - i > longest) { gap = i; longest = end - i; }
        if (end > i) i = end - 1;
    }
    for (int i = 0; i < 8; i++) {
        if (i == gap) {
            out = put_byte(out, ':');
            i += longest - 1;
            if (i == 7) out = put_byte(out, ':');
            continue;
        }
        if (i) out = put_byte(out, ':');
        int digits = groups[i] > 0xFFF ? 4 : groups[i] > 0xFF ? 3 : groups[i] > 0xF ? 2 : 1;
        while (digits--) out = put_byte(out, (uint8_t)"0123456789abcdef"[groups[i] >> (4 * digits) & 15]);
    }
    return out;
}

/* Returns the next character of a string that was proven valid, escaped or not. */
static uint32_t next_character(text *at) {
    text p = *at;
    if (*p < 0x80 && *p != '\\') { *at = p + 1; return *p; }
    if (*p == '\\') {
        *at = p + 2;
        switch (p[1]) {
        case 'b': return '\b';
        case 'f': return '\f';
        case 'n': return '\n';
        case 'r': return '\r';
        case 't': return '\t';
        case 'u': break;
        default: return p[1];
        }
        uint32_t unit = (uint32_t)four_hex_digits(p + 2);
        *at = p + 6;
        if (unit < 0xD800 || unit > 0xDFFF) return unit;
        *at = p + 12;
        return 0x10000 + ((unit & 0x3FF) << 10 | ((uint32_t)four_hex_digits(p + 8) & 0x3FF));
    }
    int length = *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : 4;
    uint32_t character = *p & (0x7F >> length);
    for (int i = 1; i < length; i++) character = character << 6 | (p[i] & 0x3F);
    *at = p + length;
    return character;
}

/* The same as Python's str.isspace. */
static int is_space(uint32_t c) {
    return c == 0x20 || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F) || c == 0x85 || c == 0xA0 || c == 0x1680
        || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static int is_control(uint32_t c) { return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x2028 || c == 0x2029; }

static int encode(uint32_t c, uint8_t utf8[4]) {
    if (c < 0x80) { utf8[0] = (uint8_t)c; return 1; }
    int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, c >>= 6) utf8[i] = 0x80 | (c & 0x3F);
    utf8[0] = (uint8_t)(0xF00 >> length | c);
    return length;
}

/* Returns whether a string has more than white space (and, in a line, control characters, which become blanks). */
static int is_visible(const struct value *value, int in_line) {
    text at = value->at, end = at + value->length;
    while (at < end) { uint32_t c = next_character(&at); if (!is_space(c) && !(in_line && is_control(c))) return 1; }
    return 0;
}

/* Writes a string cleaned like triton.safe_text or (`percent`) triton.percent_text: at most 3 bytes for each of its own,
 * and 32 more. The worst: one byte becomes %XX; an escape of 6 bytes from U+0800 up, 9; a pair of escapes of 12, 12. */
static uint8_t *put_string(uint8_t *out, const struct value *value, int percent) {
    text at = value->at, end = at + value->length;
    if (at == end) return put_byte(out, '-');
    if ((*at <= ' ' || *at >= 0x7F || *at == '\\') && !is_visible(value, 1)) return put_byte(out, '-');
    for (;;) {
        uint64_t some = load8(at), stop = (some & EVERY(0x80)) | EQUAL(some, '\\') | EQUAL(some, 0x7F);
        if (percent) stop |= EQUAL(some, ' ') | EQUAL(some, '%');
        int64_t stays = stop ? first_mark(stop) : 8;
        memcpy(out, &some, 8);
        if (stays >= end - at) return out + (end - at);
        out += stays;
        at += stays;
        if (!stop) continue;
        uint32_t c = next_character(&at);
        uint8_t bytes[4];
        int control = is_control(c), length = encode(c, bytes);
        if (c == '"' || c == '\\' || (percent && (control || c == '%' || is_space(c)))) {
            for (int i = 0; i < length; i++) out = put_percent(out, bytes[i]);
        } else if (control) out = put_byte(out, ' ');
        else for (int i = 0; i < length; i++) out = put_byte(out, bytes[i]);
        if (at == end) return out;
    }
}

/* Writes a string in a URL like urllib.parse.quote with nothing safe; the same bound holds. */
static uint8_t *put_quoted(uint8_t *out, const struct value *value) {
    text at = value->at, end = at + value->length;
    if (!is_visible(value, 0)) return put_byte(out, '-');
    while (at < end) {
        uint8_t bytes[4];
        int length = encode(next_character(&at), bytes);
        for (int i = 0; i < length; i++) out = stays(bytes[i]) ? put_byte(out, bytes[i]) : put_percent(out, bytes[i]);
    }
    return out;
}

/* ---- One row ------------------------------------------------------------------------------------------------------- */

enum verdict { WRITTEN, ODD, FULL };

struct name { text at; uint32_t length, field; };

struct row {
    struct value values[NO_FIELD + 1]; /* of the row's fields; the last is for every field that no rule knows */
    struct address address;
    struct episode episode;
    uint8_t packed_id[16];
    int outside_day;
    int known, fallback; /* whether the episode is in the catalogue; whether `other_url` is used */
    int64_t sent; /* bytes_sent as it is written */
    int partial, play;
    const struct value *bytes; /* which of the two fields `sent` comes from; NULL if the row has neither */
    text id; /* as it is written */
    uint32_t id_length;
    uint8_t own_id[48]; /* of a row without one, with room for what a copy reads too many */
    int64_t url_length;
    uint8_t ip[48], hash[64], url[URL_ROOM];
    int64_t ip_length, hash_length;
};

/* Reads the values of one row; returns what follows its newline, or NULL if it is odd. */
static text read_row(const struct rules *rules, const struct block *block, const struct name *names, int64_t name_count, text at,
                     struct row *row) {
    uint32_t given = 0, required = (uint32_t)rules->required | (uint32_t)!block->seen_slots << ID;
    uint64_t seen[2] = { 0, 0 };
    int64_t expected = 0;
    if (*at++ != '{') return NULL;
    for (;;) {
        at = skip_blanks(at);
        int64_t i = expected;
        if (i >= name_count || !same(at, names[i].at, names[i].length)) {
            if (*at != '"') return NULL;
            for (i = 0; i < name_count && !same(at, names[i].at, names[i].length); i++) {}
            if (i == name_count) return NULL;
        }
        expected = i + 1;
        if (seen[i >> 6] >> (i & 63) & 1) return NULL;
        seen[i >> 6] |= 1ull << (i & 63);
        given |= 1u << names[i].field;
        at = read_value(skip_blanks(at + names[i].length), &row->values[names[i].field]);
        if (!at) return NULL;
        at = skip_blanks(at);
        if (*at == ',') { at++; continue; }
        if (*at++ != '}') return NULL;
        break;
    }
    while (*at == ' ' || *at == '\t' || *at == '\r') at++;
    if (block->array && *at == ',') do at++; while (*at == ' ' || *at == '\t' || *at == '\r');
    if (*at != '\n' || (given & required) != required) return NULL;
    for (uint32_t absent = ~given & (uint32_t)rules->known; absent; absent &= absent - 1) {
        struct value *value = &row->values[__builtin_ctz(absent)];
        value->kind = NOTHING;
        value->at = at;
        value->length = 0;
    }
    return at + 1;
}

static inline int is_word(const struct value *value, const char *word, uint32_t length) {
    return value->kind == STRING && value->length == length && !memcmp(value->at, word, length);
}

/* Writes what tells a row without an id from others: export_row.identity_of. Returns its length, 0 if that is not certain. */
static int64_t write_identity(uint8_t identity[IDENTITY_ROOM], const struct row *row) {
    static const uint8_t NAMED[6] = { CREATED_AT, PODCAST_ID, EPISODE_ID, IP, USER_AGENT, DELIVERY_TYPE };
    uint8_t *out = identity, *end = identity + IDENTITY_ROOM;
    if (row->values[ID].kind != NOTHING) return 0;
    for (int i = 0; i < 6; i++) {
        const struct value *value = &row->values[NAMED[i]];
        if (value->kind == NOTHING) { memset(out, 0xFF, 4); out += 4; continue; }
        /* 16 for what a copy writes too many, and 8 for the number: the bounds hold for the fields before as well */
        if (value->kind != STRING || value->length > IDENTITY_ROOM || end - out < value->length + 4 * 6 + 16 + 8) return 0;
        uint8_t *begin = out + 4;
        out = begin;
        if (!value->escapes) out = put(out, value->at, value->length);
        else for (text at = value->at, last = at + value->length; at < last;) out += encode(next_character(&at), out); /* never longer */
        uint32_t length = (uint32_t)(out - begin);
        memcpy(begin - 4, &length, 4);
    }
    return out - identity;
}

/* Makes the id of the row with this number among its equals, from 0: export_row.derived_id. The identity has 8 bytes more. */
static void derive_id(const struct hmac *hmac, uint8_t *identity, int64_t length, uint64_t number, struct row *row) {
    static const uint8_t DIGITS[5] = { 8, 4, 4, 4, 12 };
    uint8_t *out, hex[32];
    memcpy(identity + length, &number, 8);
    write_hmac(hmac, identity, length + 8, hex, 4);
    hex[12] = '8'; /* the version, and the variant */
    hex[16] = (uint8_t)"89ab"[hex_digit(hex[16]) & 3];
    text from = hex;
    out = row->own_id;
    for (int i = 0; i < 5; i++) {
        if (i) *out++ = '-';
        memcpy(out, from, DIGITS[i]);
        out += DIGITS[i];
        from += DIGITS[i];
    }
    row->id = row->own_id;
    row->id_length = 36;
    struct value id = { .at = row->own_id, .length = 36 };
    pack_uuid(&id, row->packed_id);
}

/* Works out the address, the episode and the numbers; returns whether the row is understood. */
static int judge_row(const struct rules *rules, struct row *row, int derive) {
    struct value *values = row->values;
    const struct value *size = &values[FILESIZE], *sent = &values[BYTES_SENT];
    if (!is_instant(rules, &values[CREATED_AT], &row->outside_day)) return 0;
    if (!derive) {
        if (values[ID].kind != STRING) return 0;
        if (!pack_uuid(&values[ID], row->packed_id)) {
            if (!is_plain(&values[ID], ':')) return 0;
            blake2b(row->packed_id, 16, ID_PERSON, values[ID].at, values[ID].length);
        }
        row->id = values[ID].at;
        row->id_length = values[ID].length;
    }
    if (!is_plain(&values[PODCAST_ID], '-') || !is_plain(&values[EPISODE_ID], '-')) return 0;
    row->play = 0;
    if (rules->typed) {
        row->play = is_word(&values[DELIVERY_TYPE], "play", 4);
        if (!row->play && !is_word(&values[DELIVERY_TYPE], "download", 8)) return 0;
    }
    int sizeless = rules->sizeless && size->kind == NOTHING && sent->kind == NOTHING;
    if (!sizeless && (size->kind != WHOLE || size->whole < 1 || sent->kind != WHOLE || sent->whole < 0 || !sent->exact)) return 0;
    /* As a double, 59.99999999999999999 is 60; with up to 15 digits no number under 60 is. */
    const struct value *seconds = &values[SECONDS_DOWNLOADED];
    if (seconds->kind == STRING || (seconds->kind == FRACTION && seconds->whole == 59 && seconds->length > 16)) return 0;
    if (!judge_address(&values[IP], &row->address)) return 0;
    for (int i = BLACKLISTED_IP; i <= BLACKLISTED_UA; i += BLACKLISTED_UA - BLACKLISTED_IP)
        if (values[i].kind == STRING && values[i].escapes) return 0;
    if (sizeless) {
        row->bytes = NULL;
        row->partial = 0;
    } else {
        int clamped = rules->clamp && sent->whole > size->whole;
        row->bytes = clamped ? size : sent;
        row->sent = row->bytes->whole;
        row->partial = rules->partial && sent->whole < size->whole;
    }
    row->known = rules->catalogue && find_episode(rules, &values[EPISODE_ID], &row->episode);
    return !row->known || row->episode.lengths[ENCLOSURE_SIZE] <= LONGEST_SIZE;
}

/* Writes a field like triton.json_text, then cleaned or quoted; NULL if that is not certain. Bounded as put_string. */
static uint8_t *put_field(uint8_t *out, const struct value *value, int quoted, int percent) {
    switch (value->kind) {
    case NOTHING: return put_byte(out, '-');
    case STRING: return quoted ? put_quoted(out, value) : put_string(out, value, percent);
    case WHOLE: case FRACTION: if (!value->exact) return NULL;
    }
    return put(out, value->at, value->length);
}

/* Writes the parts of a URL into `row->url`; returns 0 if it is too long, or not certain. */
static int join_url(const struct rules *rules, struct row *row, const struct part_of *parts, int64_t count) {
    uint8_t *out = row->url, *end = out + URL_ROOM;
    const struct value *id = &row->values[EPISODE_ID];
    for (int64_t i = 0; i < count; i++) {
        const struct value *value = &row->values[parts[i].field];
        text from = value->at;
        int64_t length = value->length;
        if (parts[i].part == FIELD_TEXT) {
            if (3 * length + 32 > end - out || !(out = put_field(out, value, 1, 0))) return 0;
            continue;
        }
        switch (parts[i].part) {
        case LITERAL: from = rules->literals + parts[i].offset; length = parts[i].length; break;
        case TOKEN: from = row->episode.texts[TOKEN_IN_URL]; length = row->episode.lengths[TOKEN_IN_URL]; break;
        case ENCLOSURE: from = row->episode.texts[ENCLOSURE_IN_URL]; length = row->episode.lengths[ENCLOSURE_IN_URL]; break;
        case GUID:
            from = id->at; length = id->length;
            if (row->known && row->episode.lengths[GUID_CELL]) { from = row->episode.texts[GUID_IN_URL]; length = row->episode.lengths[GUID_IN_URL]; }
            break;
        }
        if (length + 16 > end - out) return 0;
        out = put(out, from, length);
    }
    row->url_length = out - row->url;
    return row->url_length > 0 && row->url_length <= URL_LIMIT;
}

static int write_url(const struct rules *rules, struct row *row) {
    row->fallback = 0;
    if (row->known && row->episode.lengths[WHOLE_URL]) {
        if (row->episode.lengths[WHOLE_URL] > URL_LIMIT) return 0;
        put(row->url, row->episode.texts[WHOLE_URL], row->url_length = row->episode.lengths[WHOLE_URL]);
        return 1;
    }
    int token = row->known && row->episode.lengths[TOKEN_IN_URL], enclosure = row->known && row->episode.lengths[ENCLOSURE_IN_URL];
    row->fallback = (rules->wants_token && !token) || (rules->wants_enclosure && !enclosure);
    if (row->fallback) return join_url(rules, row, rules->other_url, rules->other_url_count);
    return join_url(rules, row, rules->url, rules->url_count);
}

/* Makes the two cells of the address, of at most 45 and 64 bytes; a full IPv4 address is used where it stands. */
static void write_address(const struct rules *rules, const struct hmac *hmac, struct row *row) {
    const struct value *value = &row->values[IP];
    struct address *address = &row->address;
    uint8_t form[48];
    uint16_t cut[8] = { 0 };
    text hashed = value->at;
    int64_t length = value->length;
    row->ip_length = row->hash_length = 1;
    row->ip[0] = row->hash[0] = '-';
    if (address->is == IPV4) {
        row->ip_length = put(row->ip, value->at, length) - row->ip;
        if (rules->truncated) {
            while (row->ip[row->ip_length - 1] != '.') row->ip_length--;
            row->ip[row->ip_length++] = '0';
        }
    } else if (address->is == IPV6) {
        if (rules->truncated) {
            memcpy(cut, address->groups, 8);
            hashed = form;
            length = put_ipv6(form, cut) - form;
            cut[3] = 0;
        } else memcpy(cut, address->groups, 16);
        row->ip_length = put_ipv6(row->ip, cut) - row->ip;
    }
    if (rules->hashes && (rules->truncated || address->is == TOKEN_ADDRESS)) {
        write_hmac(hmac, hashed, length, row->hash, 8);
        row->hash_length = 64;
    }
}

/* Writes a cell that is bounded by CELL_ROOM. */
static uint8_t *put_cell(const struct rules *rules, uint8_t *out, const struct row *row, const struct part_of *cell) {
    const struct value *values = row->values;
    text query = NULL;
    int64_t stem = row->url_length;
    switch (cell->part) {
    case DATE_CELL: return put(out, values[CREATED_AT].at, 10);
    case TIME_CELL: return put(out, values[CREATED_AT].at + 11, 8);
    case IP_CELL: return put(out, row->ip, row->ip_length);
    case HASH_CELL: return put(out, row->hash, row->hash_length);
    case URL_CELL: return put(out, row->url, row->url_length);
    case STEM_CELL: case QUERY_CELL:
        query = memchr(row->url, '?', (size_t)row->url_length);
        if (query) stem = query++ - row->url;
        if (cell->part == STEM_CELL) return stem ? put(out, row->url, stem) : put_byte(out, '-');
        return query && stem + 1 < row->url_length ? put(out, query, row->url_length - stem - 1) : put_byte(out, '-');
    case STATUS_CELL: return put(out, row->partial ? (text)"206             " : (text)"200             ", 3);
    case METRIC_ID: return put(out, row->id, row->id_length);
    case BYTES_CELL: return row->bytes ? put(out, row->bytes->at, row->bytes->length) : put_byte(out, '-');
    case SIZE_CELL:
        if (row->bytes) return put(out, values[FILESIZE].at, values[FILESIZE].length);
        if (!rules->rss_size || !row->known || !row->episode.lengths[ENCLOSURE_SIZE]) return put_byte(out, '-');
        return put(out, row->episode.texts[ENCLOSURE_SIZE], row->episode.lengths[ENCLOSURE_SIZE]);
    case RANGE_CELL: return row->partial ? put_number(put_byte(put_byte(out, '0'), '-'), row->sent - 1) : put_byte(out, '-');
    default: return put(out, values[cell->field].at, values[cell->field].length); /* PLAIN_ID */
    }
}

/* Writes the line with its newline; NULL if it may not fit into the room (`*odd` is 0), or if it is odd. */
static uint8_t *write_line(const struct rules *rules, const struct row *row, uint8_t *out, uint8_t *end, int *odd) {
    text begin = out;
    *odd = 0;
    for (int64_t i = 0; i < rules->cell_count; i++) {
        const struct part_of *cell = &rules->cells[i];
        const struct value *value = &row->values[cell->field];
        if (end - out < CELL_ROOM) return NULL;
        if (cell->part == LITERAL) {
            if (end - out < cell->length + 32) return NULL;
            out = put(out, rules->literals + cell->offset, cell->length);
        } else if (cell->part == FIELD_TEXT) {
            if (end - out < 3ll * value->length + 64) return NULL;
            out = put_field(out, value, 0, (int)rules->percent);
            if (!out) { *odd = 1; return NULL; }
        } else if (cell->part == GUID) {
            int mapped = row->known && row->episode.lengths[GUID_CELL];
            text from = mapped ? row->episode.texts[GUID_CELL] : row->values[EPISODE_ID].at;
            int64_t length = mapped ? row->episode.lengths[GUID_CELL] : row->values[EPISODE_ID].length;
            if (end - out < length + 32) return NULL;
            out = put(out, from, length);
        } else out = put_cell(rules, out, row, cell);
        out = put_byte(out, '\t');
    }
    out[-1] = '\n';
    *odd = *begin == '#'; /* Triton would take it for a comment */
    return *odd ? NULL : out;
}

static int is_repeated(const struct block *block, const struct row *row) {
    int64_t slot;
    return block->repeated && find_id(block->repeated, block->repeated_slots, block->repeated_slot_count, row->packed_id, &slot);
}

/* Why a row is left out, for what it is; KEPT if it is not. */
static inline enum filter own_filter(const struct rules *rules, const struct row *row, int bad_ip, int bad_ua, int is_short) {
    if (row->play) return PLAY;
    if (row->bytes && row->values[BYTES_SENT].whole == 0) return NO_BYTES;
    if (rules->rows == ALL_ROWS) return KEPT;
    if (bad_ip) return BY_IP;
    if (bad_ua) return BY_UA;
    return rules->rows == REPORTING_ROWS && is_short ? SHORT : KEPT;
}

/* The same, or because of what was sent before or is too fresh. Nothing was ever sent of a row without an id that is left
 * out for what it is. */
static inline enum filter filter_of(const struct rules *rules, const struct block *block, const struct row *row, enum filter own) {
    int64_t slot;
    text created = row->values[CREATED_AT].at;
    if (own != KEPT && block->seen_slots) return own;
    if (block->fresh && !find_id(block->fresh, block->fresh_slots, block->fresh_slot_count, row->packed_id, &slot)) return SENT_BEFORE;
    if (own != KEPT) return own;
    if (rules->has_fresh_after) {
        int day = memcmp(created, rules->fresh_after, 10);
        if (day > 0 || (day == 0 && memcmp(created + 11, rules->fresh_after + 11, 8) >= 0)) return TOO_FRESH;
    }
    return KEPT;
}

/* Finds the books of a podcast, or begins them; NULL if there is no room for more. */
static struct podcast *find_podcast(struct block *block, uint16_t slots[2 * MOST_PODCASTS], const struct value *id) {
    uint64_t mask = 2 * MOST_PODCASTS - 1, at = hash_text(id->at, id->length) & mask;
    for (; slots[at]; at = (at + 1) & mask) {
        struct podcast *podcast = &block->podcasts[slots[at] - 1];
        if (podcast->length == id->length && same(block->text + podcast->begin, id->at, id->length)) return podcast;
    }
    if (block->podcast_count == MOST_PODCASTS) return NULL;
    struct podcast *podcast = &block->podcasts[block->podcast_count++];
    memset(podcast, 0, sizeof *podcast);
    podcast->begin = id->at - block->text;
    podcast->length = id->length;
    slots[at] = (uint16_t)block->podcast_count;
    return podcast;
}

struct work { /* of one call */
    struct name names[MOST_NAMES];
    struct hmac hmac, ids_hmac;
    uint8_t identity[IDENTITY_ROOM];
    uint16_t podcast_slots[2 * MOST_PODCASTS];
    struct row row;
};

/* Converts the row at `*at` and moves past it; changes nothing unless it is WRITTEN. */
static enum verdict convert_row(const struct rules *rules, struct block *block, struct work *work, text *at) {
    struct row *row = &work->row;
    if (block->id_count == block->most_ids) return FULL;
    text next = read_row(rules, block, work->names, block->name_count, *at, row);
    if (!next || !judge_row(rules, row, block->seen_slots != NULL)) return ODD;
    int64_t identity = 0;
    if (block->seen_slots) {
        if (!(identity = write_identity(work->identity, row))) return ODD;
        derive_id(&work->ids_hmac, work->identity, identity, 0, row);
    }
    if (is_repeated(block, row) || !write_url(rules, row)) return ODD;

    const struct value *seconds = &row->values[SECONDS_DOWNLOADED];
    int is_short = (seconds->kind < WHOLE || seconds->whole < 60) && !(rules->sizeless && seconds->kind == NOTHING);
    int bad_ip = is_flag_set(&row->values[BLACKLISTED_IP]), bad_ua = is_flag_set(&row->values[BLACKLISTED_UA]);
    int reporting = !is_short && !bad_ip && !bad_ua && !row->play;
    enum filter own = own_filter(rules, row, bad_ip, bad_ua, is_short);
    int has_id = own == KEPT || !block->seen_slots; /* what is left out must not move the numbers of what is not */
    int64_t slot = 0;
    uint8_t first_id[16];
    if (has_id && block->seen_slots) {
        memcpy(first_id, row->packed_id, 16);
        if (find_id(block->seen, block->seen_slots, block->seen_slot_count, first_id, &slot))
            derive_id(&work->ids_hmac, work->identity, identity, block->seen_numbers[block->seen_slots[slot] - 1], row);
        else if (block->seen_count == block->most_seen) return ODD;
    }
    enum filter filter = filter_of(rules, block, row, own);
    uint8_t *line = block->out + block->written, *end = line;
    if (filter == KEPT) {
        int odd;
        write_address(rules, &work->hmac, row);
        end = write_line(rules, row, line, block->out + block->out_room, &odd);
        if (!end) return odd ? ODD : FULL;
    }
    struct podcast *podcast = NULL;
    if (rules->by_podcast && !(podcast = find_podcast(block, work->podcast_slots, &row->values[PODCAST_ID]))) return FULL;

    /* Everything that may fail is done: from here on the row counts as written. */
    if (rules->index_rows) { /* the digest takes the place of the line, which is not kept */
        uint8_t *digest = block->digests + 8 * block->id_count;
        if (filter == KEPT) blake2b(digest, 8, NULL, line, end - line - 1); else if (has_id) memset(digest, 0, 8);
        end = line;
    }
    block->row_count++;
    if (has_id) memcpy(block->ids + 16 * block->id_count++, row->packed_id, 16);
    if (has_id && block->seen_slots) {
        if (!block->seen_slots[slot]) {
            memcpy(block->seen + 16 * block->seen_count, first_id, 16);
            block->seen_numbers[block->seen_count++] = 0;
            block->seen_slots[slot] = (uint32_t)block->seen_count;
        }
        block->seen_numbers[block->seen_slots[slot] - 1]++;
    }
    block->written += end - line;
    block->reporting += reporting;
    if (podcast) { podcast->rows++; podcast->reporting += reporting; }
    if (filter == KEPT) {
        block->lines++;
        block->clamped += row->bytes == &row->values[FILESIZE];
        block->not_an_address += row->address.is == TOKEN_ADDRESS;
        block->ends_in_zero += row->address.ends_in_zero;
        block->outside_day += row->outside_day;
        int unmapped = rules->catalogue && !(row->known && row->episode.lengths[GUID_CELL]);
        block->unmapped += unmapped;
        block->unmatched += rules->catalogue && (unmapped || row->fallback);
        block->fallback_urls += row->fallback;
        if (podcast) podcast->lines++;
    } else {
        block->filtered[filter]++;
        if (podcast) podcast->filtered[filter]++;
    }
    *at = next;
    return WRITTEN;
}

/* ---- What is called ------------------------------------------------------------------------------------------------ */

#if defined(__GNUC__)
#define PUBLIC __attribute__((visibility("default")))
#else
#define PUBLIC
#endif

/* The sizes of the structures, which kernel.py compares, and what this processor can do. */
PUBLIC int64_t kernel_layout(void) {
    return (int64_t)(sizeof(struct rules) << 40 | sizeof(struct block) << 20 | sizeof(struct podcast));
}

PUBLIC int64_t kernel_features(void) {
#if defined(__x86_64__)
    unsigned a, b, c, d, more;
    if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSSE3) && (c & bit_SSE4_1) && __get_cpuid_count(7, 0, &a, &more, &c, &d))
        return more >> 29 & 1 ? SHA_INSTRUCTIONS : 0;
#endif
    return 0;
}

/* Converts rows until the block ends or a room is full. */
PUBLIC void convert_block(const struct rules *rules, struct block *block) {
    struct work work;
    text at = block->text, end = at + block->size, names = block->names;
    if (rules->hashes) begin_hmac(&work.hmac, rules->hash_key, rules->features);
    if (block->seen_slots) begin_hmac(&work.ids_hmac, rules->id_key, rules->features);
    if (rules->by_podcast) memset(work.podcast_slots, 0, sizeof work.podcast_slots);
    for (int64_t i = 0; i < block->name_count; i++) {
        work.names[i].field = names[0];
        work.names[i].length = names[1];
        work.names[i].at = names + 2;
        names += 2 + names[1];
    }
    while (at < end) {
        text blank = at;
        while (*blank == ' ' || *blank == '\t' || *blank == '\r') blank++;
        if (*blank == '\n') { block->line_count++; at = blank + 1; continue; }
        text begin = at;
        enum verdict verdict = convert_row(rules, block, &work, &at);
        if (verdict == FULL && !block->line_count) verdict = ODD; /* even an empty room is too small for it */
        if (verdict == FULL || (verdict == ODD && block->odd_count == block->most_odd)) break;
        if (verdict == ODD) {
            struct odd_row *odd = &block->odd[block->odd_count++];
            at = (text)memchr(begin, '\n', (size_t)(end - begin)) + 1;
            odd->begin = begin - block->text;
            odd->end = at - block->text;
            odd->written = block->written;
            odd->ids = block->id_count;
            odd->rows = block->row_count;
            odd->line = block->line_count;
        }
        block->line_count++;
    }
    block->taken = at - block->text;
}

/* Fills `slots` (all zero before) with the ids of a block, 16 bytes each. */
PUBLIC void index_ids(const uint8_t *ids, int64_t count, uint32_t *slots, int64_t slot_count) {
    int64_t slot;
    for (int64_t i = 0; i < count; i++)
        if (!find_id(ids, slots, slot_count, ids + 16 * i, &slot)) slots[slot] = (uint32_t)i + 1;
}

/* Returns whether all ids, 16 bytes each, differ; `slots` are all zero before. -1 if that takes too long: they were chosen
 * to be of one slot. Real ones take one or two looks each; a block has too few for that to matter, a day has not. */
PUBLIC int64_t ids_differ(const uint8_t *ids, int64_t count, uint32_t *slots, int64_t slot_count) {
    uint64_t mask = (uint64_t)slot_count - 1, at;
    for (int64_t i = 0, looks = 16 * count + 1000; i < count; i++) {
        for (at = hash_id(ids + 16 * i) & mask; slots[at]; at = (at + 1) & mask) {
            if (same(ids + 16ull * (slots[at] - 1), ids + 16 * i, 16)) return 0;
            if (!looks--) return -1;
        }
        slots[at] = (uint32_t)i + 1;
    }
    return 1;
}

/* Fills `slots` (all zero before) with the entries of a catalogue, each at a multiple of 4 bytes; returns their number,
 * or -1 if one is incomplete. */
PUBLIC int64_t index_catalogue(const uint8_t *entries, int64_t size, uint32_t *slots, int64_t slot_count) {
    uint64_t mask = (uint64_t)slot_count - 1;
    int64_t count = 0;
    for (int64_t at = 0; at < size; count++) {
        struct episode episode;
        if (size - at < 4 * TEXTS || at > 4ll * UINT32_MAX - 4) return -1;
        text behind = read_episode(entries + at, &episode);
        if (behind - entries > size) return -1;
        uint64_t slot = hash_text(episode.texts[KEY], episode.lengths[KEY]) & mask;
        while (slots[slot]) slot = (slot + 1) & mask;
        slots[slot] = (uint32_t)(at / 4) + 1;
        at = (behind - entries + 3) & ~3ll;
    }
    return count;
}

/* Sorts ids, 16 bytes each, by partition as row_ids.partition does, each followed by its 8 bytes of `digests`, if given;
 * `counts` gets the number of ids in each of the 64 partitions. */
PUBLIC void partition_ids(const uint8_t *ids, const uint8_t *digests, int64_t count, uint32_t counts[64], uint8_t *out) {
    uint64_t place[64], size = digests ? 24 : 16, begin = 0;
    memset(counts, 0, 64 * sizeof *counts);
    for (int64_t i = 0; i < count; i++) counts[(ids[16 * i + 3] ^ ids[16 * i + 15]) & 63]++;
    for (int i = 0; i < 64; i++) { place[i] = begin; begin += counts[i]; }
    for (int64_t i = 0; i < count; i++) {
        uint8_t *to = out + size * place[(ids[16 * i + 3] ^ ids[16 * i + 15]) & 63]++;
        memcpy(to, ids + 16 * i, 16);
        if (digests) memcpy(to + 16, digests + 8 * i, 8);
    }
}

/* Indexes the lines of a published log (`size` bytes, a newline at the end): writes the packed cell of this column and
 * the digest of each line that has one, and returns their number. `*lines` counts the lines that are not empty. */
PUBLIC int64_t index_lines(const uint8_t *log, int64_t size, int64_t column, uint8_t *ids, uint8_t *digests, int64_t *lines) {
    text at = log, end = log + size;
    int64_t count = 0;
    for (*lines = 0; at < end;) {
        text line_end = memchr(at, '\n', (size_t)(end - at)), cell = at;
        *lines += line_end > at;
        for (int64_t i = 0; i < column && cell; i++) { cell = memchr(cell, '\t', (size_t)(line_end - cell)); cell += cell != NULL; }
        if (cell && line_end > at) {
            text cell_end = memchr(cell, '\t', (size_t)(line_end - cell));
            struct value id = { .at = cell, .length = (uint32_t)((cell_end ? cell_end : line_end) - cell) };
            pack_id(&id, ids + 16 * count);
            blake2b(digests + 8 * count, 8, NULL, at, line_end - at);
            count++;
        }
        at = line_end + 1;
    }
    return count;
}

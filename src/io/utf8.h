/* io/utf8.h - one step over UTF-8 text (RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF). */
#ifndef IO_UTF8_H
#define IO_UTF8_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the character at `text` (length >= 1). Where it is not a character: *valid = false and the length of the longest
 * start of one, at least 1, which is what one U+FFFD stands for (Unicode 15, section 3.9, "maximal subparts"). */
static inline size_t bw_utf8_step(const uint8_t *text, size_t length, bool *valid)
{
    uint8_t first = text[0];
    size_t need = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
    *valid = need > 0;
    /* The second byte's range is narrower after four of the first bytes. */
    uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80, high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    for (size_t i = 1; i < need; i++) {
        if (i >= length || text[i] < low || text[i] > high) {
            *valid = false;
            return i;
        }
        low = 0x80;
        high = 0xbf;
    }
    return need ? need : 1;
}

/* The first byte that is not UTF-8, or `length`. */
static inline size_t bw_utf8_check(const uint8_t *text, size_t length)
{
    size_t at = 0;
    while (at < length) {
        bool valid;
        size_t step = bw_utf8_step(text + at, length - at, &valid);
        if (!valid)
            return at;
        at += step;
    }
    return length;
}

#endif

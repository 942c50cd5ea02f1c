/* tokenizer_bytes.c - bytes as printable characters, and back. */
#include "data/tokenizer_parts.h"
#include "io/utf8.h"

/* The printable characters of Latin-1 stand for their own byte; the 68 other bytes, in order, for U+0100 onwards. */
static bool printable(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

void bw_alphabet_create(bw_alphabet *alphabet)
{
    uint32_t next = 0x100;
    for (size_t i = 0; i < sizeof alphabet->bytes / sizeof alphabet->bytes[0]; i++)
        alphabet->bytes[i] = -1;
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t character = printable(byte) ? byte : next++;
        char *symbol = alphabet->symbols[byte];
        alphabet->bytes[character] = (int16_t)byte;
        alphabet->sizes[byte] = character < 0x80 ? 1 : 2;
        symbol[0] = (char)(character < 0x80 ? character : 0xC0 | character >> 6);
        symbol[1] = (char)(0x80 | (character & 0x3F));
    }
}

/* The byte that a character of `size` bytes stands for, or -1. */
static int byte_of(const bw_alphabet *alphabet, const char *at, size_t size)
{
    uint32_t first = (uint8_t)at[0];
    if (size == 1)
        return first < 0x80 ? alphabet->bytes[first] : -1;
    uint32_t character = size == 2 ? (first & 0x1F) << 6 | ((uint8_t)at[1] & 0x3F) : UINT32_MAX;
    return character < sizeof alphabet->bytes / sizeof alphabet->bytes[0] ? alphabet->bytes[character] : -1;
}

int bw_alphabet_bytes(const bw_alphabet *alphabet, const char *token, size_t length, bw_text *out)
{
    size_t start = out->length;
    bool valid;
    for (size_t at = 0, step; at < length; at += step) {
        step = bw_utf8_step((const uint8_t *)token + at, length - at, &valid);
        int byte = valid ? byte_of(alphabet, token + at, step) : -1;
        if (byte < 0) {
            out->length = start;
            return bw_text_add(out, token, length);
        }
        BW_TRY(bw_text_add(out, &(char){(char)byte}, 1));
    }
    return BW_OK;
}

int bw_add_lossy(bw_text *out, const char *bytes, size_t length)
{
    bool valid;
    for (size_t at = 0, step; at < length; at += step) {
        step = bw_utf8_step((const uint8_t *)bytes + at, length - at, &valid);
        BW_TRY(valid ? bw_text_add(out, bytes + at, step) : bw_text_add(out, "\xEF\xBF\xBD", 3));
    }
    return BW_OK;
}

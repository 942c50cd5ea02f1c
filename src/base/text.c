/* A growable string, and the nearest of a list of words. */
#include "breakwater/base.h"
#include <stdarg.h>
#include <string.h>

enum { FIRST_CAPACITY = 64, LONGEST_WORD = 64 };

/* Room for `more` bytes and the terminator. */
static int reserve(bw_text *text, size_t more)
{
    size_t need;
    if (__builtin_add_overflow(text->length, more, &need) || need > (size_t)INT64_MAX / 2)
        return bw_fail(BW_SYSTEM, "text of more than %zu bytes", text->length);
    if (need < text->capacity)
        return BW_OK;
    size_t capacity = text->capacity ? text->capacity : FIRST_CAPACITY;
    while (capacity <= need)
        capacity *= 2;
    char *data;
    BW_TRY(BW_NEW(data, capacity, "text"));
    if (text->length)
        memcpy(data, text->data, text->length);
    bw_free(text->data);
    text->data = data;
    text->capacity = capacity;
    return BW_OK;
}

int bw_text_add(bw_text *text, const void *bytes, size_t length)
{
    BW_TRY(reserve(text, length));
    if (length)
        memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = 0;
    return BW_OK;
}

int bw_text_addf(bw_text *text, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0)
        return bw_fail(BW_BUG, "text cannot be formatted by '%s'", format);
    BW_TRY(reserve(text, (size_t)length));
    va_start(arguments, format);
    vsnprintf(text->data + text->length, (size_t)length + 1, format, arguments);
    va_end(arguments);
    text->length += (size_t)length;
    return BW_OK;
}

int bw_text_add_word(bw_text *text, const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
    if (*word && !word[strspn(word, plain)])
        return bw_text_add(text, word, strlen(word));
    BW_TRY(bw_text_add(text, "'", 1));
    for (; *word; word++)
        BW_TRY(*word == '\'' ? bw_text_addf(text, "'\\''") : bw_text_add(text, word, 1));
    return bw_text_add(text, "'", 1);
}

void bw_text_free(bw_text *text)
{
    bw_free(text->data);
    *text = (bw_text){0};
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* Edits that turn one word into the other: insert, delete, replace, swap neighbours. */
static int distance(const char *a, size_t length_a, const char *b, size_t length_b)
{
    int rows[3][LONGEST_WORD + 1];
    for (size_t j = 0; j <= length_b; j++)
        rows[0][j] = (int)j;
    for (size_t i = 1; i <= length_a; i++) {
        int *row = rows[i % 3], *above = rows[(i + 2) % 3], *above_that = rows[(i + 1) % 3];
        row[0] = (int)i;
        for (size_t j = 1; j <= length_b; j++) {
            row[j] = smaller(above[j - 1] + (a[i - 1] != b[j - 1]), 1 + smaller(above[j], row[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = smaller(row[j], above_that[j - 2] + 1);
        }
    }
    return rows[length_a % 3][length_b];
}

const char *bw_nearest(const char *word, const char *const *candidates, int count)
{
    size_t length = strlen(word);
    if (length == 0 || length > LONGEST_WORD)
        return NULL;
    const char *nearest = NULL;
    int best = 2 + ((int)length - 1) / 3; /* as many edits as that make another word */
    for (int i = 0; i < count; i++) {
        size_t other = strlen(candidates[i]);
        if (other == 0 || other > LONGEST_WORD)
            continue;
        int edits = distance(word, length, candidates[i], other);
        size_t shorter = other < length ? other : length;
        if (shorter >= 3 && strncmp(word, candidates[i], shorter) == 0)
            edits = smaller(edits, 1); /* a word cut short, or one with a tail (batch-size for batch), is near */
        if (edits < best) {
            best = edits;
            nearest = candidates[i];
        }
    }
    return nearest;
}

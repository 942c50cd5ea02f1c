/* Dropout whose mask is a function of (seed, step, sample, position, stream, column) alone: the same for any packing
 * of the rows, any rank and any number of threads. A bit a column is kept for the backward pass: drawing it again would cost more.
 *
 * A Philox value holds four words of 32 bits, that is eight columns of 16 bits. Columns 8b .. 8b+7 of a row draw from
 *   bw_rng({seed, BW_PURPOSE_DROPOUT, step, sample, layer = stream}, position * ceil(C / 8) + b),
 * low half of word 0 first. The counter is unique for all (position, b) of one C, and a stream has one C. */
#include "breakwater/base.h"
#include "breakwater/num.h"
#include "num/draw.h"
#include "num/dropout.h"
#include "num/hot.h"
#include <math.h>
#include <string.h>

enum { DRAWS = 8, GROUP = 32, WORD = 32 }; /* columns a Philox value serves; values drawn at a time; columns of a word */
_Static_assert(GROUP % BW_DRAW_UNIT == 0, "draws are written in whole units");

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the halves of a word are read as they lie in memory: this code is for little-endian machines"
#endif

/* Bits of n columns; the last word is filled up with zeros. A whole word has a loop of its own, whose length the compiler knows. */
BW_HOT static void mask_span(uint32_t *kept, const uint16_t *draws, uint32_t threshold, int64_t n)
{
    for (int64_t c = 0; c < n; c += WORD) {
        uint32_t word = 0;
        if (n - c >= WORD)
            for (int bit = 0; bit < WORD; bit++)
                word |= (uint32_t)(draws[c + bit] >= threshold) << bit;
        else
            for (int bit = 0; bit < n - c; bit++)
                word |= (uint32_t)(draws[c + bit] >= threshold) << bit;
        kept[c / WORD] = word;
    }
}

static void draw_row(uint32_t *kept, bw_draw *draw, const bw_key *key, uint32_t first, uint32_t threshold, int64_t C)
{
    uint32_t words[GROUP][4];
    uint16_t draws[GROUP * DRAWS];
    for (int64_t c = 0; c < C; c += GROUP * DRAWS) {
        int64_t n = C - c < GROUP * DRAWS ? C - c : GROUP * DRAWS;
        draw(words, (n + DRAWS - 1) / DRAWS, first + (uint32_t)(c / DRAWS), key);
        memcpy(draws, words, sizeof(uint16_t) * (size_t)n);
        mask_span(kept + c / WORD, draws, threshold, n);
    }
}

static uint32_t threshold_of(float p)
{
    return (uint32_t)lrintf(p * 65536.0f);
}

float bw_drop_scale(float p)
{
    const uint32_t threshold = threshold_of(p);
    return threshold < 65536 ? 65536.0f / (float)(65536 - threshold) : 0.0f;
}

int64_t bw_mask_words(int64_t C)
{
    return (C + WORD - 1) / WORD;
}

void bw_dropout_draw(uint32_t *kept, const int32_t *samples, const int32_t *positions, uint64_t seed, uint32_t step, uint32_t stream, float p,
                     int64_t T, int64_t C)
{
    const uint32_t threshold = threshold_of(p), blocks = (uint32_t)((C + DRAWS - 1) / DRAWS);
    bw_draw *draw = bw_draw_fastest();
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        bw_key key = {.seed = seed, .purpose = BW_PURPOSE_DROPOUT, .step = step, .sample = (uint32_t)samples[t], .layer = stream};
        draw_row(kept + t * bw_mask_words(C), draw, &key, (uint32_t)positions[t] * blocks, threshold, C);
    }
}

/* ---- apply ---------------------------------------------------------------------------------------------------------- */

/* The columns of one word, n of them; all 32 but at the end of a row. */
BW_INLINE void apply_word(float *y, const float *x, uint32_t word, float scale, const int n, const bool add)
{
#pragma omp simd
    for (int bit = 0; bit < n; bit++) {
        const float value = (word >> bit & 1u) != 0 ? x[bit] * scale : 0.0f;
        y[bit] = add ? y[bit] + value : value;
    }
}

BW_INLINE void apply_row(float *y, const float *x, const uint32_t *kept, float scale, int64_t C, const bool add)
{
    const int64_t whole = C / WORD;
    for (int64_t w = 0; w < whole; w++)
        apply_word(y + w * WORD, x + w * WORD, kept[w], scale, WORD, add);
    if (C % WORD > 0)
        apply_word(y + whole * WORD, x + whole * WORD, kept[whole], scale, (int)(C % WORD), add);
}

BW_HOT void bw_drop_row(float *y, const float *x, const uint32_t *kept, float scale, int64_t C)
{
    apply_row(y, x, kept, scale, C, false);
}

BW_HOT static void drop_row_add(float *y, const float *x, const uint32_t *kept, float scale, int64_t C)
{
    apply_row(y, x, kept, scale, C, true);
}

void bw_dropout(float *y, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C)
{
    const float scale = bw_drop_scale(p);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        bw_drop_row(y + t * C, x + t * C, kept + t * bw_mask_words(C), scale, C);
}

void bw_dropout_add(float *y, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C)
{
    const float scale = bw_drop_scale(p);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        drop_row_add(y + t * C, x + t * C, kept + t * bw_mask_words(C), scale, C);
}

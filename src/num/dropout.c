/* Dropout whose mask is a function of (seed, step, sample, position, stream, column) alone: the same for any packing
 * of the rows, any rank and any number of threads. A bit a column is kept for the backward pass: drawing it again would cost more.
 *
 * A Philox value holds four words of 32 bits, that is eight columns of 16 bits. Columns 8b .. 8b+7 of a row draw from
 *   bw_rng({seed, BW_PURPOSE_DROPOUT, step, sample, layer = stream}, position * ceil(C / 8) + b),
 * low half of word 0 first. The counter is unique for all (position, b) of one C, and a stream has one C. */
#include "breakwater/base.h"
#include "breakwater/num.h"
#include "num/hot.h"
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { DRAWS = 8, GROUP = 32, WORD = 32 }; /* columns a Philox value serves; values drawn at a time, a multiple of 8; columns of a word */

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the halves of a word are read as they lie in memory: this code is for little-endian machines"
#endif

/* Philox4x32-10 (Salmon et al. 2011): multipliers, and what a round adds to the two halves of the key. */
#define EVEN_MULTIPLIER 0xD2511F53u
#define ODD_MULTIPLIER  0xCD9E8D57u
#define KEY_STEP_LOW    0x9E3779B9u /* golden ratio */
#define KEY_STEP_HIGH   0xBB67AE85u /* sqrt(3) - 1 */

typedef void draw_function(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key);

static void draw_plain(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key)
{
    for (int64_t i = 0; i < count; i++)
        bw_rng(key, first + (uint32_t)i, words[i]);
}

#if defined(__x86_64__)
/* Four values at a time, a word in each 64-bit lane. The upper halves hold rubbish on the way: a multiplication reads
 * the lower halves only. Writes count rounded up to a multiple of 4. */
__attribute__((target("avx2"))) static void draw_avx2(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key)
{
    const __m256i even_multiplier = _mm256_set1_epi64x(EVEN_MULTIPLIER), odd_multiplier = _mm256_set1_epi64x(ODD_MULTIPLIER);
    for (int64_t i = 0; i < count; i += 4) {
        uint32_t low = (uint32_t)key->seed, high = (uint32_t)(key->seed >> 32), at = first + (uint32_t)i;
        __m256i w0 = _mm256_setr_epi64x(at, at + 1, at + 2, at + 3), w1 = _mm256_set1_epi64x(key->sample), w2 = _mm256_set1_epi64x(key->step);
        __m256i w3 = _mm256_set1_epi64x((key->layer & 0xffff) | key->purpose << 16);
        for (int round = 0; round < 10; round++, low += KEY_STEP_LOW, high += KEY_STEP_HIGH) {
            __m256i even = _mm256_mul_epu32(w0, even_multiplier), odd = _mm256_mul_epu32(w2, odd_multiplier);
            w0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(odd, 32), w1), _mm256_set1_epi64x(low));
            w2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(even, 32), w3), _mm256_set1_epi64x(high));
            w1 = odd;
            w3 = even;
        }
        __m256i front = _mm256_blend_epi32(w0, _mm256_slli_epi64(w1, 32), 0xAA), back = _mm256_blend_epi32(w2, _mm256_slli_epi64(w3, 32), 0xAA);
        __m256i values02 = _mm256_unpacklo_epi64(front, back), values13 = _mm256_unpackhi_epi64(front, back);
        _mm256_storeu_si256((__m256i *)words[i], _mm256_permute2x128_si256(values02, values13, 0x20));
        _mm256_storeu_si256((__m256i *)words[i + 2], _mm256_permute2x128_si256(values02, values13, 0x31));
    }
}

/* The same, eight at a time. Writes count rounded up to a multiple of 8. */
__attribute__((target("avx512f"))) static void draw_avx512(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key)
{
    const __m512i even_multiplier = _mm512_set1_epi64(EVEN_MULTIPLIER), odd_multiplier = _mm512_set1_epi64(ODD_MULTIPLIER);
    const __m512i steps = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), first_four = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  last_four = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int64_t i = 0; i < count; i += 8) {
        uint32_t low = (uint32_t)key->seed, high = (uint32_t)(key->seed >> 32);
        __m512i w0 = _mm512_add_epi64(_mm512_set1_epi64(first + (uint32_t)i), steps), w1 = _mm512_set1_epi64(key->sample),
                w2 = _mm512_set1_epi64(key->step);
        __m512i w3 = _mm512_set1_epi64((key->layer & 0xffff) | key->purpose << 16);
        for (int round = 0; round < 10; round++, low += KEY_STEP_LOW, high += KEY_STEP_HIGH) {
            __m512i even = _mm512_mul_epu32(w0, even_multiplier), odd = _mm512_mul_epu32(w2, odd_multiplier);
            w0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(odd, 32), w1, _mm512_set1_epi64(low), 0x96); /* exclusive or of three */
            w2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(even, 32), w3, _mm512_set1_epi64(high), 0x96);
            w1 = odd;
            w3 = even;
        }
        __m512i front = _mm512_mask_blend_epi32(0xAAAA, w0, _mm512_slli_epi64(w1, 32)),
                back = _mm512_mask_blend_epi32(0xAAAA, w2, _mm512_slli_epi64(w3, 32));
        __m512i even_values = _mm512_unpacklo_epi64(front, back), odd_values = _mm512_unpackhi_epi64(front, back);
        _mm512_storeu_si512(words[i], _mm512_permutex2var_epi64(even_values, first_four, odd_values));
        _mm512_storeu_si512(words[i + 4], _mm512_permutex2var_epi64(even_values, last_four, odd_values));
    }
}
#endif

static draw_function *fastest_draw(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return draw_avx512;
    if (__builtin_cpu_supports("avx2"))
        return draw_avx2;
#endif
    return draw_plain;
}

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

static void draw_row(uint32_t *kept, draw_function *draw, const bw_key *key, uint32_t first, uint32_t threshold, int64_t C)
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

static float scale_of(float p)
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
    draw_function *draw = fastest_draw();
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

BW_HOT static void drop_row(float *y, const float *x, const uint32_t *kept, float scale, int64_t C)
{
    apply_row(y, x, kept, scale, C, false);
}

BW_HOT static void drop_row_add(float *y, const float *x, const uint32_t *kept, float scale, int64_t C)
{
    apply_row(y, x, kept, scale, C, true);
}

void bw_dropout(float *y, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C)
{
    const float scale = scale_of(p);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        drop_row(y + t * C, x + t * C, kept + t * bw_mask_words(C), scale, C);
}

void bw_dropout_add(float *y, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C)
{
    const float scale = scale_of(p);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++)
        drop_row_add(y + t * C, x + t * C, kept + t * bw_mask_words(C), scale, C);
}

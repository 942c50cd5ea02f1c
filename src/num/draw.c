/* Philox, several values side by side. The upper halves of 64-bit lanes hold rubbish on the way: a multiplication reads the lower halves only. */
#include "num/draw.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Philox4x32-10 (Salmon et al. 2011): multipliers, and what a round adds to the two halves of the key. */
#define EVEN_MULTIPLIER 0xD2511F53u
#define ODD_MULTIPLIER  0xCD9E8D57u
#define KEY_STEP_LOW    0x9E3779B9u /* golden ratio */
#define KEY_STEP_HIGH   0xBB67AE85u /* sqrt(3) - 1 */

void bw_draw_plain(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key)
{
    for (int64_t i = 0; i < count; i++)
        bw_rng(key, first + (uint32_t)i, words[i]);
}

#if defined(__x86_64__)
/* Four values at a time, a word in each 64-bit lane. Writes count rounded up to a multiple of 4. */
__attribute__((target("avx2"))) void bw_draw_avx2(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key)
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
__attribute__((target("avx512f"))) void bw_draw_avx512(uint32_t (*words)[4], int64_t count, uint32_t first, const bw_key *key)
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

bw_draw *bw_draw_fastest(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        return bw_draw_avx512;
    if (__builtin_cpu_supports("avx2"))
        return bw_draw_avx2;
#endif
    return bw_draw_plain;
}

/* The tile of tile_body.h once more, where a step of its sums is of pairs, and matrices laid out for it. */
#include "num/pairs.h"
#include "num/row.h"
#if defined(__x86_64__)
#include <immintrin.h>

#define LANES                     16
#define ROWS                      12
#define TARGET                    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma")))
#define NAME(x)                   pairs_##x
#define SPREAD(x)                 _mm512_set1_ps(x)
#define MULTIPLY_ADD(a, b, c)     _mm512_fmadd_ps(a, b, c)
#define MULTIPLY_ADD_ONE(a, b, c) __builtin_fmaf(a, b, c)
#define STEP(a, b, c)             _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#define STEP_ONE(a, b, c)         _mm_cvtss_f32(_mm_dpbf16_ps(_mm_set_ss(c), (__m128bh)_mm_set_ss(a), (__m128bh)_mm_set_ss(b)))
#include "num/tile_body.h"

bool bw_pairs_are_here(void)
{
    return bw_rows_narrow_fast() && __builtin_cpu_supports("avx512dq");
}

void bw_tile_pairs(const bw_tile_call *call)
{
    pairs_tile(call);
}

void bw_pairs_along_rows(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols)
{
    bw_rows_narrow((uint16_t *)(void *)to, 2 * ldt, from, ld, rows, cols);
}

/* ---- along columns -------------------------------------------------------------------------------------------------- */

#define PAIRS __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

/* Entries of a row beside those of the next one, ld further on, or beside zeros. */
PAIRS static inline __m512i beside(__m512 low, __m512 high)
{
    const __m512i upper = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
    return _mm512_or_si512(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low)), _mm512_slli_epi32(upper, 16));
}

PAIRS static void pair_rows(float *to, const float *from, int64_t ld, bool last, int64_t cols)
{
    const __m512 zero = _mm512_setzero_ps();
    int64_t j = 0;
    for (; j + 16 <= cols; j += 16)
        _mm512_storeu_si512(to + j, beside(_mm512_loadu_ps(from + j), last ? zero : _mm512_loadu_ps(from + ld + j)));
    const __mmask16 rest = (__mmask16)((1u << (cols - j)) - 1);
    if (rest)
        _mm512_mask_storeu_epi32(to + j, rest,
                                 beside(_mm512_maskz_loadu_ps(rest, from + j), last ? zero : _mm512_maskz_loadu_ps(rest, from + ld + j)));
}

void bw_pairs_along_columns(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i += 2)
        pair_rows(to + i / 2 * ldt, from + i * ld, ld, i + 1 == rows, cols);
}

#else

/* Nobody asks for the others then. */
bool bw_pairs_are_here(void)
{
    return false;
}

void bw_tile_pairs(const bw_tile_call *call)
{
    (void)call;
}

void bw_pairs_along_rows(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols)
{
    (void)to, (void)ldt, (void)from, (void)ld, (void)rows, (void)cols;
}

void bw_pairs_along_columns(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols)
{
    (void)to, (void)ldt, (void)from, (void)ld, (void)rows, (void)cols;
}
#endif

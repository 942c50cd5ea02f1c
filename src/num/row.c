/* Loops over one row of scores, or of a matrix that is rounded. */
#include "num/row.h"
#include "num/hot.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { LANES = 16 }; /* entries side by side in a search */

BW_HOT float bw_row_highest(const float *z, int64_t n, float start)
{
    float lanes[LANES], best = start;
    for (int i = 0; i < LANES; i++)
        lanes[i] = start;
    int64_t whole = n - n % LANES;
    for (int64_t j = 0; j < whole; j += LANES)
#pragma omp simd
        for (int i = 0; i < LANES; i++)
            lanes[i] = z[j + i] > lanes[i] ? z[j + i] : lanes[i];
    for (int i = 0; i < LANES; i++)
        best = lanes[i] > best ? lanes[i] : best;
    for (int64_t j = whole; j < n; j++)
        best = z[j] > best ? z[j] : best;
    return best;
}

BW_HOT void bw_row_cap(float *z, int64_t n, float cap)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        z[i] = cap * bw_tanh(z[i] / cap);
}

BW_HOT float bw_row_exp(float *z, int64_t n, float highest)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        z[i] = bw_exp(z[i] - highest);
        sum += z[i];
    }
    return sum;
}

BW_HOT void bw_row_scale(float *x, int64_t n, float factor)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++)
        x[i] *= factor;
}

BW_HOT void bw_row_widen(float *to, const uint16_t *from, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = bw_from_bf16(from[i]);
}

BW_HOT static void rows_narrow(uint16_t *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t n)
{
    for (int64_t j = 0; j < rows; j++, to += ldt, from += ld)
        for (int64_t i = 0; i < n; i++)
            to[i] = bw_to_bf16(from[i]);
}

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) static void rows_narrow_avx512(uint16_t *to, int64_t ldt, const float *from,
                                                                                               int64_t ld, int64_t rows, int64_t n)
{
    for (int64_t row = 0; row < rows; row++, to += ldt, from += ld) {
        int64_t j = 0;
        for (; j + 32 <= n; j += 32)
            _mm512_storeu_si512(to + j, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + j + 16), _mm512_loadu_ps(from + j)));
        for (; j + 16 <= n; j += 16)
            _mm256_storeu_si256((__m256i *)(to + j), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + j)));
        const __mmask16 rest = (__mmask16)((1u << (n - j)) - 1);
        if (rest) /* some CPUs take tens of cycles for a masked store */
            _mm256_mask_storeu_epi16(to + j, rest, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(rest, from + j)));
    }
}
#endif

bool bw_rows_narrow_fast(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

void bw_rows_narrow(uint16_t *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t n)
{
#if defined(__x86_64__)
    if (bw_rows_narrow_fast()) {
        rows_narrow_avx512(to, ldt, from, ld, rows, n);
        return;
    }
#endif
    rows_narrow(to, ldt, from, ld, rows, n);
}

void bw_row_narrow(uint16_t *to, const float *from, int64_t n)
{
    bw_rows_narrow(to, n, from, n, 1, n);
}

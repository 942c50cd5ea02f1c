/* Loops over one row of scores. */
#include "num/row.h"
#include "num/hot.h"

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

BW_HOT void bw_row_narrow(uint16_t *to, const float *from, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = bw_to_bf16(from[i]);
}

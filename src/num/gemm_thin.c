/* c = alpha a b^T + beta c for few rows of a, as in decoding: BLIS packs all of b first, which costs more than the
 * product. Here b, the weights, is read once, in place, each row meeting four rows of a at a time. Chosen by shape
 * alone, and every entry is summed by one thread in one order, so that the number of threads leaves no trace. */
#include "num/gemm.h"
#include "num/hot.h"

enum {
    FEW_ROWS = 8, /* up to here it is faster than BLIS, measured (breakwater bench --parts gemm): 1.5 times for m = 1 and 4 */
    FOUR = 4
};

bool bw_gemm_is_thin(const bw_gemm_call *call)
{
    return !call->trans_a && call->trans_b && call->m <= FEW_ROWS;
}

/* A row of b times four rows of a. */
BW_HOT static void dot_four(float sums[FOUR], const float *b, const float *const a[FOUR], int64_t k)
{
    const float *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t l = 0; l < k; l++) {
        s0 += a0[l] * b[l];
        s1 += a1[l] * b[l];
        s2 += a2[l] * b[l];
        s3 += a3[l] * b[l];
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

static void column(const bw_gemm_call *call, int64_t j)
{
    for (int64_t top = 0; top < call->m; top += FOUR) {
        int64_t count = call->m - top < FOUR ? call->m - top : FOUR;
        const float *rows[FOUR];
        float sums[FOUR];
        for (int64_t i = 0; i < FOUR; i++)
            rows[i] = call->a + (top + (i < count ? i : 0)) * call->lda; /* a missing row: the first again */
        dot_four(sums, call->b + j * call->ldb, rows, call->k);
        for (int64_t i = 0; i < count; i++) {
            float *c = call->c + (top + i) * call->ldc + j;
            *c = call->beta == 0.0f ? call->alpha * sums[i] : call->alpha * sums[i] + call->beta * *c;
        }
    }
}

void bw_gemm_thin(const bw_gemm_call *call, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t j = 0; j < call->n; j++)
        column(call, j);
}

/* The GEMM seam: which backend serves a precision, and how much was multiplied. */
#include "breakwater/base.h"
#include "breakwater/num.h"
#include "num/gemm.h"
#include <stdatomic.h>
#include <string.h>

static const bw_gemm_backend *const backends[] = {&bw_gemm_blis};
enum { BACKENDS = sizeof backends / sizeof backends[0] };

static const bw_gemm_backend *chosen = &bw_gemm_blis; /* fp32 until bw_gemm_start says otherwise */
static _Atomic int64_t flops;

int bw_gemm_start(const char *precision, int threads)
{
    for (int i = 0; i < BACKENDS; i++)
        if (strcmp(backends[i]->precision, precision) == 0) {
            chosen = backends[i];
            return chosen->start(threads);
        }
    return bw_fail(BW_USAGE, "precision '%s' is not known here: use fp32", precision);
}

const char *bw_gemm_describe(void)
{
    return chosen->describe();
}

void bw_gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b, int64_t ldb,
             float beta, float *c, int64_t ldc)
{
    bw_gemm_call call = {m, n, k, alpha, beta, a, b, c, lda, ldb, ldc, trans_a, trans_b};
    if (m <= 0 || n <= 0)
        return;
    chosen->multiply(&call);
    atomic_fetch_add_explicit(&flops, 2 * m * n * k, memory_order_relaxed);
}

double bw_gemm_flops(void)
{
    return (double)atomic_load_explicit(&flops, memory_order_relaxed);
}

/* What stands behind the GEMM seam. */
#ifndef NUM_GEMM_H
#define NUM_GEMM_H
#include <stdbool.h>
#include <stdint.h>

typedef struct bw_gemm_call {
    int64_t m, n, k;
    float alpha, beta;
    const float *a, *b;
    float *c;
    int64_t lda, ldb, ldc;
    bool trans_a, trans_b;
} bw_gemm_call;

typedef struct bw_gemm_backend {
    const char *precision;     /* the value of --precision that asks for it */
    int (*start)(int threads); /* once, before the first multiply */
    const char *(*describe)(void);
    void (*multiply)(const bw_gemm_call *call);
} bw_gemm_backend;

extern const bw_gemm_backend bw_gemm_blis;

/* Few rows of a times b^T: for fp32 backends whose packing does not pay there. */
bool bw_gemm_is_thin(const bw_gemm_call *call);
void bw_gemm_thin(const bw_gemm_call *call, int threads);

#endif

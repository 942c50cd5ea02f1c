/* What stands behind the GEMM seam. */
#ifndef NUM_GEMM_H
#define NUM_GEMM_H
#include "breakwater/num.h"

typedef struct bw_gemm_call {
    int64_t m, n, k;
    float alpha, beta;
    const float *a, *b;
    const void *weight; /* packed, instead of b; a comes dense then, and alpha is 1 */
    float *c;
    int64_t lda, ldb, ldc;
    bool trans_a, trans_b;
    const void *ready_a, *ready_b;  /* the operands as num/operand.c wrote them, or NULL; a or b may be NULL then */
    int64_t ld_ready_a, ld_ready_b; /* for a backend that cuts sums; callers leave 0 */
} bw_gemm_call;

/* An operand that is ready is dense, and has whole units of columns, and of rows, the last of them zeros: k of a tile of AMX. */
enum { BW_READY_UNIT = 32 };
int64_t bw_ready_rows(int64_t rows);

typedef struct bw_gemm_backend {
    const char *precision;        /* the value of --precision that asks for it */
    const char *name;             /* for a message that says why it is not taken */
    const char *weight_type;      /* in which it holds frozen weights */
    bool forward_only;            /* packs weights that have no backward pass; the others stay dense */
    const char *(*missing)(void); /* NULL: this build and this CPU have it; else what is missing */
    int (*start)(int threads);    /* before the first multiply, and to change the number of threads */
    void (*stop)(void);           /* give back what it holds, before another is started; NULL: nothing */
    const char *(*describe)(void);
    void (*multiply)(const bw_gemm_call *call);
    /* NULL, both: a frozen weight stays the dense matrix. */
    int64_t (*weight_bytes)(int64_t rows, int64_t cols, bw_use use);
    void (*pack)(void *weight, bw_unpacked from, int64_t rows, int64_t cols, bw_use use);
    /* 0 and NULL: an operand is taken as it lies. */
    int64_t entry_bytes;                                                /* of an operand that is ready */
    void (*put)(void *ready, int64_t at, const float *from, int64_t n); /* n entries of it */
} bw_gemm_backend;

const bw_gemm_backend *bw_gemm_backend_chosen(void);

extern const bw_gemm_backend bw_gemm_onednn;      /* bf16, where the CPU multiplies it */
extern const bw_gemm_backend bw_gemm_onednn_fp32; /* fp32, where the CPU has AVX512 */
extern const bw_gemm_backend bw_gemm_blis;        /* fp32 */
extern const bw_gemm_backend bw_gemm_bf16;        /* bf16 operands anywhere, on BLIS */
extern const bw_gemm_backend bw_gemm_onednn_full; /* the same code as bw_gemm_onednn with operands of fp32: for its test */

/* For fp32 backends, where their packing does not pay: a few rows of a times b^T, and up to 64 rows or columns. */
bool bw_gemm_is_thin(const bw_gemm_call *call);
void bw_gemm_thin(const bw_gemm_call *call, int threads);
bool bw_gemm_is_narrow(const bw_gemm_call *call);
void bw_gemm_narrow(const bw_gemm_call *call, int threads);

#endif

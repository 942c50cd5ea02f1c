/* oneDNN's matrix products, kept by shape, for the backends that stand on it; only onednn.c calls the library. One type of operands at a time; what
 * is written is fp32. A product uses all threads, so none is called inside a parallel region. Where its kernel is fast (bw_onednn_is_fast), k is at
 * most `depth` (bw_onednn_start) and a is not turned, an entry has the same bits for any number of rows and threads.
 *
 * oneDNN fails only where memory ends or where it was asked for something wrong; a product cannot report that, so the program ends there, as it does
 * inside BLIS. */
#ifndef NUM_ONEDNN_H
#define NUM_ONEDNN_H
#include "num/gemm.h"

/* c = alpha op(a) op(b), or c += that; c is dense, m x n. */
typedef struct bw_onednn_shape {
    int64_t m, n, k;
    int64_t lda, ldb;
    bool trans_a, trans_b;
    bool packed; /* b is what bw_onednn_pack wrote; ldb and trans_b do not count */
    bool add;
    float alpha;
} bw_onednn_shape;

typedef struct bw_onednn_buffer { /* grows; what it held is lost then */
    void *data;
    int64_t bytes;
} bw_onednn_buffer;

const char *bw_onednn_kernels(bool half); /* "AMX", "AVX512-BF16", "AVX512"; NULL: this CPU has none that are fast for bf16, or for fp32 */
/* Opens the library, once a process. What was kept is given back; packed weights are void. depth: the most terms of a
 * sum that a product, its k, may have for the bits to be the same for any number of rows and threads; 0: any number. */
int bw_onednn_start(const char *how, bool half, int64_t depth, int threads);
const char *bw_onednn_describe(void);
bool bw_onednn_is_half(void); /* operands are bf16, else fp32 */
/* BW_SYSTEM where this oneDNN has no fast kernels for packed and plain products on this CPU. */
int bw_onednn_require_fast(void);
/* Products of small integers, which every type holds and whose sums are exact: what a right kernel gives is known to the bit. */
int bw_onednn_check(const bw_gemm_backend *backend);
void bw_onednn_stop(void);

/* Does oneDNN have its fastest kind of kernel for this product? Scaling or adding may cost it that. */
bool bw_onednn_is_fast(const bw_onednn_shape *shape);
void bw_onednn_multiply(const bw_onednn_shape *shape, const void *a, const void *b, float *c);
/* Can the call's c be what oneDNN writes? It has to be dense, and where it is scaled or added to, there has to be a fast kernel that does so. */
bool bw_onednn_goes_straight(const bw_gemm_call *call, const bw_onednn_shape *shape);
/* Else: the product alone into memory of its own, from where one pass brings alpha * sums + beta * c to rows of the call's c from `first` on. turned:
 * what is multiplied is the transpose of c. */
void bw_onednn_multiply_apart(const bw_gemm_call *call, bw_onednn_shape shape, const void *a, const void *b, int64_t first, bool turned);

/* The terms of a sum that a product takes next, of the `left` that are left: all, or `depth` of them. */
int64_t bw_onednn_part(int64_t left);

/* A weight in the layout that oneDNN names for op(b), k x n: bytes, a whole number of cache lines; and packing from a plain matrix of the operands'
 * type, stored as it is (k rows of ld) or turned (n rows of ld). Where k is more than a product may have, that many rows after another. */
int64_t bw_onednn_weight_bytes(int64_t k, int64_t n);
void bw_onednn_pack(void *weight, const void *from, int64_t k, int64_t n, int64_t ld, bool turned);

void *bw_onednn_reserve(bw_onednn_buffer *buffer, int64_t bytes);
void bw_onednn_release(bw_onednn_buffer *buffer);

#endif

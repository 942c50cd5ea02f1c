/* bf16 arithmetic on any CPU: operands are rounded to bf16, to nearest even, and BLIS multiplies and sums them in fp32; a product of two bf16
 * numbers is exact there. It is what the CPUs with bf16 instructions compute, without their speed. Operands are rounded block by block on the
 * stack, so nothing is allocated, and several threads may call at once. Frozen weights are kept as bf16, half the size. */
#include "breakwater/base.h"
#include "num/gemm.h"
#include "num/hot.h"
#include "num/row.h"
#include <stdio.h>

enum { BLOCK = 256 }; /* of m, n and k: two blocks of floats, 512 KiB, fit any thread's stack and the second cache */

static char description[160] = "bf16, not started";
static int thread_count = 1;

static const char *missing(void)
{
    return NULL;
}

static int start(int threads)
{
    BW_TRY(bw_gemm_blis.start(threads));
    thread_count = threads > 0 ? threads : 1;
    snprintf(description, sizeof description, "bf16 operands on fp32 %s: no speed gained on this CPU", bw_gemm_blis.describe());
    return BW_OK;
}

static const char *describe(void)
{
    return description;
}

BW_HOT static void bf16_round(float *to, const float *from, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = bw_from_bf16(bw_to_bf16(from[i]));
}

/* Rows and columns of a stored matrix, as bf16 where it is packed. */
typedef struct operand {
    const float *full;
    const uint16_t *half;
    int64_t ld;
    bool trans;
} operand;

/* The block at (i, j) of op(X), rows x cols, rounded; it stays transposed as it was stored, with leading dimension BLOCK. */
static void take_block(float *block, const operand *x, int64_t i, int64_t j, int64_t rows, int64_t cols)
{
    const int64_t first = x->trans ? j : i, lines = x->trans ? cols : rows, at = x->trans ? i : j, length = x->trans ? rows : cols;
    for (int64_t line = 0; line < lines; line++) {
        const int64_t from = (first + line) * x->ld + at;
        if (x->half)
            bw_row_widen(block + line * BLOCK, x->half + from, length);
        else
            bf16_round(block + line * BLOCK, x->full + from, length);
    }
}

static int64_t least(int64_t left)
{
    return left < BLOCK ? left : BLOCK;
}

/* Columns [j, j + n) of c; of k the blocks one after another, so that an entry is one sum in one order. */
static void multiply_columns(const bw_gemm_call *call, const operand *a, const operand *b, int64_t j, int64_t n)
{
    float a_block[BLOCK * BLOCK], b_block[BLOCK * BLOCK];
    for (int64_t l = 0; l < call->k; l += BLOCK) {
        bw_gemm_call part = *call;
        part.n = n, part.k = least(call->k - l);
        part.beta = l == 0 ? call->beta : 1;
        part.a = a_block, part.b = b_block, part.lda = part.ldb = BLOCK, part.weight = NULL;
        take_block(b_block, b, l, j, part.k, n);
        for (int64_t i = 0; i < call->m; i += BLOCK) {
            part.m = least(call->m - i);
            take_block(a_block, a, i, l, part.m, part.k);
            part.c = call->c + i * call->ldc + j;
            bw_gemm_blis.multiply(&part);
        }
    }
}

static void multiply(const bw_gemm_call *call)
{
    const operand a = {.full = call->a, .ld = call->lda, .trans = call->trans_a};
    const operand b = {.full = call->b, .half = call->weight, .ld = call->ldb, .trans = call->trans_b};
    if (call->k <= 0)
        bw_gemm_blis.multiply(call); /* scales c */
    for (int64_t j = 0; call->k > 0 && j < call->n; j += BLOCK)
        multiply_columns(call, &a, &b, j, least(call->n - j));
}

/* One copy serves both directions. */
static int64_t weight_bytes(int64_t rows, int64_t cols, bw_use use)
{
    (void)use;
    return rows * cols * (int64_t)sizeof(uint16_t);
}

static void pack(void *weight, bw_unpacked from, int64_t rows, int64_t cols, bw_use use)
{
    (void)use;
    uint16_t *half = weight;
#pragma omp parallel for schedule(static) num_threads(thread_count)
    for (int64_t i = 0; i < rows; i++)
        if (from.half)
            memcpy(half + i * cols, from.half + i * from.ld, (size_t)cols * sizeof *half);
        else
            bw_row_narrow(half + i * cols, from.full + i * from.ld, cols);
}

const bw_gemm_backend bw_gemm_bf16 = {.precision = "bf16",
                                      .name = "bf16 on BLIS",
                                      .weight_type = "bf16",
                                      .missing = missing,
                                      .start = start,
                                      .describe = describe,
                                      .multiply = multiply,
                                      .weight_bytes = weight_bytes,
                                      .pack = pack};

/* bf16 on oneDNN behind the GEMM seam. Operands are rounded to bf16 (or, for a test that runs the same code where the CPU has no bf16, taken as
 * fp32), products are summed in fp32 and written as fp32.
 *
 * A frozen weight is packed for x W^T and, where there is a backward pass, for dy W. Micro-batches differ in their number of tokens, so rows are
 * taken in whole groups of ROWS and a short last group is filled up with zeros: a run meets few shapes. What oneDNN writes is c itself where it can
 * be; where rows of c lie apart or were filled up, or c is scaled by what is not 1, it is scratch, and one pass brings it to c. */
#include "breakwater/base.h"
#include "num/gemm.h"
#ifdef BW_ONEDNN
#include "num/onednn.h"
#include "num/row.h"
#include "num/tile.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    ROWS = 8,              /* rows of a product come in groups of this many: half a tile of AMX */
    FEW_ROWS = 128,        /* up to here a weight is read once for all rows, rather than a second time for the last group */
    PIECE = 64,            /* columns that are turned over at a time */
    DEPTH = BW_READY_UNIT, /* and what is summed over comes in units of this, where no packed weight says how much it is */
    AMX_DEPTH = 768,       /* terms of a sum at once, see amx_depth */
    AMX_DEPTH_LITTLE_CACHE = 256
};

static struct {
    bw_onednn_buffer a, b;
} kept;

static int64_t entry_bytes(void)
{
    return bw_onednn_is_half() ? 2 : 4;
}

static int64_t round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* ---- operands ------------------------------------------------------------------------------------------------------ */

/* op(X), rows x cols, stored as x. */
typedef struct operand {
    const float *x;
    int64_t ld, rows, cols;
    bool trans;
} operand;

/* n entries to place `at` of a matrix of the operands' type. */
static void put(void *to, int64_t at, const float *from, int64_t n)
{
    if (bw_onednn_is_half())
        bw_row_narrow((uint16_t *)to + at, from, n);
    else
        memcpy((float *)to + at, from, (size_t)n * sizeof *from);
}

/* Rows of op(X) that are columns of x: turned piece by piece in the first cache, then written along the rows. */
static void convert_turned(void *to, const operand *x, int64_t first, int64_t there, int64_t width)
{
    float piece[ROWS][PIECE];
    for (int64_t j = 0; j < x->cols; j += PIECE) {
        const int64_t length = x->cols - j < PIECE ? x->cols - j : PIECE;
        bw_transpose(piece[0], PIECE, x->x + j * x->ld + first, x->ld, length, there);
        for (int64_t i = 0; i < there; i++)
            put(to, (first + i) * width + j, piece[i], length);
    }
}

/* Rows first .. first + count of op(X), in `width` columns; what X lacks is zeros. */
static void convert(void *to, const operand *x, int64_t first, int64_t count, int64_t width)
{
    const int64_t there = x->rows - first < count ? x->rows - first : count, bytes = entry_bytes();
    if (x->trans && there > 0)
        convert_turned(to, x, first, there, width);
    for (int64_t i = 0; !x->trans && i < there; i++)
        put(to, (first + i) * width, x->x + (first + i) * x->ld, x->cols);
    for (int64_t i = 0; i < count; i++) {
        const int64_t filled = i < there ? x->cols : 0;
        memset((char *)to + ((first + i) * width + filled) * bytes, 0, (size_t)((width - filled) * bytes));
    }
}

/* op(X) in the operands' type, row-major, filled up with zeros to rows x cols. */
static void *take(bw_onednn_buffer *buffer, const operand *x, int64_t rows, int64_t cols)
{
    void *to = bw_onednn_reserve(buffer, rows * cols * entry_bytes());
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i += ROWS)
        convert(to, x, i, rows - i < ROWS ? rows - i : ROWS, cols);
    return to;
}

/* ---- multiply ------------------------------------------------------------------------------------------------------ */

/* Some columns of what is ready: oneDNN wants them dense. */
static const void *take_ready(bw_onednn_buffer *buffer, const void *ready, int64_t rows, int64_t cols, int64_t ld)
{
    if (ld == cols)
        return ready;
    const int64_t row = cols * entry_bytes(), apart = ld * entry_bytes();
    char *to = bw_onednn_reserve(buffer, rows * row);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * row, (const char *)ready + i * apart, (size_t)row);
    return to;
}

/* op(A), m rows of k entries, for the left of a product. What is ready is taken where it need not be turned over. */
static const char *take_left(const bw_gemm_call *call, int64_t k)
{
    const operand a = {call->a, call->lda, call->m, call->k, call->trans_a};
    const int64_t rows = round_up(call->m, ROWS);
    return call->ready_a && !call->trans_a ? take_ready(&kept.a, call->ready_a, rows, k, call->ld_ready_a) : take(&kept.a, &a, rows, k);
}

/* op(B) for its right: oneDNN turns it over itself, while it packs it. */
static const void *take_right(const bw_gemm_call *call, bw_onednn_shape *shape)
{
    shape->packed = call->weight != NULL;
    if (shape->packed)
        return call->weight;
    const int64_t rows = call->trans_b ? call->n : shape->k, cols = call->trans_b ? shape->k : call->n;
    const operand stored = {call->b, call->ldb, call->trans_b ? call->n : call->k, call->trans_b ? call->k : call->n, false};
    shape->trans_b = call->trans_b;
    shape->ldb = cols;
    return call->ready_b ? take_ready(&kept.b, call->ready_b, rows, cols, call->ld_ready_b) : take(&kept.b, &stored, rows, cols);
}

static void multiply_rows(const bw_gemm_call *call)
{
    bw_onednn_shape shape = {.m = call->m / ROWS * ROWS, .n = call->n, .alpha = call->alpha, .add = call->beta != 0.0f};
    shape.k = shape.lda = call->weight ? call->k : round_up(call->k, DEPTH);
    const char *left = take_left(call, shape.k);
    const void *right = take_right(call, &shape);
    const bool few = call->m % ROWS != 0 && call->m <= FEW_ROWS;
    const int64_t whole = !few && shape.m > 0 && bw_onednn_goes_straight(call, &shape) ? shape.m : 0;
    if (whole > 0)
        bw_onednn_multiply(&shape, left, right, call->c);
    if (whole == call->m)
        return;
    shape.m = round_up(call->m, ROWS) - whole;
    bw_onednn_multiply_apart(call, shape, left + whole * shape.lda * entry_bytes(), right, whole, false);
}

/* C^T = op(B)^T A, where A would have to be turned and C has more rows than columns: the gradient of a LoRA's B. What is turned is then the smaller
 * operand, and the result. */
static void multiply_turned(const bw_gemm_call *call)
{
    const bw_gemm_call turned = {.m = call->n,
                                 .n = call->m,
                                 .k = call->k,
                                 .a = call->b,
                                 .b = call->a,
                                 .lda = call->ldb,
                                 .ldb = call->lda,
                                 .trans_a = !call->trans_b,
                                 .ready_a = call->ready_b,
                                 .ready_b = call->ready_a,
                                 .ld_ready_a = call->ld_ready_b,
                                 .ld_ready_b = call->ld_ready_a};
    bw_onednn_shape shape = {.m = round_up(call->n, ROWS), .n = call->m, .k = round_up(call->k, DEPTH), .lda = round_up(call->k, DEPTH), .alpha = 1};
    const void *left = take_left(&turned, shape.k), *right = take_right(&turned, &shape);
    bw_onednn_multiply_apart(call, shape, left, right, 0, true);
}

static void multiply_part(const bw_gemm_call *call)
{
    const bool can_turn = call->b || call->trans_b; /* without b, its copy cannot be turned over */
    if (call->trans_a && can_turn && (call->m > call->n || !call->a))
        multiply_turned(call);
    else
        multiply_rows(call);
}

/* To the terms of a sum that come after the first `part->k`. */
static void advance(bw_gemm_call *part)
{
    const int64_t n = part->k;
    if (part->a)
        part->a += part->trans_a ? n * part->lda : n;
    if (part->b)
        part->b += part->trans_b ? n : n * part->ldb;
    if (part->ready_a)
        part->ready_a = (const char *)part->ready_a + (part->trans_a ? n * part->ld_ready_a : n) * entry_bytes();
    if (part->ready_b)
        part->ready_b = (const char *)part->ready_b + (part->trans_b ? n : n * part->ld_ready_b) * entry_bytes();
    if (part->weight)
        part->weight = (const char *)part->weight + bw_onednn_weight_bytes(n, part->n);
    part->beta = 1;
}

static void multiply(const bw_gemm_call *call)
{
    bw_gemm_call part = *call;
    if (call->k <= 0)
        bw_gemm_blis.multiply(call);    /* scales c */
    if (call->weight && !call->trans_b) /* a packed weight is that for x W^T, then, where it was asked for, that for dy W */
        part.weight = (const char *)call->weight + bw_onednn_weight_bytes(call->n, call->k);
    part.ld_ready_a = call->trans_a ? call->m : call->k;
    part.ld_ready_b = call->trans_b ? call->k : call->n;
    for (int64_t left = call->k; left > 0; left -= part.k, advance(&part)) {
        part.k = bw_onednn_part(left);
        multiply_part(&part);
    }
}

/* ---- frozen weights ------------------------------------------------------------------------------------------------- */

static int64_t weight_bytes(int64_t rows, int64_t cols, bw_use use)
{
    return bw_onednn_weight_bytes(cols, rows) + (use & BW_BACKWARD ? bw_onednn_weight_bytes(rows, cols) : 0);
}

static void pack(void *weight, bw_unpacked from, int64_t rows, int64_t cols, bw_use use)
{
    const operand full = {from.full, from.ld, rows, cols, false};
    const int64_t ld = from.half ? from.ld : bw_weight_ld(cols);
    const void *dense = from.half ? from.half : take(&kept.b, &full, rows, ld);
    if (use & BW_FORWARD)
        bw_onednn_pack(weight, dense, cols, rows, ld, true);
    if (use & BW_BACKWARD)
        bw_onednn_pack((char *)weight + bw_onednn_weight_bytes(cols, rows), dense, rows, cols, ld, false);
}

/* ---- start ---------------------------------------------------------------------------------------------------------- */

static void stop(void)
{
    bw_onednn_stop();
    bw_onednn_release(&kept.a);
    bw_onednn_release(&kept.b);
}

/* oneDNN's kernels for AMX cut a sum so that its part of both operands and of the result, at most 256 rows by 384 columns, fits three quarters of the
 * second cache, and from 16 threads on longer sums among threads, too (compute_blocking_heuristic_amx of its brgemm_matmul_utils.cpp): as rows and
 * threads are, and so would the bits be. 2 * depth * (256 + 384 + 64) + 4 * 256 * 384 bytes fit 1.5 MiB for 768 terms, 0.75 MiB for 256. */
static int64_t amx_depth(void)
{
    return sysconf(_SC_LEVEL2_CACHE_SIZE) >= 2 << 20 ? AMX_DEPTH : AMX_DEPTH_LITTLE_CACHE;
}

static const char *missing(void)
{
    return bw_onednn_kernels(true) ? NULL : "this CPU has neither AMX nor AVX512-BF16";
}

static int start(int threads)
{
    char how[48];
    snprintf(how, sizeof how, "bf16 by %s", bw_onednn_kernels(true));
    BW_TRY(bw_onednn_start(how, true, strcmp(bw_onednn_kernels(true), "AMX") == 0 ? amx_depth() : 0, threads));
    BW_TRY(bw_onednn_require_fast());
    return bw_onednn_check(&bw_gemm_onednn);
}

static const char *missing_nothing(void)
{
    return NULL;
}

static int start_full(int threads)
{
    BW_TRY(bw_onednn_start("fp32 in the way of bf16", false, AMX_DEPTH, threads)); /* as a CPU with AMX has it */
    return bw_onednn_check(&bw_gemm_onednn_full);
}

#define ONEDNN(precision_, name_, type_, bytes_, missing_, start_)                                                                                   \
    {                                                                                                                                                \
        .precision = (precision_), .name = (name_), .weight_type = (type_), .missing = (missing_), .start = (start_), .stop = stop,                  \
        .describe = bw_onednn_describe, .multiply = multiply, .weight_bytes = weight_bytes, .pack = pack, .entry_bytes = (bytes_), .put = put        \
    }
const bw_gemm_backend bw_gemm_onednn = ONEDNN("bf16", "oneDNN in bf16", "bf16", 2, missing, start);
const bw_gemm_backend bw_gemm_onednn_full = ONEDNN("fp32", "oneDNN in the way of bf16", "f32", 4, missing_nothing, start_full);

#endif

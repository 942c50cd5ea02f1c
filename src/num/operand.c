/* What enters several products, in the type that the backend multiplies, where that is not fp32 as it lies. The copy is dense and filled up with rows
 * of zeros to whole units, so that it can be the left or the right operand of a product, and turned over on the right. That takes whole units of
 * columns, too: a matrix with others, as no model of use has, is taken as it lies. */
#include "breakwater/num.h"
#include "num/dropout.h"
#include "num/gemm.h"
#include <string.h>

enum { PIECE = 256 }; /* columns that are dropped at a time, in the first cache; whole words of a mask */

int64_t bw_ready_rows(int64_t rows)
{
    return (rows + BW_READY_UNIT - 1) / BW_READY_UNIT * BW_READY_UNIT;
}

int64_t bw_operand_bytes(int64_t rows, int64_t cols)
{
    return cols % BW_READY_UNIT == 0 ? bw_ready_rows(rows) * cols * bw_gemm_backend_chosen()->entry_bytes : 0;
}

int64_t bw_operand_drop_bytes(int64_t T, int64_t C)
{
    const int64_t bytes = bw_operand_bytes(T, C);
    return bytes > 0 ? bytes : T * C * (int64_t)sizeof(float);
}

/* What dropout does to an operand; kept is NULL where it does nothing. */
typedef struct drop {
    const uint32_t *kept;
    float scale;
} drop;

static void write_row(const bw_gemm_backend *backend, void *ready, int64_t at, const float *x, drop d, int64_t cols)
{
    float piece[PIECE];
    if (!d.kept) {
        backend->put(ready, at, x, cols);
        return;
    }
    for (int64_t j = 0; j < cols; j += PIECE) {
        const int64_t n = cols - j < PIECE ? cols - j : PIECE;
        bw_drop_row(piece, x + j, d.kept + bw_mask_words(j), d.scale, n);
        backend->put(ready, at + j, piece, n);
    }
}

static void write_rows(void *ready, const float *x, drop d, int64_t rows, int64_t cols)
{
    const bw_gemm_backend *backend = bw_gemm_backend_chosen();
    const int64_t words = bw_mask_words(cols);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        write_row(backend, ready, i * cols, x + i * cols, (drop){d.kept ? d.kept + i * words : NULL, d.scale}, cols);
    memset((char *)ready + rows * cols * backend->entry_bytes, 0, (size_t)((bw_ready_rows(rows) - rows) * cols * backend->entry_bytes));
}

bw_operand bw_operand_ready(void *memory, const float *x, int64_t rows, int64_t cols)
{
    bw_operand operand = bw_operand_of(x, cols);
    if (rows <= 0 || bw_operand_bytes(rows, cols) == 0)
        return operand;
    write_rows(memory, x, (drop){0}, rows, cols);
    operand.ready = memory;
    return operand;
}

bw_operand bw_operand_drop(void *memory, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C)
{
    if (T <= 0 || bw_operand_bytes(T, C) == 0) {
        bw_dropout(memory, x, kept, p, T, C);
        return bw_operand_of(memory, C);
    }
    write_rows(memory, x, (drop){kept, bw_drop_scale(p)}, T, C);
    return (bw_operand){.ready = memory, .ld = C};
}

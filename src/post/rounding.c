/* One block of a dense weight: base + B A, rounded to the type of the file, and how much of B A survives. Tile by tile, so that all of it stays in
 * the caches. */
#include "post/inside.h"
#include <string.h>

enum { ROWS = 48, COLUMNS = BW_ROUND_COLUMNS, STRIDE = COLUMNS + 16 }; /* 48: what bw_fold takes at a time */

int64_t bw_round_floats(int r, int64_t cols)
{
    return (cols + COLUMNS - 1) / COLUMNS * r * STRIDE;
}

void bw_round_pack(const float *a, int64_t lda, int r, int64_t cols, float *packed)
{
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < cols; j += COLUMNS) {
        int64_t n = cols - j < COLUMNS ? cols - j : COLUMNS;
        float *panel = packed + j / COLUMNS * r * STRIDE;
        for (int k = 0; k < r; ++k)
            memcpy(panel + k * STRIDE, a + k * lda + j, (size_t)n * sizeof *a);
    }
}

typedef struct tile {
    float delta[ROWS * COLUMNS], kept[COLUMNS];
} tile;

static void round_row(tile *t, bw_dtype dtype, const float *delta, const float *base, int64_t n, void *stored, bw_fidelity *sum)
{
    sum->entries += n;
    sum->changed += bw_from_f32_sum(stored, t->kept, base, delta, dtype, (int32_t)n);
    bw_delta_kept(&sum->delta, delta, t->kept, base, n);
}

void bw_round_block(const bw_round *block, const float *base, int64_t rows, int64_t cols, void *stored, bw_fidelity *parts)
{
    int64_t width = bw_dtype_bytes(block->dtype, 1);
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < cols; j += COLUMNS) {
        tile t;
        int64_t n = cols - j < COLUMNS ? cols - j : COLUMNS;
        const float *panel = block->a + j / COLUMNS * block->r * STRIDE;
        for (int64_t i = 0; i < rows; i += ROWS) {
            int64_t m = rows - i < ROWS ? rows - i : ROWS;
            memset(t.delta, 0, (size_t)(m * COLUMNS) * sizeof *t.delta);
            bw_fold(t.delta, COLUMNS, m, n, 1, block->b + i * block->r, block->r, panel, STRIDE, block->r);
            for (int64_t row = 0; row < m; ++row) {
                int64_t at = (i + row) * cols + j;
                round_row(&t, block->dtype, t.delta + row * COLUMNS, base + at, n, (char *)stored + at * width, &parts[j / COLUMNS]);
            }
        }
    }
}

void bw_fidelity_add(bw_fidelity *sum, const bw_fidelity *part)
{
    sum->entries += part->entries;
    sum->changed += part->changed;
    sum->delta.wanted += part->delta.wanted;
    sum->delta.stored += part->delta.stored;
    sum->delta.product += part->delta.product;
    sum->delta.error += part->delta.error;
}

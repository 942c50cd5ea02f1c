/* One block of a dense weight: base + B A, rounded to the type of the file, and how much of B A survives. Tile by tile, so that all of it stays in
 * the caches. */
#include "post/inside.h"
#include <string.h>

enum { ROWS = 48, COLUMNS = BW_ROUND_COLUMNS, WIDEST = 4 }; /* 48: what bw_fold takes at a time; WIDEST: bytes of a type that is written */

int64_t bw_round_lda(int64_t n)
{
    return ((n + 15) / 16 | 1) * 16;
}

typedef struct tile {
    float delta[ROWS * COLUMNS], merged[COLUMNS], kept[COLUMNS];
    char plain[WIDEST * COLUMNS];
} tile;

/* Entries of a row whose bytes differ. */
static int64_t count_changed(const void *a, const void *b, int64_t width, int64_t n)
{
    int64_t changed = 0;
    if (width == 2)
        for (int64_t i = 0; i < n; ++i)
            changed += ((const uint16_t *)a)[i] != ((const uint16_t *)b)[i];
    else
        for (int64_t i = 0; i < n; ++i)
            changed += ((const uint32_t *)a)[i] != ((const uint32_t *)b)[i];
    return changed;
}

static void round_row(tile *t, bw_dtype dtype, const float *delta, const float *base, int64_t n, void *stored, bw_fidelity *sum)
{
    for (int64_t i = 0; i < n; ++i)
        t->merged[i] = base[i] + delta[i];
    bw_from_f32(stored, t->merged, dtype, n);
    bw_to_f32(t->kept, stored, dtype, n);
    bw_from_f32(t->plain, base, dtype, n);
    sum->entries += n;
    sum->changed += count_changed(stored, t->plain, bw_dtype_bytes(dtype, 1), n);
    bw_delta_kept(&sum->delta, delta, t->kept, base, n);
}

void bw_round_block(const bw_round *block, const float *base, int64_t rows, int64_t cols, void *stored, bw_fidelity *parts)
{
    int64_t width = bw_dtype_bytes(block->dtype, 1);
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < cols; j += COLUMNS) {
        tile t;
        int64_t n = cols - j < COLUMNS ? cols - j : COLUMNS;
        for (int64_t i = 0; i < rows; i += ROWS) {
            int64_t m = rows - i < ROWS ? rows - i : ROWS;
            memset(t.delta, 0, (size_t)(m * COLUMNS) * sizeof *t.delta);
            bw_fold(t.delta, COLUMNS, m, n, 1, block->b + i * block->r, block->r, block->a + j, block->lda, block->r);
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

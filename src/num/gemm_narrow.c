/* Products with few rows or columns by the small product of tile.h. BLIS copies both operands into panels, and here, where one of them is thin, the
 * copy would cost as much as the product: in a LoRA's products, and in decoding, where few rows meet all weights. So op(b) alone is copied,
 * DEPTH rows of 32 columns at a time, and rows of op(a) meet a panel where they lie; where they are columns of a, they are copied too.
 *
 * An entry is a sum over k in blocks of DEPTH, in order, by one thread: how the product is cut up leaves no trace. */
#include "num/gemm.h"
#include "num/hot.h"
#include "num/tile.h"

enum {
    WIDTH = 32,  /* columns of a panel: two vectors of the widest kind */
    DEPTH = 576, /* its rows, 72 KiB: in the second cache, with the rows of a that meet it */
    ROWS = 192,  /* rows of c that a panel serves */
    COPIED = 48, /* of which are copied at a time where they have to be */
    NARROW = 64, /* rows or columns, at most: above that BLIS is as fast, measured (breakwater bench --parts gemm) */
    LINE = 16    /* floats of a cache line */
};

static int64_t least(int64_t left, int64_t most)
{
    return left < most ? left : most;
}

bool bw_gemm_is_narrow(const bw_gemm_call *call)
{
    const bool adds = call->beta == 0.0f || call->beta == 1.0f;
    return adds && (call->n <= NARROW || call->m <= NARROW) && call->k > NARROW;
}

/* ---- copies --------------------------------------------------------------------------------------------------------- */

/* `depth` rows of `width` columns. A line or two in each row is no pattern that the CPU foresees, so it is told what comes next. */
BW_HOT static void panel_copy(float *to, int64_t ldt, const float *from, int64_t ld, int64_t depth, int64_t width)
{
    for (int64_t l = 0; l < depth; l++, from += ld, to += ldt) {
        for (int64_t line = 0; line < width; line += LINE)
            __builtin_prefetch(from + width + line);
        for (int64_t j = 0; j < width; j++)
            to[j] = from[j];
    }
}

/* ---- the product ---------------------------------------------------------------------------------------------------- */

typedef struct part { /* of the product: rows i.. of c, columns j.., rows l.. of op(b) */
    int64_t i, rows, j, width, l, depth;
} part;

static void take_panel(float *panel, const bw_gemm_call *call, const part *p)
{
    if (call->trans_b)
        bw_transpose(panel, WIDTH, call->b + p->j * call->ldb + p->l, call->ldb, p->width, p->depth);
    else
        panel_copy(panel, WIDTH, call->b + p->l * call->ldb + p->j, call->ldb, p->depth, p->width);
}

static void meet(const bw_gemm_call *call, const part *p, const float *a, int64_t a_row, int64_t a_column, const float *panel)
{
    float *c = call->c + p->i * call->ldc + p->j;
    const bool add = p->l > 0 || call->beta != 0.0f;
    bw_tile(&(bw_tile_call){p->rows, p->width, p->depth, call->alpha, a, a_row, a_column, panel, WIDTH, c, call->ldc, add});
}

/* Rows that are columns of a lie far apart there, unless a is narrow itself. */
static void meet_columns(const bw_gemm_call *call, const part *p, const float *panel)
{
    float copy[DEPTH * COPIED];
    part some = *p;
    for (some.i = p->i; some.i < p->i + p->rows; some.i += COPIED) {
        some.rows = least(p->i + p->rows - some.i, COPIED);
        panel_copy(copy, COPIED, call->a + p->l * call->lda + some.i, call->lda, p->depth, some.rows);
        meet(call, &some, copy, 1, COPIED, panel);
    }
}

static void multiply_part(const bw_gemm_call *call, const part *p, float *panel)
{
    take_panel(panel, call, p);
    if (!call->trans_a)
        meet(call, p, call->a + p->i * call->lda + p->l, call->lda, 1, panel);
    else if (call->lda <= NARROW)
        meet(call, p, call->a + p->l * call->lda + p->i, 1, call->lda, panel);
    else
        meet_columns(call, p, panel);
}

void bw_gemm_narrow(const bw_gemm_call *call, int threads)
{
    const int64_t blocks = (call->m + ROWS - 1) / ROWS, panels = (call->n + WIDTH - 1) / WIDTH;
#pragma omp parallel num_threads(threads)
    {
        float panel[DEPTH * WIDTH];
        for (int64_t l = 0; l < call->k; l += DEPTH)
#pragma omp for schedule(static)
            for (int64_t task = 0; task < blocks * panels; task++) {
                const int64_t i = task / panels * ROWS, j = task % panels * WIDTH;
                const part p = {i, least(call->m - i, ROWS), j, least(call->n - j, WIDTH), l, least(call->k - l, DEPTH)};
                multiply_part(call, &p, panel);
            }
    }
}

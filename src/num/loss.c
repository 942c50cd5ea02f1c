/* Cross-entropy without logits: the vocabulary is walked in chunks with a running maximum, and the gradient grows
 * beside it as the probability-weighted sum of head rows (the way of FlashAttention, Dao et al. 2022), so that loss
 * and gradient take two products a chunk. */
#include "breakwater/num.h"
#include "num/hot.h"
#include "num/row.h"
#include <math.h>

enum { CHUNK = 1024 }; /* vocabulary entries at a time */

/* What is kept of each row while the chunks go by. */
typedef struct row_state {
    float *highest, *sum, *target; /* running maximum, sum of exp(z - highest), logit of the target */
} row_state;

/* What products read, ready, then the logits and the state of each row. */
static int64_t operand_floats(int64_t rows, int64_t C)
{
    return bw_operand_bytes(rows, C) / (int64_t)sizeof(float);
}

int64_t bw_loss_scratch(int64_t n, int64_t C)
{
    return operand_floats(n, C) + operand_floats(CHUNK, C) + n * (CHUNK + 3);
}

/* bw_row_exp() with z turned into exp(z - highest) * (1 - (z/cap)^2): the derivative of the cap goes with it. */
BW_HOT static float exp_capped_row(float *z, int64_t n, float highest, float cap)
{
    float sum = 0, inverse = 1.0f / cap;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        float e = bw_exp(z[i] - highest), t = z[i] * inverse;
        z[i] = e * (1.0f - t * t);
        sum += e;
    }
    return sum;
}

BW_HOT static void finish_row(float *dh, const float *w, int64_t C, float all, float one)
{
#pragma omp simd
    for (int64_t c = 0; c < C; c++)
        dh[c] = dh[c] * all - w[c] * one;
}

/* One row of one chunk: z becomes the weights of the gradient; what was summed before is brought to the new maximum. apart: the target is left out
 * of both. */
static void take_chunk(float *z, int64_t width, int64_t target, bool apart, float cap, const row_state *s, int64_t row, float *dh, int64_t C)
{
    const bool here = target >= 0 && target < width;
    if (cap > 0)
        bw_row_cap(z, width, cap);
    if (here)
        s->target[row] = z[target];
    float highest = bw_row_highest(z, width, s->highest[row]);
    float shrink = s->highest[row] == highest ? 1.0f : bw_exp(s->highest[row] - highest);
    if (dh && shrink != 1.0f)
        bw_row_scale(dh, C, shrink);
    if (apart && here)
        z[target] = highest - 100.0f; /* e^-100: nothing */
    float sum = cap > 0 ? exp_capped_row(z, width, highest, cap) : bw_row_exp(z, width, highest);
    s->sum[row] = s->sum[row] * shrink + sum;
    s->highest[row] = highest;
    if (apart && here)
        z[target] = 0;
}

void bw_loss(float *loss, float *dh, float scale, const float *h, const float *head, const int32_t *targets, int64_t n, int64_t C, int64_t V,
             float cap, float *scratch)
{
    if (n <= 0)
        return;
    /* With bf16 operands the product takes a target's head row rounded. Times a weight near one, less the row itself, that would leave the rounding
     * of the row instead of what the weight lacks to one, which is the gradient of a row that is known well. So the target is kept out of the
     * product and of the sum, and comes with its own term, in fp32: what its weight lacks is the share of the others. */
    const bool apart = bw_gemm_is_half();
    float *rows_ready = scratch, *words_ready = rows_ready + operand_floats(n, C), *z = words_ready + operand_floats(CHUNK, C);
    row_state s = {z + n * CHUNK, z + n * (CHUNK + 1), z + n * (CHUNK + 2)};
    const bw_operand rows = bw_operand_ready(rows_ready, h, n, C);
    for (int64_t i = 0; i < n; i++)
        s.highest[i] = -INFINITY, s.sum[i] = 0, s.target[i] = 0;
    for (int64_t first = 0; first < V; first += CHUNK) {
        int64_t width = V - first < CHUNK ? V - first : CHUNK;
        const bw_operand words = bw_operand_ready(words_ready, head + first * C, width, C);
        bw_gemm(false, true, n, width, C, 1.0f, rows, words, 0.0f, z, CHUNK);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++)
            take_chunk(z + i * CHUNK, width, targets[i] - first, apart, cap, &s, i, dh && first > 0 ? dh + i * C : NULL, C);
        if (dh)
            bw_gemm(false, false, n, C, width, 1.0f, bw_operand_of(z, CHUNK), words, first > 0 ? 1.0f : 0.0f, dh, C);
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float all = apart ? s.sum[i] + bw_exp(s.target[i] - s.highest[i]) : s.sum[i], others = apart ? s.sum[i] / all : 1.0f;
        float t = cap > 0 ? s.target[i] / cap : 0.0f;
        loss[i] = s.highest[i] + logf(all) - s.target[i];
        if (dh)
            finish_row(dh + i * C, head + targets[i] * C, C, scale / all, scale * (1.0f - t * t) * others);
    }
}

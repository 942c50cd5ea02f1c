/* Dropout whose mask is a function of (seed, step, sample, position, stream, column) alone: the same for any packing
 * of the rows, any rank and any number of threads, and drawn again instead of kept for the backward pass.
 *
 * A Philox value holds four words of 32 bits, that is eight columns of 16 bits. Columns 8b .. 8b+7 of a row draw from
 *   bw_rng({seed, BW_PURPOSE_DROPOUT, step, sample, layer = stream}, position * ceil(C / 8) + b),
 * low half of word 0 first. The counter is unique for all (position, b) of one C, and a stream has one C. */
#include "breakwater/base.h"
#include "breakwater/num.h"
#include <math.h>
#include <string.h>

enum { DRAWS = 8 }; /* columns a Philox value serves */

static void drop_row(float *y, const float *x, const bw_key *key, uint32_t first, uint32_t threshold, float scale, int64_t C)
{
    for (int64_t c = 0; c < C; c += DRAWS) {
        uint32_t words[4];
        bw_rng(key, first + (uint32_t)(c / DRAWS), words);
        for (int64_t i = 0; i < DRAWS && c + i < C; i++) {
            uint32_t draw = words[i / 2] >> 16 * (i % 2) & 0xffff;
            y[c + i] = draw < threshold ? 0.0f : x[c + i] * scale;
        }
    }
}

void bw_dropout(float *y, const float *x, const int32_t *samples, const int32_t *positions, uint64_t seed, uint32_t step, uint32_t stream, float p,
                int64_t T, int64_t C)
{
    uint32_t threshold = (uint32_t)lrintf(p * 65536.0f);
    float scale = threshold < 65536 ? 65536.0f / (float)(65536 - threshold) : 0.0f;
    uint32_t blocks = (uint32_t)((C + DRAWS - 1) / DRAWS);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < T; t++) {
        bw_key key = {.seed = seed, .purpose = BW_PURPOSE_DROPOUT, .step = step, .sample = (uint32_t)samples[t], .layer = stream};
        drop_row(y + t * C, x + t * C, &key, (uint32_t)positions[t] * blocks, threshold, scale, C);
    }
}

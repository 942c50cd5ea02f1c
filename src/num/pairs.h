/* Small products of bf16 numbers, for attention where products are bf16. A pair is two of them in the 32 bits of a float: entries of a matrix that
 * follow one another where it is summed over, so that a product takes half the steps of one in fp32. Only where the CPU has AVX512-BF16. All run on
 * the calling thread. */
#ifndef NUM_PAIRS_H
#define NUM_PAIRS_H
#include "num/tile.h"

bool bw_pairs_are_here(void);
/* As bw_tile; a and b hold pairs, k counts them. c is fp32. */
void bw_tile_pairs(const bw_tile_call *call);
/* Products of fp32, or of pairs where `half` says so, and the steps that a sum over n entries takes. */
static inline void bw_tile_of(bool half, const bw_tile_call *call)
{
    if (half)
        bw_tile_pairs(call);
    else
        bw_tile(call);
}
static inline int64_t bw_steps(bool half, int64_t n)
{
    return half ? (n + 1) / 2 : n;
}
/* Of a matrix, rows x cols: along its rows, [rows][cols / 2], for even cols; or along its columns, [rows / 2][cols], the last row beside zeros where
 * there is an odd number of them. Rounded as bw_row_narrow does. */
void bw_pairs_along_rows(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols);
void bw_pairs_along_columns(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols);

#endif

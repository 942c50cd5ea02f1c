/* Small strided products, for what a BLAS call is too heavy for: attention blocks, folding, thin products; and small matrices turned over for them.
 */
#ifndef NUM_TILE_H
#define NUM_TILE_H
#include <stdbool.h>
#include <stdint.h>

typedef struct bw_tile_call {
    int64_t m, n, k;
    float alpha;
    const float *a; /* entry (i, l) at a[i * a_row + l * a_column] */
    int64_t a_row, a_column;
    const float *b; /* row-major [k][n], as is c */
    int64_t ldb;
    float *c;
    int64_t ldc;
    bool add; /* c += alpha a b, else c = alpha a b */
} bw_tile_call;

/* Each entry is one sum over k in order, then c + alpha * sum: the bits do not depend on m, n or the place of an entry.
 * Runs on the calling thread. Fast where n is a multiple of 32; b should fit the first cache. */
void bw_tile(const bw_tile_call *call);
/* to[j * ldt + i] = from[i * ld + j] for rows i and columns j. Runs on the calling thread. */
void bw_transpose(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols);

#endif

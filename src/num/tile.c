/* One small product, compiled for each width of vectors and chosen by what the CPU has. Not by BW_HOT: the size of the
 * tile has to follow the number and width of the registers. */
#include "num/tile.h"
#include "breakwater/num.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define LANES 4
#define ROWS  6
#define TARGET
#define NAME(x)                   plain_##x
#define SPREAD(x)                 ((plain_vector){(x), (x), (x), (x)})
#define MULTIPLY_ADD(a, b, c)     ((a) * (b) + (c))
#define MULTIPLY_ADD_ONE(a, b, c) ((a) * (b) + (c))
#include "num/tile_body.h"

#if defined(__x86_64__)
#define LANES                     8
#define ROWS                      6
#define TARGET                    __attribute__((target("avx2,fma")))
#define NAME(x)                   avx2_##x
#define SPREAD(x)                 _mm256_set1_ps(x)
#define MULTIPLY_ADD(a, b, c)     _mm256_fmadd_ps(a, b, c)
#define MULTIPLY_ADD_ONE(a, b, c) __builtin_fmaf(a, b, c)
#include "num/tile_body.h"

#define LANES                     16
#define ROWS                      12
#define TARGET                    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#define NAME(x)                   avx512_##x
#define SPREAD(x)                 _mm512_set1_ps(x)
#define MULTIPLY_ADD(a, b, c)     _mm512_fmadd_ps(a, b, c)
#define MULTIPLY_ADD_ONE(a, b, c) __builtin_fmaf(a, b, c)
#include "num/tile_body.h"
#endif

void bw_tile(const bw_tile_call *call)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        avx512_tile(call);
        return;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        avx2_tile(call);
        return;
    }
#endif
    plain_tile(call);
}

/* w is cut into blocks whose part of `a` stays in the first cache. A gathered layer is folded block by block: below this much
 * work, waking the threads costs more than it saves. */
enum { FOLD_ROWS = 48, FOLD_COLUMNS = 256, FOLD_THREADED = 1 << 23 };

void bw_fold(float *w, int64_t ld, int64_t rows, int64_t cols, float s, const float *b, int64_t ldb, const float *a, int64_t lda, int r)
{
#pragma omp parallel for collapse(2) schedule(static) if (rows * cols * r > FOLD_THREADED)
    for (int64_t i = 0; i < rows; i += FOLD_ROWS)
        for (int64_t j = 0; j < cols; j += FOLD_COLUMNS) {
            int64_t m = rows - i < FOLD_ROWS ? rows - i : FOLD_ROWS, n = cols - j < FOLD_COLUMNS ? cols - j : FOLD_COLUMNS;
            bw_tile_call call = {m, n, r, s, b + i * ldb, ldb, 1, a + j, lda, w + i * ld + j, ld, true};
            bw_tile(&call);
        }
}

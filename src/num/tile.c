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

/* ---- turned over ---------------------------------------------------------------------------------------------------- */

enum { SQUARE = 8 };

#if defined(__x86_64__)
/* An 8 x 8 square: pairs, then fours, then halves change places. */
__attribute__((target("avx2"))) static inline void turn_square(float *to, int64_t ldt, const float *from, int64_t ld)
{
    __m256 row[SQUARE], pair[SQUARE];
    for (int i = 0; i < SQUARE; i++)
        row[i] = _mm256_loadu_ps(from + i * ld);
    for (int i = 0; i < SQUARE; i += 2) {
        pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < SQUARE; i += 4) {
        row[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
        row[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
        row[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
        row[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
    }
    for (int i = 0; i < SQUARE / 2; i++) {
        _mm256_storeu_ps(to + i * ldt, _mm256_permute2f128_ps(row[i], row[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * ldt, _mm256_permute2f128_ps(row[i], row[i + 4], 0x31));
    }
}

__attribute__((target("avx2"))) static void turn_squares(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i += SQUARE)
        for (int64_t j = 0; j < cols; j += SQUARE)
            turn_square(to + j * ldt + i, ldt, from + i * ld + j, ld);
}
#endif

static void turn_plain(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            to[j * ldt + i] = from[i * ld + j];
}

void bw_transpose(float *to, int64_t ldt, const float *from, int64_t ld, int64_t rows, int64_t cols)
{
    int64_t whole_rows = 0, whole_cols = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        whole_rows = rows / SQUARE * SQUARE, whole_cols = cols / SQUARE * SQUARE;
        turn_squares(to, ldt, from, ld, whole_rows, whole_cols);
    }
#endif
    turn_plain(to + whole_cols * ldt, ldt, from + whole_cols, ld, whole_rows, cols - whole_cols);
    turn_plain(to + whole_rows, ldt, from + whole_rows * ld, ld, rows - whole_rows, cols);
}

/* ---- folding -------------------------------------------------------------------------------------------------------- */

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

/* Included by tile.c once for each kind of CPU with
 *   LANES   floats of a vector      ROWS  rows of c held in registers, with 2 vectors each
 *   TARGET  attribute of the code   NAME(x)  makes a name of this kind   SPREAD(x)  a vector of x
 *   MULTIPLY_ADD, MULTIPLY_ADD_ONE  a b + c of vectors and of numbers. They are spelled out since the compiler fuses
 *   some of them and others not, and an entry has to be rounded alike in a vector and in what is left over. */

typedef float NAME(vector) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* rows x (vectors * LANES) entries of c; both are constants after inlining, so that `sum` lives in registers. */
TARGET static inline __attribute__((always_inline)) void NAME(block)(const int rows, const int vectors, const bw_tile_call *p, int64_t i, int64_t j)
{
    NAME(vector) sum[ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[r][v] = (NAME(vector)){0};
    const float *a = p->a + i * p->a_row, *b = p->b + j;
    const int64_t a_row = p->a_row, a_column = p->a_column, ldb = p->ldb;
    for (int64_t l = 0; l < p->k; l++, a += a_column, b += ldb)
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sum[r][v] = MULTIPLY_ADD(SPREAD(a[r * a_row]), *(const NAME(vector) *)(b + v * LANES), sum[r][v]);
    float *c = p->c + i * p->ldc + j;
    const float alpha = p->alpha;
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            NAME(vector) *to = (NAME(vector) *)(c + r * p->ldc + v * LANES);
            *to = MULTIPLY_ADD(SPREAD(alpha), sum[r][v], p->add ? *to : (NAME(vector)){0});
        }
}

/* Columns that do not fill a vector. */
TARGET static void NAME(columns)(const bw_tile_call *p, int64_t j)
{
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t column = j; column < p->n; column++) {
            float sum = 0;
            for (int64_t l = 0; l < p->k; l++)
                sum = MULTIPLY_ADD_ONE(p->a[i * p->a_row + l * p->a_column], p->b[l * p->ldb + column], sum);
            float *to = p->c + i * p->ldc + column;
            *to = MULTIPLY_ADD_ONE(p->alpha, sum, p->add ? *to : 0.0f);
        }
}

/* A column of tiles: full ones, then halves, down to single rows. */
TARGET static inline __attribute__((always_inline)) void NAME(strip)(const int vectors, const bw_tile_call *p, int64_t j)
{
    int64_t i = 0;
    for (; i + ROWS <= p->m; i += ROWS)
        NAME(block)(ROWS, vectors, p, i, j);
    for (; i + ROWS / 2 <= p->m; i += ROWS / 2)
        NAME(block)(ROWS / 2, vectors, p, i, j);
    for (; i < p->m; i++)
        NAME(block)(1, vectors, p, i, j);
}

TARGET static void NAME(tile)(const bw_tile_call *p)
{
    int64_t j = 0;
    for (; j + 2 * LANES <= p->n; j += 2 * LANES)
        NAME(strip)(2, p, j);
    for (; j + LANES <= p->n; j += LANES)
        NAME(strip)(1, p, j);
    if (j < p->n)
        NAME(columns)(p, j);
}

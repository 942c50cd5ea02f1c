/* Included by tile.c once for each kind of CPU with
 *   LANES   floats of a vector      ROWS  rows of c held in registers, with 2 vectors each: 6 or 12
 *   TARGET  attribute of the code   NAME(x)  makes a name of this kind   SPREAD(x)  a vector of x
 *   MULTIPLY_ADD, MULTIPLY_ADD_ONE  a b + c of vectors and of numbers. They are spelled out since the compiler fuses
 *   some of them and others not, and an entry has to be rounded alike in a vector and in what is left over.
 *   STEP, STEP_ONE  the same of what is summed over, where its entries are not numbers but pairs of bf16 numbers */
#ifndef STEP
#define STEP     MULTIPLY_ADD
#define STEP_ONE MULTIPLY_ADD_ONE
#endif

typedef float NAME(vector) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

/* A block of some rows x (vectors * LANES) entries of c. The sums are single variables, not an array: gcc leaves an
 * array in memory. x, y: the first and second vector of a row. */
#define ROW_DECLARE(r) NAME(vector) x##r = {0}, y##r = {0};
#define ROW_STEP(r)                                                                                                                                  \
    {                                                                                                                                                \
        NAME(vector) spread = SPREAD(a[r * a_row]);                                                                                                  \
        x##r = STEP(spread, first, x##r);                                                                                                            \
        if (two)                                                                                                                                     \
            y##r = STEP(spread, second, y##r);                                                                                                       \
    }
#define ROW_STORE(r)                                                                                                                                 \
    {                                                                                                                                                \
        NAME(vector) *to = (NAME(vector) *)(c + r * p->ldc), *next = (NAME(vector) *)(c + r * p->ldc + LANES);                                       \
        *to = MULTIPLY_ADD(alpha, x##r, p->add ? *to : zero);                                                                                        \
        if (two)                                                                                                                                     \
            *next = MULTIPLY_ADD(alpha, y##r, p->add ? *next : zero);                                                                                \
    }
#define BLOCK(name, EACH)                                                                                                                            \
    TARGET static inline __attribute__((always_inline)) void name(const bool two, const bw_tile_call *p, int64_t i, int64_t j)                       \
    {                                                                                                                                                \
        const float *a = p->a + i * p->a_row, *b = p->b + j;                                                                                         \
        const int64_t a_row = p->a_row, a_column = p->a_column, ldb = p->ldb;                                                                        \
        EACH(ROW_DECLARE)                                                                                                                            \
        for (int64_t l = 0; l < p->k; l++, a += a_column, b += ldb) {                                                                                \
            NAME(vector) first = *(const NAME(vector) *)b, second = two ? *(const NAME(vector) *)(b + LANES) : first;                                \
            EACH(ROW_STEP)                                                                                                                           \
        }                                                                                                                                            \
        float *c = p->c + i * p->ldc + j;                                                                                                            \
        const NAME(vector) zero = {0}, alpha = SPREAD(p->alpha);                                                                                     \
        EACH(ROW_STORE)                                                                                                                              \
    }
#define EACH_1(DO)  DO(0)
#define EACH_2(DO)  DO(0) DO(1)
#define EACH_3(DO)  DO(0) DO(1) DO(2)
#define EACH_4(DO)  DO(0) DO(1) DO(2) DO(3)
#define EACH_6(DO)  EACH_4(DO) DO(4) DO(5)
#define EACH_8(DO)  EACH_6(DO) DO(6) DO(7)
#define EACH_12(DO) EACH_8(DO) DO(8) DO(9) DO(10) DO(11)
BLOCK(NAME(block_1), EACH_1)
BLOCK(NAME(block_2), EACH_2)
BLOCK(NAME(block_3), EACH_3)
BLOCK(NAME(block_4), EACH_4)
BLOCK(NAME(block_6), EACH_6)
#if ROWS == 12
BLOCK(NAME(block_8), EACH_8)
BLOCK(NAME(block_12), EACH_12)
#endif

/* Columns that do not fill a vector. */
TARGET static void NAME(columns)(const bw_tile_call *p, int64_t j)
{
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t column = j; column < p->n; column++) {
            float sum = 0;
            for (int64_t l = 0; l < p->k; l++)
                sum = STEP_ONE(p->a[i * p->a_row + l * p->a_column], p->b[l * p->ldb + column], sum);
            float *to = p->c + i * p->ldc + column;
            *to = MULTIPLY_ADD_ONE(p->alpha, sum, p->add ? *to : 0.0f);
        }
}

/* A column of blocks: full ones, then smaller ones down to single rows. */
TARGET static inline __attribute__((always_inline)) void NAME(strip)(const bool two, const bw_tile_call *p, int64_t j)
{
    int64_t i = 0;
#if ROWS == 12
    for (; i + 12 <= p->m; i += 12)
        NAME(block_12)(two, p, i, j);
    for (; i + 8 <= p->m; i += 8)
        NAME(block_8)(two, p, i, j);
#endif
    for (; i + 6 <= p->m; i += 6)
        NAME(block_6)(two, p, i, j);
    for (; i + 4 <= p->m; i += 4)
        NAME(block_4)(two, p, i, j);
    for (; i + 3 <= p->m; i += 3)
        NAME(block_3)(two, p, i, j);
    for (; i + 2 <= p->m; i += 2)
        NAME(block_2)(two, p, i, j);
    for (; i < p->m; i++)
        NAME(block_1)(two, p, i, j);
}

TARGET static void NAME(tile)(const bw_tile_call *p)
{
    int64_t j = 0;
    for (; j + 2 * LANES <= p->n; j += 2 * LANES)
        NAME(strip)(true, p, j);
    for (; j + LANES <= p->n; j += LANES)
        NAME(strip)(false, p, j);
    if (j < p->n)
        NAME(columns)(p, j);
}

#undef LANES
#undef ROWS
#undef TARGET
#undef NAME
#undef SPREAD
#undef MULTIPLY_ADD
#undef MULTIPLY_ADD_ONE
#undef STEP
#undef STEP_ONE
#undef ROW_DECLARE
#undef ROW_STEP
#undef ROW_STORE
#undef BLOCK
#undef EACH_1
#undef EACH_2
#undef EACH_3
#undef EACH_4
#undef EACH_6
#undef EACH_8
#undef EACH_12

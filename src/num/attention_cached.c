/* Decoding: new rows of a sequence against its cached keys and values (num/cache.c). */
#include "num/attention.h"
#include "num/hot.h"
#include "num/pairs.h"
#include "num/row.h"
#include <string.h>

enum {
    FEW_QUERIES = 4, /* below that, a row by itself; a block would leave most of its columns to nobody */
    MOST_HEADS = 8   /* of a row by itself, at a time: the rows of its products, as many as a tile holds */
};

static bw_keys keys_in(const bw_attention *shape, bw_cache cache, int head)
{
    const bw_cache here = bw_cache_at(cache, head * cache.head);
    return (bw_keys){.k_rows = here.k, .v_columns = here.v, .ld_columns = shape->head_dim, .cached = true};
}

/* ---- a single row ---------------------------------------------------------------------------------------------------- */

/* A block of one query would waste its other columns, but some heads of one key head share keys and values: they are the rows of these products. */
typedef struct single {
    const bw_attention *shape;
    bool half; /* products are of bf16 pairs */
    int heads;
    int64_t position, oldest; /* the oldest key that is seen */
    float scores[MOST_HEADS][BW_KEYS], highest[MOST_HEADS], sum[MOST_HEADS];
} single;

/* scores[head][key] of keys first .. first + keys, in whole units; q: [heads], `depth` steps of a sum. */
static void score(single *s, const float *q, const bw_keys *from, int64_t first, int64_t keys, int64_t depth)
{
    for (int64_t j = 0; j < keys; j += BW_UNIT)
        bw_tile_of(s->half, &(bw_tile_call){s->heads, BW_UNIT, depth, s->shape->scale, q, depth, 1, from->k_rows + (first + j) * depth, BW_UNIT,
                                            s->scores[0] + j, BW_KEYS, false});
}

/* They become exp(score - running maximum), and what was summed before is brought to the new maximum. */
static void online_softmax(single *s, int h, int64_t first, int64_t keys, float *out)
{
    float *scores = s->scores[h];
    if (s->shape->soft_cap > 0)
        bw_row_cap(scores, keys, s->shape->soft_cap);
    for (int64_t j = 0; j < keys && first + j < s->oldest; j++)
        scores[j] = -3e38f;
    const float now = bw_row_highest(scores, keys, -3e38f); /* what is masked becomes e^-87: nothing */
    const float most = s->sum[h] > 0 && s->highest[h] > now ? s->highest[h] : now, shrink = s->sum[h] > 0 ? bw_exp(s->highest[h] - most) : 0.0f;
    bw_row_scale(out, s->shape->head_dim, shrink);
    s->sum[h] = s->sum[h] * shrink + bw_row_exp(scores, keys, most);
    s->highest[h] = most;
}

/* out[heads][head_dim] += scores times values. */
static void add_values(single *s, const bw_keys *from, int64_t first, int64_t keys, float *out)
{
    const int64_t head_dim = s->shape->head_dim, even = keys + keys % 2;
    float pairs[MOST_HEADS * BW_KEYS / 2];
    bw_tile_call sum = {s->heads, head_dim, keys, 1, s->scores[0], BW_KEYS, 1, from->v_columns + first * head_dim, head_dim, out, head_dim, true};
    if (s->half) {
        for (int h = 0; h < s->heads && keys % 2; h++)
            s->scores[h][keys] = 0;
        bw_pairs_along_rows(pairs, BW_KEYS / 2, s->scores[0], BW_KEYS, s->heads, even);
        sum.k = even / 2, sum.a = pairs, sum.a_row = BW_KEYS / 2, sum.b = from->v_columns + first / 2 * head_dim;
    }
    bw_tile_of(s->half, &sum);
}

static void single_row(single *s, float *out, const float *q, const bw_keys *from)
{
    const int64_t head_dim = s->shape->head_dim, depth = bw_steps(s->half, head_dim), end = s->position + 1;
    float q_pairs[MOST_HEADS * BW_MAX_HEAD_DIM / 2];
    memset(out, 0, (size_t)(s->heads * head_dim) * sizeof *out);
    if (s->half)
        bw_pairs_along_rows(q_pairs, depth, q, head_dim, s->heads, head_dim);
    for (int64_t first = s->oldest / BW_UNIT * BW_UNIT; first < end; first += BW_KEYS) {
        const int64_t keys = end - first < BW_KEYS ? end - first : BW_KEYS;
        score(s, s->half ? q_pairs : q, from, first, keys, depth);
        for (int h = 0; h < s->heads; h++)
            online_softmax(s, h, first, keys, out + h * head_dim);
        add_values(s, from, first, keys, out);
    }
    for (int h = 0; h < s->heads; h++)
        bw_row_scale(out + h * head_dim, head_dim, 1.0f / s->sum[h]);
}

/* ---- rows ------------------------------------------------------------------------------------------------------------ */

static void row_of_group(const bw_attention *shape, bool half, float *out, const float *q, int64_t position, const bw_keys *keys)
{
    const int group = bw_group(shape);
    for (int head = 0; head < group; head += MOST_HEADS) {
        const int64_t at = (int64_t)head * shape->head_dim;
        single s;
        s.shape = shape, s.half = half, s.heads = group - head < MOST_HEADS ? group - head : MOST_HEADS;
        s.position = position, s.oldest = bw_oldest_key(shape, position);
        memset(s.sum, 0, sizeof s.sum);
        single_row(&s, out + at, q + at, keys);
    }
}

static void block_of_group(const bw_attention *shape, bool half, float *out, const float *q, int64_t ldq, int64_t first, int64_t count,
                           const bw_keys *keys)
{
    for (int member = 0; member < bw_group(shape); member += BW_HEADS) {
        const bw_queries b = bw_queries_of(shape, half, first, count, bw_heads_from(shape, member));
        const int64_t at = (int64_t)member * shape->head_dim;
        bw_attention_block(&b, out + at, ldq, NULL, 0, q + at, ldq, keys);
    }
}

void bw_attention_cached(const bw_attention *shape, float *out, const float *q, int64_t ldq, int n_new, bw_cache cache, int length)
{
    const int before = length - n_new, rows = n_new < FEW_QUERIES ? 1 : BW_QUERIES;
    const int64_t group_width = (int64_t)bw_group(shape) * shape->head_dim;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int first = 0; first < n_new; first += rows)
        for (int head = 0; head < shape->n_kv; head++) {
            const int64_t at = first * ldq + head * group_width;
            const bw_keys keys = keys_in(shape, cache, head);
            if (rows == 1)
                row_of_group(shape, cache.half, out + at, q + at, before + first, &keys);
            else
                block_of_group(shape, cache.half, out + at, q + at, ldq, before + first, n_new - first < rows ? n_new - first : rows, &keys);
        }
}

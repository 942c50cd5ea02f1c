/* Decoding: new rows of a sequence against its cached keys and values, and how these lie in the cache. A token reads all of them, so they lie as its
 * products read them: keys turned over, unit by unit, so that a row of scores is a row of a product, and values as rows; where products are of bf16
 * pairs, both are those pairs. */
#include "num/attention.h"
#include "num/hot.h"
#include "num/pairs.h"
#include "num/row.h"
#include <string.h>

enum { QUERIES = BW_QUERIES, KEYS = BW_KEYS, UNIT = BW_CACHE_UNIT, MAX_HEAD = BW_MAX_HEAD_DIM, FEW_QUERIES = 4, MOST_HEADS = 8 };

/* ---- the cache ------------------------------------------------------------------------------------------------------ */

bool bw_cache_is_half(void)
{
    return bw_attention_in_pairs();
}

int64_t bw_cache_bytes(int64_t entries, bool half)
{
    return entries * (half ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float));
}

bw_cache bw_cache_at(bw_cache cache, int64_t entry)
{
    cache.k = (char *)cache.k + bw_cache_bytes(entry, cache.half);
    cache.v = (char *)cache.v + bw_cache_bytes(entry, cache.half);
    return cache;
}

void bw_cache_copy(const bw_attention *shape, bw_cache to, bw_cache from, int64_t n)
{
    const size_t bytes = (size_t)bw_cache_bytes((n + UNIT - 1) / UNIT * UNIT * shape->head_dim, from.half);
    for (int head = 0; head < shape->n_kv; head++) {
        memcpy(bw_cache_at(to, head * to.head).k, bw_cache_at(from, head * from.head).k, bytes);
        memcpy(bw_cache_at(to, head * to.head).v, bw_cache_at(from, head * from.head).v, bytes);
    }
}

/* Rows of one head from key `first` on, unit by unit. */
static void write_keys(float *to, bool half, int64_t first, int64_t n, const float *k, int64_t ld, int64_t head_dim)
{
    float pairs[UNIT * MAX_HEAD / 2];
    const int64_t depth = half ? head_dim / 2 : head_dim;
    for (int64_t j = 0, count; j < n; j += count) {
        const int64_t key = first + j, at = key % UNIT;
        count = n - j < UNIT - at ? n - j : UNIT - at;
        if (half)
            bw_pairs_along_rows(pairs, depth, k + j * ld, ld, count, head_dim);
        bw_transpose(to + (key - at) * depth + at, UNIT, half ? pairs : k + j * ld, half ? depth : ld, count, depth);
    }
}

/* The second of two keys goes beside the first. */
static void write_second(float *to, const float *v, int64_t head_dim)
{
    uint16_t rounded[MAX_HEAD], *pair = (uint16_t *)(void *)to;
    bw_row_narrow(rounded, v, head_dim);
    for (int64_t c = 0; c < head_dim; c++)
        pair[2 * c + 1] = rounded[c];
}

static void write_values(float *to, bool half, int64_t first, int64_t n, const float *v, int64_t ld, int64_t head_dim)
{
    for (int64_t j = 0; !half && j < n; j++)
        memcpy(to + (first + j) * head_dim, v + j * ld, (size_t)head_dim * sizeof *to);
    if (!half || n == 0)
        return;
    const int64_t second = first % 2;
    if (second)
        write_second(to + first / 2 * head_dim, v, head_dim);
    bw_pairs_along_columns(to + (first + second) / 2 * head_dim, head_dim, v + second * ld, ld, n - second, head_dim);
}

void bw_cache_write(const bw_attention *shape, bw_cache cache, int64_t first, int64_t n, const float *k, const float *v)
{
    const int64_t head_dim = shape->head_dim, ld = shape->n_kv * head_dim;
    for (int head = 0; head < shape->n_kv; head++) {
        const bw_cache there = bw_cache_at(cache, head * cache.head);
        write_keys(there.k, cache.half, first, n, k + head * head_dim, ld, head_dim);
        write_values(there.v, cache.half, first, n, v + head * head_dim, ld, head_dim);
    }
}

static bw_keys keys_in(const bw_attention *shape, bw_cache cache, int head)
{
    const bw_cache here = bw_cache_at(cache, head * cache.head);
    return (bw_keys){.k_rows = here.k, .v_columns = here.v, .ld_columns = shape->head_dim, .cached = true};
}

/* ---- a single row ---------------------------------------------------------------------------------------------------- */

/* A block of one query would waste its other columns, but some heads of one key head share keys and values: they are the rows of these products. */
typedef struct single {
    const bw_attention *shape;
    bool pairs;
    int heads;
    int64_t position, oldest; /* the oldest key that is seen */
    float scores[MOST_HEADS][KEYS], highest[MOST_HEADS], sum[MOST_HEADS];
} single;

static void multiply(const single *s, const bw_tile_call *call)
{
    if (s->pairs)
        bw_tile_pairs(call);
    else
        bw_tile(call);
}

/* scores[head][key] of keys first .. first + keys, in whole units; q: [heads], `depth` steps of a sum. */
static void score(single *s, const float *q, const bw_keys *from, int64_t first, int64_t keys, int64_t depth)
{
    for (int64_t j = 0; j < keys; j += UNIT)
        multiply(s, &(bw_tile_call){s->heads, UNIT, depth, s->shape->scale, q, depth, 1, from->k_rows + (first + j) * depth, UNIT, s->scores[0] + j,
                                    KEYS, false});
}

/* They become exp(score - running maximum), and what was summed before is brought to the new maximum. */
static void soften(single *s, int h, int64_t first, int64_t keys, float *out)
{
    float *scores = s->scores[h];
    if (s->shape->soft_cap > 0)
        bw_row_cap(scores, keys, s->shape->soft_cap);
    for (int64_t j = 0; j < keys && first + j < s->oldest; j++)
        scores[j] = -3e38f;
    const float now = bw_row_highest(scores, keys, -3e38f);
    const float most = s->sum[h] > 0 && s->highest[h] > now ? s->highest[h] : now, shrink = s->sum[h] > 0 ? bw_exp(s->highest[h] - most) : 0.0f;
    bw_row_scale(out, s->shape->head_dim, shrink);
    s->sum[h] = s->sum[h] * shrink + bw_row_exp(scores, keys, most);
    s->highest[h] = most;
}

/* out[heads][head_dim] += scores times values. */
static void add_values(single *s, const bw_keys *from, int64_t first, int64_t keys, float *out)
{
    const int64_t head_dim = s->shape->head_dim, even = keys + keys % 2;
    float pairs[MOST_HEADS * KEYS / 2];
    bw_tile_call sum = {s->heads, head_dim, keys, 1, s->scores[0], KEYS, 1, from->v_columns + first * head_dim, head_dim, out, head_dim, true};
    if (s->pairs) {
        for (int h = 0; h < s->heads && keys % 2; h++)
            s->scores[h][keys] = 0;
        bw_pairs_along_rows(pairs, KEYS / 2, s->scores[0], KEYS, s->heads, even);
        sum.k = even / 2, sum.a = pairs, sum.a_row = KEYS / 2, sum.b = from->v_columns + first / 2 * head_dim;
    }
    multiply(s, &sum);
}

static void single_row(single *s, float *out, const float *q, const bw_keys *from)
{
    const bw_block_of_queries b = bw_queries(s->shape, s->pairs, s->position, 1, s->heads);
    const int64_t head_dim = s->shape->head_dim, depth = s->pairs ? head_dim / 2 : head_dim;
    float q_pairs[MOST_HEADS * MAX_HEAD / 2];
    memset(out, 0, (size_t)(s->heads * head_dim) * sizeof *out);
    if (s->pairs)
        bw_pairs_along_rows(q_pairs, depth, q, head_dim, s->heads, head_dim);
    for (int64_t first = b.first_key; first < b.last_key; first += KEYS) {
        const int64_t keys = b.last_key - first < KEYS ? b.last_key - first : KEYS;
        score(s, s->pairs ? q_pairs : q, from, first, keys, depth);
        for (int h = 0; h < s->heads; h++)
            soften(s, h, first, keys, out + h * head_dim);
        add_values(s, from, first, keys, out);
    }
    for (int h = 0; h < s->heads; h++)
        bw_row_scale(out + h * head_dim, head_dim, 1.0f / s->sum[h]);
}

/* ---- rows ------------------------------------------------------------------------------------------------------------ */

static void row_of_group(const bw_attention *shape, bool pairs, float *out, const float *q, int64_t position, const bw_keys *keys)
{
    const int group = shape->n_head / shape->n_kv;
    for (int head = 0; head < group; head += MOST_HEADS) {
        const int64_t at = (int64_t)head * shape->head_dim;
        single s;
        s.shape = shape, s.pairs = pairs, s.heads = group - head < MOST_HEADS ? group - head : MOST_HEADS;
        s.position = position, s.oldest = shape->window > 0 ? position - shape->window + 1 : 0;
        memset(s.sum, 0, sizeof s.sum);
        single_row(&s, out + at, q + at, keys);
    }
}

static void block_of_group(const bw_attention *shape, bool pairs, float *out, const float *q, int64_t ldq, int64_t first, int64_t count,
                           const bw_keys *keys)
{
    for (int member = 0; member < shape->n_head / shape->n_kv; member += BW_HEADS) {
        const bw_block_of_queries b = bw_queries(shape, pairs, first, count, bw_heads_from(shape, member));
        const int64_t at = (int64_t)member * shape->head_dim;
        bw_attention_block(&b, out + at, ldq, NULL, 0, q + at, ldq, keys);
    }
}

void bw_attention_cached(const bw_attention *shape, float *out, const float *q, int64_t ldq, int n_new, bw_cache cache, int length)
{
    const int before = length - n_new, rows = n_new < FEW_QUERIES ? 1 : QUERIES;
    const int64_t group_width = (int64_t)(shape->n_head / shape->n_kv) * shape->head_dim;
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

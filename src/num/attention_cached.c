/* Decoding: new rows of a sequence against its cached keys and values, and what lies in that cache. */
#include "num/attention.h"
#include "num/hot.h"
#include "num/pairs.h"
#include "num/row.h"
#include <string.h>

enum { QUERIES = BW_QUERIES, KEYS = BW_KEYS, MAX_HEAD = BW_MAX_HEAD_DIM, FEW_QUERIES = 4, MOST_HEADS = 8, LANES = 16 };

/* ---- the cache ------------------------------------------------------------------------------------------------------ */

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
    const size_t bytes = (size_t)bw_cache_bytes(shape->head_dim, from.half);
    for (int head = 0; head < shape->n_kv; head++)
        for (int64_t j = 0; j < n; j++) {
            const bw_cache there = bw_cache_at(to, head * to.head + j * to.row), here = bw_cache_at(from, head * from.head + j * from.row);
            memcpy(there.k, here.k, bytes);
            memcpy(there.v, here.v, bytes);
        }
}

static void write_entries(void *to, const float *from, int64_t n, bool half)
{
    if (half)
        bw_row_narrow(to, from, n);
    else
        memcpy(to, from, (size_t)n * sizeof *from);
}

void bw_cache_write(const bw_attention *shape, bw_cache cache, int64_t first, int64_t n, const float *k, const float *v)
{
    for (int64_t j = 0; j < n; j++)
        for (int head = 0; head < shape->n_kv; head++, k += shape->head_dim, v += shape->head_dim) {
            const bw_cache there = bw_cache_at(cache, head * cache.head + (first + j) * cache.row);
            write_entries(there.k, k, shape->head_dim, cache.half);
            write_entries(there.v, v, shape->head_dim, cache.half);
        }
}

/* ---- rows ----------------------------------------------------------------------------------------------------------- */

/* One row at a position, some heads of one key head: a block of one query would waste its other columns, but these heads share keys and values. */
typedef struct single {
    const bw_attention *shape;
    bool pairs;
    int heads;
    const float *q;                           /* [heads][head_dim] */
    float q_pairs[MOST_HEADS * MAX_HEAD / 2]; /* where products are of pairs */
    float scores[MOST_HEADS][KEYS];
} single;

/* scores[head][key] of pairs: keys turned over, whole vectors of them. */
static void score_pairs(single *s, const bw_key_span *here, int64_t keys)
{
    float turned[MAX_HEAD / 2 * KEYS];
    const int64_t width = s->shape->head_dim / 2, whole = (keys + LANES - 1) / LANES * LANES;
    bw_transpose(turned, KEYS, here->k, here->ldk, keys, width);
    for (int64_t c = 0; c < width; c++)
        for (int64_t j = keys; j < whole; j++)
            turned[c * KEYS + j] = 0;
    bw_tile_pairs(&(bw_tile_call){s->heads, whole, width, s->shape->scale, s->q_pairs, width, 1, turned, KEYS, s->scores[0], KEYS, false});
}

static void score(single *s, const bw_key_span *here, int64_t keys)
{
    const int64_t head_dim = s->shape->head_dim;
    if (s->pairs)
        score_pairs(s, here, keys);
    for (int h = 0; h < s->heads; h++) {
        if (!s->pairs)
            bw_attention_dots(s->scores[h], s->q + h * head_dim, 0, here->k, here->ldk, keys, head_dim, s->shape->scale);
        if (s->shape->soft_cap > 0)
            bw_row_cap(s->scores[h], keys, s->shape->soft_cap);
    }
}

/* out += scores times values. */
static void add_values(single *s, const bw_key_span *here, int64_t keys, float *out)
{
    const int64_t head_dim = s->shape->head_dim;
    if (!s->pairs) {
        bw_tile(&(bw_tile_call){s->heads, head_dim, keys, 1, s->scores[0], KEYS, 1, here->v, here->ldv, out, head_dim, true});
        return;
    }
    float weights[MOST_HEADS * KEYS / 2];
    for (int h = 0; h < s->heads && keys % 2; h++)
        s->scores[h][keys] = 0;
    bw_pairs_along_rows(weights, KEYS / 2, s->scores[0], KEYS, s->heads, keys + keys % 2);
    bw_tile_pairs(&(bw_tile_call){s->heads, head_dim, (keys + 1) / 2, 1, weights, KEYS / 2, 1, here->v, here->ldv, out, head_dim, true});
}

static void single_row(single *s, float *out, int64_t position, const bw_keys *from)
{
    const bw_block_of_queries b = bw_queries(s->shape, s->pairs, position, 1, s->heads);
    const int64_t head_dim = s->shape->head_dim;
    const int64_t oldest = s->shape->window > 0 ? position - s->shape->window + 1 : 0;
    float highest[MOST_HEADS] = {0}, sum[MOST_HEADS] = {0};
    bw_key_span here;
    memset(out, 0, (size_t)(s->heads * head_dim) * sizeof *out);
    if (s->pairs)
        bw_pairs_along_rows(s->q_pairs, head_dim / 2, s->q, head_dim, s->heads, head_dim);
    for (int64_t first = b.first_key; first <= position; first += KEYS) {
        const int64_t keys = position + 1 - first < KEYS ? position + 1 - first : KEYS;
        bw_key_span_take(&here, &b, from, first, keys);
        score(s, &here, keys);
        for (int h = 0; h < s->heads; h++) {
            if (first < oldest)
                s->scores[h][0] = -3e38f; /* a pair of keys, the elder of which is out of the window */
            const float now = bw_row_highest(s->scores[h], keys, -3e38f);
            const float most = sum[h] > 0 && highest[h] > now ? highest[h] : now, shrink = sum[h] > 0 ? bw_exp(highest[h] - most) : 0.0f;
            bw_row_scale(out + h * head_dim, head_dim, shrink);
            sum[h] = sum[h] * shrink + bw_row_exp(s->scores[h], keys, most);
            highest[h] = most;
        }
        add_values(s, &here, keys, out);
    }
    for (int h = 0; h < s->heads; h++)
        bw_row_scale(out + h * head_dim, head_dim, 1.0f / sum[h]);
}

static void single_row_of_group(const bw_attention *shape, bool pairs, float *out, const float *q, int64_t position, const bw_keys *keys)
{
    const int group = shape->n_head / shape->n_kv;
    for (int head = 0; head < group; head += MOST_HEADS) {
        const int64_t at = (int64_t)head * shape->head_dim;
        single s;
        s.shape = shape, s.pairs = pairs, s.heads = group - head < MOST_HEADS ? group - head : MOST_HEADS, s.q = q + at;
        single_row(&s, out + at, position, keys);
    }
}

static bw_keys keys_in(const bw_cache *here)
{
    return here->half ? (bw_keys){.half = here} : bw_keys_in_fp32(here->k, here->v, here->row);
}

void bw_attention_cached(const bw_attention *shape, float *out, const float *q, int64_t ldq, int n_new, bw_cache cache, int length)
{
    const int group = shape->n_head / shape->n_kv, before = length - n_new;
    const bool pairs = cache.half && bw_attention_in_pairs();
    if (n_new < FEW_QUERIES) {
#pragma omp parallel for collapse(2) schedule(static)
        for (int row = 0; row < n_new; row++)
            for (int head = 0; head < shape->n_kv; head++) {
                const int64_t at = row * ldq + (int64_t)head * group * shape->head_dim;
                const bw_cache here = bw_cache_at(cache, head * cache.head);
                const bw_keys keys = keys_in(&here);
                single_row_of_group(shape, pairs, out + at, q + at, before + row, &keys);
            }
        return;
    }
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int first = 0; first < n_new; first += QUERIES)
        for (int head = 0; head < shape->n_kv; head++) {
            const bw_cache here = bw_cache_at(cache, head * cache.head);
            const bw_keys keys = keys_in(&here);
            for (int member = 0; member < group; member += BW_HEADS) {
                const int64_t rows = n_new - first < QUERIES ? n_new - first : QUERIES;
                const bw_block_of_queries b = bw_queries(shape, pairs, before + first, rows, bw_heads_from(shape, member));
                const int64_t at = first * ldq + ((int64_t)head * group + member) * shape->head_dim;
                bw_attention_block(&b, out + at, ldq, NULL, 0, q + at, ldq, &keys);
            }
        }
}

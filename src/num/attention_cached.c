/* Decoding: new rows of a sequence against its cached keys and values, and what lies in that cache. */
#include "num/attention.h"
#include "num/hot.h"
#include "num/row.h"
#include "num/tile.h"
#include <string.h>

enum { QUERIES = BW_QUERIES, KEYS = BW_KEYS, FEW_QUERIES = 4, HEADS = 8 };

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

/* Scores of one query against `keys` keys; their maximum. */
static float score_query(const bw_attention *s, float *scores, const float *q, const float *k, int64_t ldk, int64_t keys)
{
    bw_attention_dots(scores, q, 0, k, ldk, keys, s->head_dim, s->scale);
    if (s->soft_cap > 0)
        bw_row_cap(scores, keys, s->soft_cap);
    return bw_row_highest(scores, keys, -3e38f);
}

/* One row at `position`, some heads of one key head: a block of one query would waste its other columns, but these heads share keys and values. */
static void single_row(const bw_attention *s, int heads, float *out, const float *q, int64_t position, const bw_keys *from)
{
    const bw_block_of_queries b = bw_queries(s, false, position, 1, 1);
    float scores[HEADS][KEYS], highest[HEADS] = {0}, sum[HEADS] = {0};
    bw_key_span here;
    memset(out, 0, (size_t)(heads * s->head_dim) * sizeof *out);
    for (int64_t first = b.first_key; first <= position; first += KEYS) {
        const int64_t keys = position + 1 - first < KEYS ? position + 1 - first : KEYS;
        bw_key_span_take(&here, &b, from, first, keys);
        for (int h = 0; h < heads; h++) {
            const float now = score_query(s, scores[h], q + h * s->head_dim, here.k, here.ldk, keys);
            const float most = sum[h] > 0 && highest[h] > now ? highest[h] : now, shrink = sum[h] > 0 ? bw_exp(highest[h] - most) : 0.0f;
            bw_row_scale(out + h * s->head_dim, s->head_dim, shrink);
            sum[h] = sum[h] * shrink + bw_row_exp(scores[h], keys, most);
            highest[h] = most;
        }
        bw_tile(&(bw_tile_call){heads, s->head_dim, keys, 1, scores[0], KEYS, 1, here.v, here.ldv, out, s->head_dim, true});
    }
    for (int h = 0; h < heads; h++)
        bw_row_scale(out + h * s->head_dim, s->head_dim, 1.0f / sum[h]);
}

static void single_row_of_group(const bw_attention *s, float *out, const float *q, int64_t position, const bw_keys *keys)
{
    const int group = s->n_head / s->n_kv;
    for (int head = 0; head < group; head += HEADS) {
        const int64_t at = (int64_t)head * s->head_dim;
        single_row(s, group - head < HEADS ? group - head : HEADS, out + at, q + at, position, keys);
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
                single_row_of_group(shape, out + at, q + at, before + row, &keys);
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

/* How decoding's keys and values lie. A token reads all of them, so they lie as its products read them: keys turned over, unit by unit, so that a row
 * of scores is a row of a product, and values as rows; where products are of bf16 pairs, both are those pairs. */
#include "num/attention.h"
#include "num/pairs.h"
#include "num/row.h"
#include <string.h>

int64_t bw_cache_room(int64_t keys)
{
    return (keys + BW_UNIT - 1) / BW_UNIT * BW_UNIT;
}

static int64_t bytes_of(int64_t entries, bool half)
{
    return entries * (half ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float));
}

int64_t bw_cache_bytes(int64_t entries)
{
    return bytes_of(entries, bw_attention_is_half());
}

bw_cache bw_cache_in(void *k, void *v, int64_t head)
{
    return (bw_cache){.k = k, .v = v, .head = head, .half = bw_attention_is_half()};
}

bw_cache bw_cache_at(bw_cache cache, int64_t entry)
{
    cache.k = (char *)cache.k + bytes_of(entry, cache.half);
    cache.v = (char *)cache.v + bytes_of(entry, cache.half);
    return cache;
}

void bw_cache_copy(const bw_attention *shape, bw_cache to, bw_cache from, int64_t n)
{
    const size_t bytes = (size_t)bytes_of(bw_cache_room(n) * shape->head_dim, from.half);
    for (int head = 0; head < shape->n_kv; head++) {
        memcpy(bw_cache_at(to, head * to.head).k, bw_cache_at(from, head * from.head).k, bytes);
        memcpy(bw_cache_at(to, head * to.head).v, bw_cache_at(from, head * from.head).v, bytes);
    }
}

/* Rows of one head from key `first` on, unit by unit. */
static void write_keys(float *to, bool half, int64_t first, int64_t n, const float *k, int64_t ld, int64_t head_dim)
{
    float pairs[BW_UNIT * BW_MAX_HEAD_DIM / 2];
    const int64_t depth = bw_steps(half, head_dim);
    for (int64_t j = 0, count; j < n; j += count) {
        const int64_t key = first + j, at = key % BW_UNIT;
        count = n - j < BW_UNIT - at ? n - j : BW_UNIT - at;
        if (half)
            bw_pairs_along_rows(pairs, depth, k + j * ld, ld, count, head_dim);
        bw_transpose(to + (key - at) * depth + at, BW_UNIT, half ? pairs : k + j * ld, half ? depth : ld, count, depth);
    }
}

/* The second of two keys goes beside the first. */
static void write_second(float *to, const float *v, int64_t head_dim)
{
    uint16_t rounded[BW_MAX_HEAD_DIM], *pair = (uint16_t *)(void *)to;
    bw_row_narrow(rounded, v, head_dim);
    for (int64_t c = 0; c < head_dim; c++)
        pair[2 * c + 1] = rounded[c];
}

static void write_pairs_of_values(float *to, int64_t first, int64_t n, const float *v, int64_t ld, int64_t head_dim)
{
    const int64_t second = first % 2;
    if (second)
        write_second(to + first / 2 * head_dim, v, head_dim);
    bw_pairs_along_columns(to + (first + second) / 2 * head_dim, head_dim, v + second * ld, ld, n - second, head_dim);
}

static void write_values(float *to, bool half, int64_t first, int64_t n, const float *v, int64_t ld, int64_t head_dim)
{
    if (half)
        write_pairs_of_values(to, first, n, v, ld, head_dim);
    else
        for (int64_t j = 0; j < n; j++)
            memcpy(to + (first + j) * head_dim, v + j * ld, (size_t)head_dim * sizeof *to);
}

void bw_cache_write(const bw_attention *shape, bw_cache cache, int64_t first, int64_t n, const float *k, const float *v)
{
    const int64_t head_dim = shape->head_dim, ld = shape->n_kv * head_dim;
    for (int head = 0; n > 0 && head < shape->n_kv; head++) {
        const bw_cache there = bw_cache_at(cache, head * cache.head);
        write_keys(there.k, cache.half, first, n, k + head * head_dim, ld, head_dim);
        write_values(there.v, cache.half, first, n, v + head * head_dim, ld, head_dim);
    }
}

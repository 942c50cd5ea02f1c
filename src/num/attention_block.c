/* Attention in blocks (FlashAttention, Dao et al. 2022; Rabe and Staats 2021). A block takes BW_QUERIES query rows of some
 * heads that share their keys and values against BW_KEYS keys. Scores are held transposed, [key][head and query]: then maximum, sum and exponential
 * run over vectors of queries, all five products broadcast entries of k, v or a score, which all columns share, and only a block's q, dout, out and
 * dq are turned over, once. All of it runs on the calling thread.
 *
 * Where products are bf16 and the CPU multiplies it, these are too: what they read is rounded and laid out in pairs, keys and values once for all
 * blocks that meet them; scores, sums and results stay fp32. */
#include "num/attention.h"
#include "num/hot.h"
#include <math.h>

bw_queries bw_queries_of(const bw_attention *shape, bool half, int64_t first_query, int64_t count, int heads)
{
    const int64_t first_key = bw_oldest_key(shape, first_query) / BW_UNIT * BW_UNIT;
    return (bw_queries){shape, half, first_query, count, first_key, first_query + count, heads, (int64_t)heads * BW_QUERIES};
}

int bw_heads_from(const bw_attention *shape, int member)
{
    const int left = bw_group(shape) - member;
    return left < BW_HEADS ? left : BW_HEADS;
}

/* ---- operands ------------------------------------------------------------------------------------------------------- */

void bw_queries_turn_in(const bw_queries *b, float *to, const float *from, int64_t ld)
{
    float rows[BW_QUERIES * BW_MAX_HEAD_DIM / 2];
    const int64_t head_dim = b->shape->head_dim, width = bw_steps(b->half, head_dim);
    for (int head = 0; head < b->heads; head++, from += head_dim, to += BW_QUERIES) {
        if (b->half)
            bw_pairs_along_rows(rows, width, from, ld, b->count, head_dim);
        bw_transpose(to, b->width, b->half ? rows : from, b->half ? width : ld, b->count, width);
        for (int64_t c = 0; c < width; c++)
            for (int64_t i = b->count; i < BW_QUERIES; i++)
                to[c * b->width + i] = 0;
    }
}

void bw_queries_turn_out(const bw_queries *b, float *to, int64_t ld, const float *from)
{
    for (int head = 0; head < b->heads; head++)
        bw_transpose(to + (int64_t)head * b->shape->head_dim, ld, from + head * BW_QUERIES, b->width, b->shape->head_dim, b->count);
}

const float *bw_queries_over_keys(const bw_queries *b, float *memory, const float *scores, int64_t keys)
{
    if (!b->half)
        return scores;
    bw_pairs_along_columns(memory, b->width, scores, b->width, keys, b->width);
    return memory;
}

/* ---- scores --------------------------------------------------------------------------------------------------------- */

void bw_queries_score(const bw_queries *b, float *scores, const float *queries, float scale, const float *k, int64_t row, int64_t column,
                      int64_t keys)
{
    const bw_tile_call call = {keys,     b->width, bw_steps(b->half, b->shape->head_dim), scale, k, row, column, queries, b->width, scores,
                               b->width, false};
    bw_tile_of(b->half, &call);
}

/* Scores of keys first .. first + n with q; of a cache, unit by unit. */
static void score_keys(const bw_queries *b, float *scores, const float *queries, const bw_keys *keys, int64_t first, int64_t n)
{
    const int64_t depth = bw_steps(b->half, b->shape->head_dim);
    if (!keys->cached) {
        bw_queries_score(b, scores, queries, b->shape->scale, keys->k_rows + first * keys->ld_rows, keys->ld_rows, 1, n);
        return;
    }
    for (int64_t j = 0; j < n; j += BW_UNIT)
        bw_queries_score(b, scores + j * b->width, queries, b->shape->scale, keys->k_rows + (first + j) * depth, 1, BW_UNIT,
                         n - j < BW_UNIT ? n - j : BW_UNIT);
}

/* Which of a key's queries see it: columns low .. high - 1. */
static void seen(const bw_queries *b, int64_t key, int64_t *low, int64_t *high)
{
    *low = key > b->first_query ? key - b->first_query : 0;
    *high = b->count;
    if (b->shape->window > 0 && key + b->shape->window - b->first_query < *high)
        *high = key + b->shape->window - b->first_query;
}

/* From here on scores are those of one head, BW_QUERIES columns. Those that are not seen are given a value, and the rest is capped. */
BW_HOT static void cap_scores(float *scores, int64_t ld, int64_t keys, float cap)
{
    for (int64_t j = 0; j < keys; j++, scores += ld)
#pragma omp simd
        for (int i = 0; i < BW_QUERIES; i++)
            scores[i] = cap * bw_tanh(scores[i] / cap);
}

static void mask_scores(const bw_queries *b, float *scores, int64_t first_key, int64_t keys, float value)
{
    for (int64_t j = 0; j < keys; j++, scores += b->width) {
        int64_t low, high;
        seen(b, first_key + j, &low, &high);
        for (int64_t i = 0; i < low && i < BW_QUERIES; i++)
            scores[i] = value;
        for (int64_t i = high < 0 ? 0 : high; i < BW_QUERIES; i++)
            scores[i] = value;
    }
}

void bw_queries_cap_and_mask(const bw_queries *b, float *scores, int64_t first_key, int64_t keys)
{
    if (b->shape->soft_cap > 0)
        cap_scores(scores, b->width, keys, b->shape->soft_cap);
    mask_scores(b, scores, first_key, keys, -3e38f);
}

/* Milakov and Gimelshein 2018: scores become exp(score - running maximum); shrink tells what the sums so far have to be multiplied by. A query that
 * has seen no key yet holds the lowest maximum, and its masked scores stay far below the range of the exponential. */
BW_HOT static void online_softmax(float *scores, int64_t ld, int64_t keys, float *highest, float *sum, float *shrink)
{
    float best[BW_QUERIES], total[BW_QUERIES];
#pragma omp simd
    for (int i = 0; i < BW_QUERIES; i++)
        best[i] = highest[i], total[i] = 0;
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < BW_QUERIES; i++)
            best[i] = scores[j * ld + i] > best[i] ? scores[j * ld + i] : best[i];
    for (int64_t j = 0; j < keys; j++, scores += ld)
#pragma omp simd
        for (int i = 0; i < BW_QUERIES; i++) {
            float e = scores[i] > -1e30f ? bw_exp(scores[i] - best[i]) : 0.0f;
            scores[i] = e;
            total[i] += e;
        }
#pragma omp simd
    for (int i = 0; i < BW_QUERIES; i++) {
        shrink[i] = highest[i] > -1e30f ? bw_exp(highest[i] - best[i]) : 0.0f;
        sum[i] = sum[i] * shrink[i] + total[i];
        highest[i] = best[i];
    }
}

BW_HOT static void scale_columns(float *x, const float *factor, int64_t rows, int64_t width)
{
    for (int64_t c = 0; c < rows; c++, x += width)
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            x[i] *= factor[i];
}

/* What is kept of each column while the keys go by. */
typedef struct running {
    float highest[BW_COLUMNS], sum[BW_COLUMNS], shrink[BW_COLUMNS];
} running;

/* Keys first .. first + keys: scores, their exponentials, and those times values, added to the result. */
static void forward_keys(const bw_queries *b, float *result, running *r, const float *queries, const bw_keys *from, int64_t first, int64_t keys)
{
    const int64_t head_dim = b->shape->head_dim;
    const bool more = first > b->first_key;
    float scores[BW_KEYS * BW_COLUMNS], pairs[BW_KEYS / 2 * BW_COLUMNS];
    score_keys(b, scores, queries, from, first, keys);
    for (int64_t at = 0; at < b->width; at += BW_QUERIES) {
        bw_queries_cap_and_mask(b, scores + at, first, keys);
        online_softmax(scores + at, b->width, keys, r->highest + at, r->sum + at, r->shrink + at);
    }
    if (more)
        scale_columns(result, r->shrink, head_dim, b->width);
    const float *v = from->v_columns + bw_steps(b->half, first) * from->ld_columns, *weights = bw_queries_over_keys(b, pairs, scores, keys);
    bw_tile_of(b->half,
               &(bw_tile_call){head_dim, b->width, bw_steps(b->half, keys), 1, v, 1, from->ld_columns, weights, b->width, result, b->width, more});
}

void bw_attention_block(const bw_queries *b, float *out, int64_t ldo, float *lse, int64_t T, const float *q, int64_t ldq, const bw_keys *from)
{
    float queries[BW_MAX_HEAD_DIM * BW_COLUMNS], result[BW_MAX_HEAD_DIM * BW_COLUMNS];
    running r = {.sum = {0}};
    bw_queries_turn_in(b, queries, q, ldq);
    for (int i = 0; i < BW_COLUMNS; i++)
        r.highest[i] = -3e38f;
    for (int64_t first = b->first_key; first < b->last_key; first += BW_KEYS)
        forward_keys(b, result, &r, queries, from, first, b->last_key - first < BW_KEYS ? b->last_key - first : BW_KEYS);
    for (int64_t i = 0; i < b->width; i++)
        r.shrink[i] = r.sum[i] > 0 ? 1.0f / r.sum[i] : 0.0f;
    scale_columns(result, r.shrink, b->shape->head_dim, b->width);
    bw_queries_turn_out(b, out, ldo, result);
    for (int head = 0; lse && head < b->heads; head++)
        for (int64_t i = 0; i < b->count; i++)
            lse[head * T + i] = r.highest[head * BW_QUERIES + i] + logf(r.sum[head * BW_QUERIES + i]);
}

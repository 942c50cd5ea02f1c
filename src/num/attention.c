/* Causal attention over packed sequences in blocks (FlashAttention, Dao et al. 2022; Rabe and Staats 2021). A block
 * takes QUERIES query rows of one head against KEYS keys. Scores are held transposed, [key][query]: then maximum, sum and
 * exponential run over vectors of queries, all five products broadcast rows of k, v or a score and need no copy of
 * them, and only a block's q, dout, out and dq are turned over, once.
 *
 * The forward pass is parallel over (sequence, head, block of queries), the backward pass over (sequence, key head):
 * whatever is summed is summed by one thread in one order. */
#include "breakwater/num.h"
#include "num/hot.h"
#include "num/row.h"
#include "num/tile.h"
#include <math.h>
#include <string.h>

enum { QUERIES = 16, KEYS = 64, FEW_QUERIES = 4, HEADS = 8, MAX_HEAD = BW_MAX_HEAD_DIM };

/* The block of queries in hand: `count` rows of one head; row i may see keys first_key .. first_query + i of its
 * sequence, less what lies before its window. */
typedef struct block {
    const bw_attention *shape;
    int64_t first_query, count, first_key, last_key;
} block;

static block block_of(const bw_attention *shape, int64_t first_query, int64_t count)
{
    block b = {shape, first_query, count, 0, first_query + count};
    if (shape->window > 0 && first_query - shape->window + 1 > 0)
        b.first_key = first_query - shape->window + 1;
    return b;
}

/* to[c][i] = from[i][c]; the columns past `count` are zero. */
static void turn_in(float (*to)[QUERIES], const float *from, int64_t ld, int64_t count, int head_dim)
{
    bw_transpose(to[0], QUERIES, from, ld, count, head_dim);
    for (int c = 0; c < head_dim; c++)
        for (int64_t i = count; i < QUERIES; i++)
            to[c][i] = 0;
}

static void turn_out(float *to, int64_t ld, float (*from)[QUERIES], int64_t count, int head_dim)
{
    bw_transpose(to, ld, from[0], QUERIES, head_dim, count);
}

/* ---- keys and values ----------------------------------------------------------------------------------------------- */

/* At most KEYS of them, in fp32: where they lie, or widened. */
typedef struct span {
    const float *k, *v;
    int64_t ld;
    float wide[2][KEYS * MAX_HEAD];
} span;

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

static void widen(float *to, const uint16_t *from, int64_t row, int64_t keys, int64_t head_dim)
{
    const int64_t pieces = row == head_dim ? 1 : keys, length = keys * head_dim / pieces;
    for (int64_t j = 0; j < pieces; j++)
        bw_row_widen(to + j * length, from + j * row, length);
}

static void take_span(span *s, bw_cache cache, int64_t first, int64_t keys, int head_dim)
{
    const bw_cache here = bw_cache_at(cache, first * cache.row);
    s->k = here.half ? s->wide[0] : here.k, s->v = here.half ? s->wide[1] : here.v, s->ld = here.half ? head_dim : here.row;
    if (!here.half)
        return;
    widen(s->wide[0], here.k, here.row, keys, head_dim);
    widen(s->wide[1], here.v, here.row, keys, head_dim);
}

/* scores[key][query] of keys first .. first + keys. */
static void score(float (*scores)[QUERIES], const float (*queries)[QUERIES], float scale, const float *k, int64_t ldk, int64_t keys, int head_dim)
{
    bw_tile_call call = {keys, QUERIES, head_dim, scale, k, ldk, 1, queries[0], QUERIES, scores[0], QUERIES, false};
    bw_tile(&call);
}

/* Which of a key's queries see it: columns low .. high - 1. */
static void seen(const block *b, int64_t key, int64_t *low, int64_t *high)
{
    *low = key > b->first_query ? key - b->first_query : 0;
    *high = b->count;
    if (b->shape->window > 0 && key + b->shape->window - b->first_query < *high)
        *high = key + b->shape->window - b->first_query;
}

/* Give the scores that are not seen a value, and cap the rest. */
BW_HOT static void cap_scores(float (*scores)[QUERIES], int64_t keys, float cap)
{
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++)
            scores[j][i] = cap * bw_tanh(scores[j][i] / cap);
}

static void mask_scores(const block *b, float (*scores)[QUERIES], int64_t first_key, int64_t keys, float value)
{
    for (int64_t j = 0; j < keys; j++) {
        int64_t low, high;
        seen(b, first_key + j, &low, &high);
        for (int64_t i = 0; i < low && i < QUERIES; i++)
            scores[j][i] = value;
        for (int64_t i = high < 0 ? 0 : high; i < QUERIES; i++)
            scores[j][i] = value;
    }
}

/* Scores become exp(score - running maximum); shrink tells what the sums so far have to be multiplied by. A query that
 * has seen no key yet holds the lowest maximum, and its masked scores stay far below the range of the exponential. */
BW_HOT static void soften(float (*scores)[QUERIES], int64_t keys, float *highest, float *sum, float *shrink)
{
    float best[QUERIES], total[QUERIES];
#pragma omp simd
    for (int i = 0; i < QUERIES; i++)
        best[i] = highest[i], total[i] = 0;
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++)
            best[i] = scores[j][i] > best[i] ? scores[j][i] : best[i];
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++) {
            float e = scores[j][i] > -1e30f ? bw_exp(scores[j][i] - best[i]) : 0.0f;
            scores[j][i] = e;
            total[i] += e;
        }
#pragma omp simd
    for (int i = 0; i < QUERIES; i++) {
        shrink[i] = highest[i] > -1e30f ? bw_exp(highest[i] - best[i]) : 0.0f;
        sum[i] = sum[i] * shrink[i] + total[i];
        highest[i] = best[i];
    }
}

BW_HOT static void scale_columns(float (*x)[QUERIES], const float *factor, int rows)
{
    for (int c = 0; c < rows; c++)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++)
            x[c][i] *= factor[i];
}

/* One block of queries of one head. q, out: its first row; cache: from the first key of its sequence on, of that head. */
static void forward_block(const block *b, float *out, int64_t ldo, float *lse, const float *q, int64_t ldq, bw_cache cache)
{
    const bw_attention *s = b->shape;
    float queries[MAX_HEAD][QUERIES], result[MAX_HEAD][QUERIES], scores[KEYS][QUERIES];
    float highest[QUERIES], sum[QUERIES], shrink[QUERIES];
    span here;
    turn_in(queries, q, ldq, b->count, s->head_dim);
    for (int i = 0; i < QUERIES; i++)
        highest[i] = -3e38f, sum[i] = 0;
    for (int64_t first = b->first_key; first < b->last_key; first += KEYS) {
        int64_t keys = b->last_key - first < KEYS ? b->last_key - first : KEYS;
        take_span(&here, cache, first, keys, s->head_dim);
        score(scores, queries, s->scale, here.k, here.ld, keys, s->head_dim);
        if (s->soft_cap > 0)
            cap_scores(scores, keys, s->soft_cap);
        mask_scores(b, scores, first, keys, -3e38f);
        soften(scores, keys, highest, sum, shrink);
        bool more = first > b->first_key;
        if (more)
            scale_columns(result, shrink, s->head_dim);
        bw_tile_call add = {s->head_dim, QUERIES, keys, 1.0f, here.v, 1, here.ld, scores[0], QUERIES, result[0], QUERIES, more};
        bw_tile(&add);
    }
    for (int64_t i = 0; i < QUERIES; i++)
        shrink[i] = sum[i] > 0 ? 1.0f / sum[i] : 0.0f;
    scale_columns(result, shrink, s->head_dim);
    turn_out(out, ldo, result, b->count, s->head_dim);
    for (int64_t i = 0; lse && i < b->count; i++)
        lse[i] = highest[i] + logf(sum[i]);
}

/* Sequence number and first query of the block that comes `index`-th, counted through all sequences. */
static bool find_block(const int32_t *offsets, int n_seq, int64_t index, int *sequence, int64_t *first_query)
{
    for (int i = 0; i < n_seq; i++) {
        int64_t blocks = (offsets[i + 1] - offsets[i] + QUERIES - 1) / QUERIES;
        if (index < blocks) {
            *sequence = i;
            *first_query = index * QUERIES;
            return true;
        }
        index -= blocks;
    }
    return false;
}

static int64_t count_blocks(const int32_t *offsets, int n_seq)
{
    int64_t blocks = 0;
    for (int i = 0; i < n_seq; i++)
        blocks += (offsets[i + 1] - offsets[i] + QUERIES - 1) / QUERIES;
    return blocks;
}

void bw_attention_forward(const bw_attention *shape, float *out, float *lse, const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk,
                          const int32_t *offsets, int n_seq)
{
    int64_t blocks = count_blocks(offsets, n_seq), T = offsets[n_seq];
    int group = shape->n_head / shape->n_kv;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t index = 0; index < blocks; index++)
        for (int head = 0; head < shape->n_head; head++) {
            int sequence;
            int64_t first;
            if (!find_block(offsets, n_seq, index, &sequence, &first))
                continue;
            int64_t start = offsets[sequence], left = offsets[sequence + 1] - start - first, row = start + first;
            block b = block_of(shape, first, left < QUERIES ? left : QUERIES);
            int64_t column = (int64_t)head * shape->head_dim, kv = start * ldk + (int64_t)(head / group) * shape->head_dim;
            const bw_cache here = {(float *)k + kv, (float *)v + kv, shape->head_dim, ldk, false};
            forward_block(&b, out + row * ldq + column, ldq, lse + head * T + row, q + row * ldq + column, ldq, here);
        }
}

BW_INLINE float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; c++)
        sum += a[c] * b[c];
    return sum;
}

/* dots[i] = scale * row i of a times row i of b; rows of b are ldb apart, of a lda: 0 takes the same one each time. */
BW_HOT static void attention_dots(float *dots, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t rows, int64_t head_dim, float scale)
{
    for (int64_t i = 0; i < rows; i++)
        dots[i] = dot(a + i * lda, b + i * ldb, head_dim) * scale;
}

/* What the backward pass holds of a block of queries, turned over. */
typedef struct turned {
    float queries[MAX_HEAD][QUERIES], douts[MAX_HEAD][QUERIES], dqueries[MAX_HEAD][QUERIES];
    float lse[QUERIES], dots[QUERIES]; /* dots: sum over the head of dout * out */
} turned;

/* scores -> probabilities, in place; dscores (the gradient of the probabilities) -> that of the products q k. */
BW_HOT static void score_gradient(float (*scores)[QUERIES], float (*dscores)[QUERIES], int64_t keys, const float *lse, const float *dots, float scale)
{
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++) {
            float p = scores[j][i] > -1e30f ? bw_exp(scores[j][i] - lse[i]) : 0.0f;
            dscores[j][i] = p * (dscores[j][i] - dots[i]) * scale;
            scores[j][i] = p;
        }
}

/* Capped scores: the derivative of the cap, 1 - (score / cap)^2, taken into dscores beforehand would be lost in
 * (dscores - dots), so it follows in a pass of its own over the kept capped scores. */
BW_HOT static void score_gradient_capped(float (*scores)[QUERIES], float (*dscores)[QUERIES], int64_t keys, const float *lse, const float *dots,
                                         float scale, float cap)
{
    float inverse = 1.0f / cap;
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++) {
            bool visible = scores[j][i] > -1e30f;
            float t = visible ? scores[j][i] * inverse : 0.0f, p = visible ? bw_exp(scores[j][i] - lse[i]) : 0.0f;
            dscores[j][i] = p * (dscores[j][i] - dots[i]) * scale * (1.0f - t * t);
            scores[j][i] = p;
        }
}

/* Keys first .. first + keys against the block: adds to dk, dv (rows of those keys) and to the block's dqueries. */
static void backward_keys(const block *b, turned *t, int64_t first, int64_t keys, float *dk, float *dv, const float *dout, const float *q,
                          int64_t ldq, const float *k, const float *v, int64_t ldk)
{
    const bw_attention *s = b->shape;
    float scores[KEYS][QUERIES], dscores[KEYS][QUERIES];
    score(scores, t->queries, s->scale, k, ldk, keys, s->head_dim);
    if (s->soft_cap > 0)
        cap_scores(scores, keys, s->soft_cap);
    mask_scores(b, scores, first, keys, -3e38f);
    score(dscores, t->douts, 1.0f, v, ldk, keys, s->head_dim);
    if (s->soft_cap > 0)
        score_gradient_capped(scores, dscores, keys, t->lse, t->dots, s->scale, s->soft_cap);
    else
        score_gradient(scores, dscores, keys, t->lse, t->dots, s->scale);
    bw_tile_call to_v = {keys, s->head_dim, b->count, 1.0f, scores[0], QUERIES, 1, dout, ldq, dv, ldk, true};
    bw_tile_call to_k = {keys, s->head_dim, b->count, 1.0f, dscores[0], QUERIES, 1, q, ldq, dk, ldk, true};
    bw_tile_call to_q = {s->head_dim, QUERIES, keys, 1.0f, k, 1, ldk, dscores[0], QUERIES, t->dqueries[0], QUERIES, first > b->first_key};
    bw_tile(&to_v);
    bw_tile(&to_k);
    bw_tile(&to_q);
}

static void load_turned(turned *t, const block *b, const float *q, const float *dout, const float *out, const float *lse, int64_t ldq)
{
    int head_dim = b->shape->head_dim;
    turn_in(t->queries, q, ldq, b->count, head_dim);
    turn_in(t->douts, dout, ldq, b->count, head_dim);
    memset(t->dots, 0, sizeof t->dots);
    attention_dots(t->dots, dout, ldq, out, ldq, b->count, head_dim, 1);
    for (int64_t i = 0; i < QUERIES; i++)
        t->lse[i] = i < b->count ? lse[i] : 0;
}

/* All of one key head in one sequence; the pointers are at the sequence's first row and the head's first column. */
static void backward_group(const bw_attention *shape, int64_t length, int64_t T, float *dq, float *dk, float *dv, const float *dout, const float *out,
                           const float *lse, const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk)
{
    turned t;
    for (int64_t j = 0; j < length; j++) {
        memset(dk + j * ldk, 0, (size_t)shape->head_dim * sizeof *dk);
        memset(dv + j * ldk, 0, (size_t)shape->head_dim * sizeof *dv);
    }
    for (int head = 0; head < shape->n_head / shape->n_kv; head++)
        for (int64_t first = 0; first < length; first += QUERIES) {
            block b = block_of(shape, first, length - first < QUERIES ? length - first : QUERIES);
            int64_t at = first * ldq + (int64_t)head * shape->head_dim;
            load_turned(&t, &b, q + at, dout + at, out + at, lse + head * T + first, ldq);
            for (int64_t key = b.first_key; key < b.last_key; key += KEYS) {
                int64_t keys = b.last_key - key < KEYS ? b.last_key - key : KEYS;
                backward_keys(&b, &t, key, keys, dk + key * ldk, dv + key * ldk, dout + at, q + at, ldq, k + key * ldk, v + key * ldk, ldk);
            }
            turn_out(dq + at, ldq, t.dqueries, b.count, shape->head_dim);
        }
}

void bw_attention_backward(const bw_attention *shape, float *dq, float *dk, float *dv, const float *dout, const float *out, const float *lse,
                           const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk, const int32_t *offsets, int n_seq)
{
    int64_t T = offsets[n_seq], group = shape->n_head / shape->n_kv;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int sequence = 0; sequence < n_seq; sequence++)
        for (int head = 0; head < shape->n_kv; head++) {
            int64_t row = offsets[sequence], length = offsets[sequence + 1] - row;
            int64_t x = row * ldq + head * group * shape->head_dim, y = row * ldk + (int64_t)head * shape->head_dim;
            backward_group(shape, length, T, dq + x, dk + y, dv + y, dout + x, out + x, lse + head * group * T + row, q + x, k + y, v + y, ldq, ldk);
        }
}

/* Scores of one query against `keys` keys; their maximum. */
static float score_query(const bw_attention *s, float *scores, const float *q, const float *k, int64_t ldk, int64_t keys)
{
    attention_dots(scores, q, 0, k, ldk, keys, s->head_dim, s->scale);
    if (s->soft_cap > 0)
        bw_row_cap(scores, keys, s->soft_cap);
    return bw_row_highest(scores, keys, -3e38f);
}

/* One row at `position`, some heads of one key head: a block of one query would waste its other columns, but these heads share keys and values. */
static void single_row(const bw_attention *s, int heads, float *out, const float *q, int64_t position, bw_cache cache)
{
    float scores[HEADS][KEYS], highest[HEADS] = {0}, sum[HEADS] = {0};
    span here;
    memset(out, 0, (size_t)(heads * s->head_dim) * sizeof *out);
    for (int64_t first = block_of(s, position, 1).first_key; first <= position; first += KEYS) {
        const int64_t keys = position + 1 - first < KEYS ? position + 1 - first : KEYS;
        take_span(&here, cache, first, keys, s->head_dim);
        for (int h = 0; h < heads; h++) {
            const float now = score_query(s, scores[h], q + h * s->head_dim, here.k, here.ld, keys);
            const float most = sum[h] > 0 && highest[h] > now ? highest[h] : now, shrink = sum[h] > 0 ? bw_exp(highest[h] - most) : 0.0f;
            bw_row_scale(out + h * s->head_dim, s->head_dim, shrink);
            sum[h] = sum[h] * shrink + bw_row_exp(scores[h], keys, most);
            highest[h] = most;
        }
        bw_tile(&(bw_tile_call){heads, s->head_dim, keys, 1, scores[0], KEYS, 1, here.v, here.ld, out, s->head_dim, true});
    }
    for (int h = 0; h < heads; h++)
        bw_row_scale(out + h * s->head_dim, s->head_dim, 1.0f / sum[h]);
}

static void single_row_of_group(const bw_attention *s, float *out, const float *q, int64_t position, bw_cache cache)
{
    const int group = s->n_head / s->n_kv;
    for (int head = 0; head < group; head += HEADS) {
        const int64_t at = (int64_t)head * s->head_dim;
        single_row(s, group - head < HEADS ? group - head : HEADS, out + at, q + at, position, cache);
    }
}

void bw_attention_cached(const bw_attention *shape, float *out, const float *q, int64_t ldq, int n_new, bw_cache cache, int length)
{
    int group = shape->n_head / shape->n_kv, before = length - n_new;
    if (n_new < FEW_QUERIES) {
#pragma omp parallel for collapse(2) schedule(static)
        for (int row = 0; row < n_new; row++)
            for (int head = 0; head < shape->n_kv; head++) {
                const int64_t at = row * ldq + (int64_t)head * group * shape->head_dim;
                single_row_of_group(shape, out + at, q + at, before + row, bw_cache_at(cache, head * cache.head));
            }
        return;
    }
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int first = 0; first < n_new; first += QUERIES)
        for (int head = 0; head < shape->n_head; head++) {
            block b = block_of(shape, before + first, n_new - first < QUERIES ? n_new - first : QUERIES);
            const int64_t at = first * ldq + (int64_t)head * shape->head_dim;
            forward_block(&b, out + at, ldq, NULL, q + at, ldq, bw_cache_at(cache, head / group * cache.head));
        }
}

/* Causal attention over packed sequences in blocks (FlashAttention, Dao et al. 2022; Rabe and Staats 2021). A block takes QUERIES query rows of some
 * heads that share their keys and values against KEYS keys. Scores are held transposed, [key][head and query]: then maximum, sum and exponential run
 * over vectors of queries, all five products broadcast entries of k, v or a score, which all columns share, and only a block's q, dout, out and dq
 * are turned over, once.
 *
 * Where products are bf16 and the CPU multiplies it, these are too: what they read is rounded and laid out in pairs, keys and values once for all
 * blocks that meet them; scores, sums and results stay fp32.
 *
 * The forward pass is parallel over (block of queries, heads), the backward pass over (sequence, key head): whatever is summed is summed by one
 * thread in one order. */
#include "num/attention.h"
#include "num/gemm.h"
#include "num/hot.h"
#include "num/pairs.h"
#include "num/row.h"
#include <math.h>
#include <string.h>

enum { QUERIES = BW_QUERIES, KEYS = BW_KEYS, MAX_HEAD = BW_MAX_HEAD_DIM, COLUMNS = QUERIES * BW_HEADS }; /* of a block, at most */
typedef bw_block_of_queries block;

block bw_block_of(const bw_attention *shape, bool half, int64_t first_query, int64_t count, int heads)
{
    const int64_t first_key = bw_oldest_key(shape, first_query) / BW_UNIT * BW_UNIT;
    return (block){shape, half, first_query, count, first_key, first_query + count, heads, (int64_t)heads * QUERIES};
}

/* ---- products ------------------------------------------------------------------------------------------------------- */

static void multiply(const block *b, const bw_tile_call *call)
{
    bw_tile_of(b->half, call);
}

static int64_t steps(const block *b, int64_t n)
{
    return bw_steps(b->half, n);
}

/* Rows of q or dout, heads beside one another, for products that sum over the head: to[c][h, i] = from[i][h, c]; past the last row are zeros. */
static void turn_in(const block *b, float *to, const float *from, int64_t ld)
{
    float rows[QUERIES * MAX_HEAD / 2];
    const int64_t head_dim = b->shape->head_dim, width = steps(b, head_dim);
    for (int head = 0; head < b->heads; head++, from += head_dim, to += QUERIES) {
        if (b->half)
            bw_pairs_along_rows(rows, width, from, ld, b->count, head_dim);
        bw_transpose(to, b->width, b->half ? rows : from, b->half ? width : ld, b->count, width);
        for (int64_t c = 0; c < width; c++)
            for (int64_t i = b->count; i < QUERIES; i++)
                to[c * b->width + i] = 0;
    }
}

static void turn_out(const block *b, float *to, int64_t ld, const float *from)
{
    for (int head = 0; head < b->heads; head++)
        bw_transpose(to + (int64_t)head * b->shape->head_dim, ld, from + head * QUERIES, b->width, b->shape->head_dim, b->count);
}

/* Scores on the right of a product that sums over keys, and on the left of one that sums over queries. memory: for their pairs. */
static const float *over_keys(const block *b, float *memory, const float *scores, int64_t keys)
{
    if (!b->half)
        return scores;
    bw_pairs_along_columns(memory, b->width, scores, b->width, keys, b->width);
    return memory;
}

static const float *over_queries(const block *b, float *memory, const float *scores, int64_t keys)
{
    if (!b->half)
        return scores;
    bw_pairs_along_rows(memory, b->width / 2, scores, b->width, keys, b->width);
    return memory;
}

/* ---- packed sequences: what all blocks read ------------------------------------------------------------------------ */

typedef struct packed {
    const bw_attention *shape;
    const float *k, *v;
    int64_t ldk, T;
    const int32_t *offsets;
    int n_seq;
    /* [key head][T][head_dim / 2] of k and of v; then [key head][T][head_dim] of one of them, two keys a row, where a sequence begins at the row of
     * its first key and leaves half of its rows alone. NULL: products are fp32 */
    float *pairs;
} packed;

bool bw_attention_is_half(void)
{
    return bw_gemm_backend_chosen() == &bw_gemm_onednn && bw_pairs_are_here();
}

int64_t bw_attention_scratch(const bw_attention *shape, int64_t T)
{
    return bw_attention_is_half() ? 2 * shape->n_kv * T * shape->head_dim : 0;
}

/* Where the pairs of one head of a sequence lie. */
typedef struct pairs_of_head {
    float *k_rows, *v_rows, *columns;
} pairs_of_head;

static pairs_of_head pairs_at(const packed *p, int sequence, int head)
{
    const int64_t head_dim = p->shape->head_dim, all = p->shape->n_kv * p->T * head_dim, at = (head * p->T + p->offsets[sequence]) * head_dim;
    return (pairs_of_head){p->pairs + at / 2, p->pairs + (all + at) / 2, p->pairs + all + at};
}

static int64_t place_in_fp32(const packed *p, int sequence, int head)
{
    return p->offsets[sequence] * p->ldk + (int64_t)head * p->shape->head_dim;
}

static bw_keys keys_of(const packed *p, int sequence, int head)
{
    if (p->pairs) {
        const pairs_of_head here = pairs_at(p, sequence, head);
        return (bw_keys){here.k_rows, here.v_rows, here.columns, here.columns, p->shape->head_dim / 2, p->shape->head_dim, false};
    }
    const int64_t at = place_in_fp32(p, sequence, head);
    return (bw_keys){p->k + at, p->v + at, p->k + at, p->v + at, p->ldk, p->ldk, false};
}

/* The forward pass sums over keys of v, the backward pass of k. */
static void write_pairs(const packed *p, int sequence, int head, bool backward)
{
    const pairs_of_head to = pairs_at(p, sequence, head);
    const int64_t head_dim = p->shape->head_dim, length = p->offsets[sequence + 1] - p->offsets[sequence], at = place_in_fp32(p, sequence, head);
    bw_pairs_along_rows(to.k_rows, head_dim / 2, p->k + at, p->ldk, length, head_dim);
    if (backward)
        bw_pairs_along_rows(to.v_rows, head_dim / 2, p->v + at, p->ldk, length, head_dim);
    bw_pairs_along_columns(to.columns, head_dim, (backward ? p->k : p->v) + at, p->ldk, length, head_dim);
}

static packed pack(const bw_attention *shape, const float *k, const float *v, int64_t ldk, const int32_t *offsets, int n_seq, float *scratch,
                   bool backward)
{
    const packed p = {shape, k, v, ldk, offsets[n_seq], offsets, n_seq, bw_attention_is_half() ? scratch : NULL};
    if (p.pairs)
#pragma omp parallel for collapse(2) schedule(dynamic)
        for (int sequence = 0; sequence < n_seq; sequence++)
            for (int head = 0; head < shape->n_kv; head++)
                write_pairs(&p, sequence, head, backward);
    return p;
}

/* ---- forward -------------------------------------------------------------------------------------------------------- */

/* scores[key][head, query] of some keys, rows of k: entry (key, c) at k[key * row + c * column]. */
static void score(const block *b, float *scores, const float *queries, float scale, const float *k, int64_t row, int64_t column, int64_t keys)
{
    const bw_tile_call call = {keys, b->width, steps(b, b->shape->head_dim), scale, k, row, column, queries, b->width, scores, b->width, false};
    multiply(b, &call);
}

/* The same of keys first .. first + n with q; of a cache, unit by unit. */
static void score_keys(const block *b, float *scores, const float *queries, const bw_keys *keys, int64_t first, int64_t n)
{
    const int64_t depth = steps(b, b->shape->head_dim);
    if (!keys->cached) {
        score(b, scores, queries, b->shape->scale, keys->k_rows + first * keys->ld_rows, keys->ld_rows, 1, n);
        return;
    }
    for (int64_t j = 0; j < n; j += BW_UNIT)
        score(b, scores + j * b->width, queries, b->shape->scale, keys->k_rows + (first + j) * depth, 1, BW_UNIT, n - j < BW_UNIT ? n - j : BW_UNIT);
}

/* Which of a key's queries see it: columns low .. high - 1. */
static void seen(const block *b, int64_t key, int64_t *low, int64_t *high)
{
    *low = key > b->first_query ? key - b->first_query : 0;
    *high = b->count;
    if (b->shape->window > 0 && key + b->shape->window - b->first_query < *high)
        *high = key + b->shape->window - b->first_query;
}

/* From here on scores are those of one head, QUERIES columns. Those that are not seen are given a value, and the rest is capped. */
BW_HOT static void cap_scores(float *scores, int64_t ld, int64_t keys, float cap)
{
    for (int64_t j = 0; j < keys; j++, scores += ld)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++)
            scores[i] = cap * bw_tanh(scores[i] / cap);
}

static void mask_scores(const block *b, float *scores, int64_t first_key, int64_t keys, float value)
{
    for (int64_t j = 0; j < keys; j++, scores += b->width) {
        int64_t low, high;
        seen(b, first_key + j, &low, &high);
        for (int64_t i = 0; i < low && i < QUERIES; i++)
            scores[i] = value;
        for (int64_t i = high < 0 ? 0 : high; i < QUERIES; i++)
            scores[i] = value;
    }
}

static void cap_and_mask(const block *b, float *scores, int64_t first_key, int64_t keys)
{
    if (b->shape->soft_cap > 0)
        cap_scores(scores, b->width, keys, b->shape->soft_cap);
    mask_scores(b, scores, first_key, keys, -3e38f);
}

/* Milakov and Gimelshein 2018: scores become exp(score - running maximum); shrink tells what the sums so far have to be multiplied by. A query that
 * has seen no key yet holds the lowest maximum, and its masked scores stay far below the range of the exponential. */
BW_HOT static void online_softmax(float *scores, int64_t ld, int64_t keys, float *highest, float *sum, float *shrink)
{
    float best[QUERIES], total[QUERIES];
#pragma omp simd
    for (int i = 0; i < QUERIES; i++)
        best[i] = highest[i], total[i] = 0;
    for (int64_t j = 0; j < keys; j++)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++)
            best[i] = scores[j * ld + i] > best[i] ? scores[j * ld + i] : best[i];
    for (int64_t j = 0; j < keys; j++, scores += ld)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++) {
            float e = scores[i] > -1e30f ? bw_exp(scores[i] - best[i]) : 0.0f;
            scores[i] = e;
            total[i] += e;
        }
#pragma omp simd
    for (int i = 0; i < QUERIES; i++) {
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
    float highest[COLUMNS], sum[COLUMNS], shrink[COLUMNS];
} running;

/* Keys first .. first + keys: scores, their exponentials, and those times values, added to the result. */
static void forward_keys(const block *b, float *result, running *r, const float *queries, const bw_keys *from, int64_t first, int64_t keys)
{
    const int64_t head_dim = b->shape->head_dim;
    const bool more = first > b->first_key;
    float scores[KEYS * COLUMNS], pairs[KEYS / 2 * COLUMNS];
    score_keys(b, scores, queries, from, first, keys);
    for (int64_t at = 0; at < b->width; at += QUERIES) {
        cap_and_mask(b, scores + at, first, keys);
        online_softmax(scores + at, b->width, keys, r->highest + at, r->sum + at, r->shrink + at);
    }
    if (more)
        scale_columns(result, r->shrink, head_dim, b->width);
    const float *v = from->v_columns + steps(b, first) * from->ld_columns, *weights = over_keys(b, pairs, scores, keys);
    multiply(b, &(bw_tile_call){head_dim, b->width, steps(b, keys), 1, v, 1, from->ld_columns, weights, b->width, result, b->width, more});
}

void bw_attention_block(const block *b, float *out, int64_t ldo, float *lse, int64_t T, const float *q, int64_t ldq, const bw_keys *from)
{
    float queries[MAX_HEAD * COLUMNS], result[MAX_HEAD * COLUMNS];
    running r = {.sum = {0}};
    turn_in(b, queries, q, ldq);
    for (int i = 0; i < COLUMNS; i++)
        r.highest[i] = -3e38f;
    for (int64_t first = b->first_key; first < b->last_key; first += KEYS)
        forward_keys(b, result, &r, queries, from, first, b->last_key - first < KEYS ? b->last_key - first : KEYS);
    for (int64_t i = 0; i < b->width; i++)
        r.shrink[i] = r.sum[i] > 0 ? 1.0f / r.sum[i] : 0.0f;
    scale_columns(result, r.shrink, b->shape->head_dim, b->width);
    turn_out(b, out, ldo, result);
    for (int head = 0; lse && head < b->heads; head++)
        for (int64_t i = 0; i < b->count; i++)
            lse[head * T + i] = r.highest[head * QUERIES + i] + logf(r.sum[head * QUERIES + i]);
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

/* Heads that share keys and values, as many as one block takes: the first of them is head `piece` * BW_HEADS of its key head. */
static int pieces(const bw_attention *shape)
{
    return (bw_group(shape) + BW_HEADS - 1) / BW_HEADS;
}

int bw_heads_from(const bw_attention *shape, int member)
{
    const int left = bw_group(shape) - member;
    return left < BW_HEADS ? left : BW_HEADS;
}

static void forward_piece(const packed *p, int64_t index, int kv_head, int member, float *out, float *lse, const float *q, int64_t ldq)
{
    int sequence;
    int64_t first;
    if (!find_block(p->offsets, p->n_seq, index, &sequence, &first))
        return;
    const int64_t left = p->offsets[sequence + 1] - p->offsets[sequence] - first, row = p->offsets[sequence] + first;
    const int64_t head = (int64_t)kv_head * bw_group(p->shape) + member, at = row * ldq + head * p->shape->head_dim;
    const block b = bw_block_of(p->shape, p->pairs != NULL, first, left < QUERIES ? left : QUERIES, bw_heads_from(p->shape, member));
    const bw_keys keys = keys_of(p, sequence, kv_head);
    bw_attention_block(&b, out + at, ldq, lse + head * p->T + row, p->T, q + at, ldq, &keys);
}

void bw_attention_forward(const bw_attention *shape, float *out, float *lse, const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk,
                          const int32_t *offsets, int n_seq, float *scratch)
{
    const packed p = pack(shape, k, v, ldk, offsets, n_seq, scratch, false);
    const int64_t blocks = count_blocks(offsets, n_seq);
    const int heads = shape->n_kv * pieces(shape);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t index = 0; index < blocks; index++)
        for (int head = 0; head < heads; head++)
            forward_piece(&p, index, head / pieces(shape), head % pieces(shape) * BW_HEADS, out, lse, q, ldq);
}

/* ---- backward ------------------------------------------------------------------------------------------------------- */

BW_INLINE float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; c++)
        sum += a[c] * b[c];
    return sum;
}

/* dots[i] = row i of a times row i of b. */
BW_HOT static void attention_dots(float *dots, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t rows, int64_t head_dim)
{
    for (int64_t i = 0; i < rows; i++)
        dots[i] = dot(a + i * lda, b + i * ldb, head_dim);
}

/* What the backward pass holds of a block of queries: turned over, and as rows, heads one below the other, for products that sum over queries. */
typedef struct turned {
    float queries[MAX_HEAD * COLUMNS], douts[MAX_HEAD * COLUMNS], dqueries[MAX_HEAD * COLUMNS];
    float q_rows[COLUMNS * MAX_HEAD], dout_rows[COLUMNS * MAX_HEAD]; /* [head, query][head_dim] */
    float lse[COLUMNS], dots[COLUMNS];                               /* dots: sum over the head of dout * out */
} turned;

/* scores -> probabilities, in place; dscores (the gradient of the probabilities) -> that of the products q k. */
BW_HOT static void score_gradient(float *scores, float *dscores, int64_t ld, int64_t keys, const float *lse, const float *dots, float scale)
{
    for (int64_t j = 0; j < keys; j++, scores += ld, dscores += ld)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++) {
            float p = scores[i] > -1e30f ? bw_exp(scores[i] - lse[i]) : 0.0f;
            dscores[i] = p * (dscores[i] - dots[i]) * scale;
            scores[i] = p;
        }
}

/* Capped scores: the derivative of the cap, 1 - (score / cap)^2, taken into dscores beforehand would be lost in
 * (dscores - dots), so it follows in a pass of its own over the kept capped scores. */
BW_HOT static void score_gradient_capped(float *scores, float *dscores, int64_t ld, int64_t keys, const float *lse, const float *dots, float scale,
                                         float cap)
{
    float inverse = 1.0f / cap;
    for (int64_t j = 0; j < keys; j++, scores += ld, dscores += ld)
#pragma omp simd
        for (int i = 0; i < QUERIES; i++) {
            bool visible = scores[i] > -1e30f;
            float t = visible ? scores[i] * inverse : 0.0f, p = visible ? bw_exp(scores[i] - lse[i]) : 0.0f;
            dscores[i] = p * (dscores[i] - dots[i]) * scale * (1.0f - t * t);
            scores[i] = p;
        }
}

/* Keys first .. first + keys against the block: adds to dk, dv (rows of those keys) and to the block's dqueries. */
static void backward_keys(const block *b, turned *t, int64_t first, int64_t keys, float *dk, float *dv, int64_t ldk, const bw_keys *from)
{
    const bw_attention *s = b->shape;
    const int64_t width = b->width, head_dim = s->head_dim;
    float scores[KEYS * COLUMNS], dscores[KEYS * COLUMNS], pairs[KEYS / 2 * COLUMNS];
    score(b, scores, t->queries, s->scale, from->k_rows + first * from->ld_rows, from->ld_rows, 1, keys);
    score(b, dscores, t->douts, 1.0f, from->v_rows + first * from->ld_rows, from->ld_rows, 1, keys);
    for (int64_t head = 0; head < width; head += QUERIES) {
        cap_and_mask(b, scores + head, first, keys);
        if (s->soft_cap > 0)
            score_gradient_capped(scores + head, dscores + head, width, keys, t->lse + head, t->dots + head, s->scale, s->soft_cap);
        else
            score_gradient(scores + head, dscores + head, width, keys, t->lse + head, t->dots + head, s->scale);
    }
    bw_tile_call sum = {keys, head_dim, steps(b, width), 1, NULL, steps(b, width), 1, t->dout_rows, head_dim, dv, ldk, true};
    sum.a = over_queries(b, pairs, scores, keys);
    multiply(b, &sum);
    sum.a = over_queries(b, pairs, dscores, keys), sum.b = t->q_rows, sum.c = dk;
    multiply(b, &sum);
    const float *k_columns = from->k_columns + steps(b, first) * from->ld_columns, *weights = over_keys(b, pairs, dscores, keys);
    multiply(b, &(bw_tile_call){head_dim, width, steps(b, keys), 1, k_columns, 1, from->ld_columns, weights, b->width, t->dqueries, b->width,
                                first > b->first_key});
}

/* Rows of q or dout, heads one below the other, for products that sum over all of them; past the last row there are zeros. */
static void take_rows(const block *b, float *to, const float *from, int64_t ld)
{
    const int64_t head_dim = b->shape->head_dim, rows = steps(b, QUERIES), there = steps(b, b->count);
    for (int head = 0; head < b->heads; head++, from += head_dim, to += rows * head_dim) {
        if (b->half)
            bw_pairs_along_columns(to, head_dim, from, ld, b->count, head_dim);
        for (int64_t i = 0; !b->half && i < there; i++)
            memcpy(to + i * head_dim, from + i * ld, (size_t)head_dim * sizeof *to);
        memset(to + there * head_dim, 0, (size_t)((rows - there) * head_dim) * sizeof *to);
    }
}

/* dots[i]: row i of dout, as products read it, times that of out. A row that sees one key only has no gradient, and dout unrounded would leave its
 * rounding there. */
static void take_dots(const block *b, float *dots, const float *dout, const float *out, int64_t ld)
{
    const int64_t head_dim = b->shape->head_dim;
    uint16_t half[QUERIES * MAX_HEAD];
    float rounded[QUERIES * MAX_HEAD];
    if (b->half) {
        bw_rows_narrow(half, head_dim, dout, ld, b->count, head_dim);
        bw_row_widen(rounded, half, b->count * head_dim);
    }
    attention_dots(dots, b->half ? rounded : dout, b->half ? head_dim : ld, out, ld, b->count, head_dim);
}

/* lse: of each head, T apart. */
static void load_turned(turned *t, const block *b, const float *q, const float *dout, const float *out, const float *lse, int64_t T, int64_t ldq)
{
    const int64_t head_dim = b->shape->head_dim;
    turn_in(b, t->queries, q, ldq);
    turn_in(b, t->douts, dout, ldq);
    take_rows(b, t->q_rows, q, ldq);
    take_rows(b, t->dout_rows, dout, ldq);
    memset(t->dots, 0, sizeof t->dots);
    memset(t->lse, 0, sizeof t->lse);
    for (int head = 0; head < b->heads; head++) {
        take_dots(b, t->dots + head * QUERIES, dout + head * head_dim, out + head * head_dim, ldq);
        memcpy(t->lse + head * QUERIES, lse + head * T, (size_t)b->count * sizeof *lse);
    }
}

/* All of one key head in one sequence; the pointers are at the sequence's first row and the head's first column. */
static void backward_group(const packed *p, int sequence, int head, float *dq, float *dk, float *dv, const float *dout, const float *out,
                           const float *lse, const float *q, int64_t ldq)
{
    turned t;
    const bw_attention *shape = p->shape;
    const int64_t length = p->offsets[sequence + 1] - p->offsets[sequence];
    const bw_keys from = keys_of(p, sequence, head);
    for (int64_t j = 0; j < length; j++) {
        memset(dk + j * p->ldk, 0, (size_t)shape->head_dim * sizeof *dk);
        memset(dv + j * p->ldk, 0, (size_t)shape->head_dim * sizeof *dv);
    }
    for (int member = 0; member < bw_group(shape); member += BW_HEADS)
        for (int64_t first = 0; first < length; first += QUERIES) {
            const block b =
                bw_block_of(shape, p->pairs != NULL, first, length - first < QUERIES ? length - first : QUERIES, bw_heads_from(shape, member));
            const int64_t at = first * ldq + (int64_t)member * shape->head_dim;
            load_turned(&t, &b, q + at, dout + at, out + at, lse + member * p->T + first, p->T, ldq);
            for (int64_t key = b.first_key; key < b.last_key; key += KEYS)
                backward_keys(&b, &t, key, b.last_key - key < KEYS ? b.last_key - key : KEYS, dk + key * p->ldk, dv + key * p->ldk, p->ldk, &from);
            turn_out(&b, dq + at, ldq, t.dqueries);
        }
}

void bw_attention_backward(const bw_attention *shape, float *dq, float *dk, float *dv, const float *dout, const float *out, const float *lse,
                           const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk, const int32_t *offsets, int n_seq,
                           float *scratch)
{
    const packed p = pack(shape, k, v, ldk, offsets, n_seq, scratch, true);
    const int group = bw_group(shape);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int sequence = 0; sequence < n_seq; sequence++)
        for (int head = 0; head < shape->n_kv; head++) {
            const int64_t row = offsets[sequence], x = row * ldq + (int64_t)head * group * shape->head_dim;
            const int64_t y = row * ldk + (int64_t)head * shape->head_dim;
            backward_group(&p, sequence, head, dq + x, dk + y, dv + y, dout + x, out + x, lse + head * group * p.T + row, q + x, ldq);
        }
}

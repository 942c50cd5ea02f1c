/* Causal attention over packed sequences in blocks (FlashAttention, Dao et al. 2022; Rabe and Staats 2021). A block
 * takes QUERIES query rows of one head against KEYS keys. Scores are held transposed, [key][query]: then maximum, sum and
 * exponential run over vectors of queries, all five products broadcast rows of k, v or a score and need no copy of
 * them, and only a block's q, dout, out and dq are turned over, once.
 *
 * Where products are bf16 and the CPU multiplies it, these are too: what they read is rounded and laid out in pairs, keys and values once for all
 * blocks that meet them; scores, sums and results stay fp32.
 *
 * The forward pass is parallel over (sequence, head, block of queries), the backward pass over (sequence, key head):
 * whatever is summed is summed by one thread in one order. */
#include "num/attention.h"
#include "num/hot.h"
#include "num/pairs.h"
#include "num/row.h"
#include <math.h>
#include <string.h>

enum { QUERIES = BW_QUERIES, KEYS = BW_KEYS, MAX_HEAD = BW_MAX_HEAD_DIM };
typedef bw_block_of_queries block;

block bw_queries(const bw_attention *shape, bool pairs, int64_t first_query, int64_t count)
{
    block b = {shape, pairs, first_query, count, 0, first_query + count};
    if (shape->window > 0 && first_query - shape->window + 1 > 0)
        b.first_key = first_query - shape->window + 1;
    if (pairs)
        b.first_key -= b.first_key % 2; /* pairs of keys begin at even ones; what is too old is masked */
    return b;
}

/* ---- products ------------------------------------------------------------------------------------------------------- */

static void multiply(const block *b, const bw_tile_call *call)
{
    if (b->pairs)
        bw_tile_pairs(call);
    else
        bw_tile(call);
}

/* Steps of a sum over n entries. */
static int64_t steps(const block *b, int64_t n)
{
    return b->pairs ? (n + 1) / 2 : n;
}

/* Rows of q or dout, for products that sum over the head: to[c][i] = from[i][c]; the columns past the last row are zero. */
static void turn_in(const block *b, float (*to)[QUERIES], const float *from, int64_t ld)
{
    float rows[QUERIES * MAX_HEAD / 2];
    const int64_t width = steps(b, b->shape->head_dim);
    if (b->pairs)
        bw_pairs_along_rows(rows, width, from, ld, b->count, b->shape->head_dim);
    bw_transpose(to[0], QUERIES, b->pairs ? rows : from, b->pairs ? width : ld, b->count, width);
    for (int64_t c = 0; c < width; c++)
        for (int64_t i = b->count; i < QUERIES; i++)
            to[c][i] = 0;
}

static void turn_out(const block *b, float *to, int64_t ld, float (*from)[QUERIES])
{
    bw_transpose(to, ld, from[0], QUERIES, b->shape->head_dim, b->count);
}

/* Scores on the right of a product that sums over keys, and on the left of one that sums over queries. memory: for their pairs. */
static const float *over_keys(const block *b, float *memory, float (*scores)[QUERIES], int64_t keys)
{
    if (!b->pairs)
        return scores[0];
    bw_pairs_along_columns(memory, QUERIES, scores[0], QUERIES, keys, QUERIES);
    return memory;
}

static const float *over_queries(const block *b, float *memory, float (*scores)[QUERIES], int64_t keys)
{
    if (!b->pairs)
        return scores[0];
    bw_pairs_along_rows(memory, QUERIES / 2, scores[0], QUERIES, keys, QUERIES);
    return memory;
}

/* ---- keys and values ------------------------------------------------------------------------------------------------ */

bw_keys bw_keys_in_fp32(const float *k, const float *v, int64_t ld)
{
    return (bw_keys){.k_rows = k, .v_rows = v, .k_columns = k, .v_columns = v, .ld_rows = ld, .ld_columns = ld};
}

static void widen(float *to, const uint16_t *from, int64_t row, int64_t keys, int64_t head_dim)
{
    const int64_t pieces = row == head_dim ? 1 : keys, length = keys * head_dim / pieces;
    for (int64_t j = 0; j < pieces; j++)
        bw_row_widen(to + j * length, from + j * row, length);
}

static void take_half(bw_key_span *s, const block *b, bw_cache here, int64_t count)
{
    const int64_t head_dim = b->shape->head_dim;
    s->k = s->memory[0], s->v = s->memory[1], s->ldk = s->ldv = head_dim;
    if (b->pairs) {
        s->k = here.k, s->ldk = here.row / 2;
        bw_pairs_along_half_columns(s->memory[1], head_dim, here.v, here.row, count, head_dim);
    } else {
        widen(s->memory[0], here.k, here.row, count, head_dim);
        widen(s->memory[1], here.v, here.row, count, head_dim);
    }
}

void bw_key_span_take(bw_key_span *s, const block *b, const bw_keys *keys, int64_t first, int64_t count)
{
    if (keys->half) {
        take_half(s, b, bw_cache_at(*keys->half, first * keys->half->row), count);
        return;
    }
    s->k = keys->k_rows + first * keys->ld_rows, s->ldk = keys->ld_rows;
    s->v = keys->v_columns + steps(b, first) * keys->ld_columns, s->ldv = keys->ld_columns;
}

/* ---- packed sequences: what all blocks read ------------------------------------------------------------------------ */

typedef struct packed {
    const bw_attention *shape;
    const float *k, *v;
    int64_t ldk, T;
    const int32_t *offsets;
    int n_seq;
    float
        *pairs; /* [key head][T][head_dim / 2] of k and of v, then [key head][T][head_dim], two keys a row, of one of them; NULL: products are fp32 */
} packed;

bool bw_attention_in_pairs(void)
{
    return bw_gemm_is_half() && bw_pairs_are_here();
}

int64_t bw_attention_scratch(const bw_attention *shape, int64_t T)
{
    return bw_attention_in_pairs() ? 2 * shape->n_kv * T * shape->head_dim : 0;
}

static bw_keys keys_of(const packed *p, int sequence, int head)
{
    const int64_t head_dim = p->shape->head_dim, start = p->offsets[sequence], at = (head * p->T + start) * head_dim,
                  all = p->shape->n_kv * p->T * head_dim;
    if (!p->pairs)
        return bw_keys_in_fp32(p->k + start * p->ldk + head * head_dim, p->v + start * p->ldk + head * head_dim, p->ldk);
    const float *columns = p->pairs + all + at;
    return (bw_keys){p->pairs + at / 2, p->pairs + (all + at) / 2, columns, columns, head_dim / 2, head_dim, NULL};
}

/* The pairs of one head of a sequence; the forward pass sums over keys of v, the backward pass of k. */
static void write_pairs(const packed *p, int sequence, int head, bool backward)
{
    const bw_keys to = keys_of(p, sequence, head);
    const int64_t head_dim = p->shape->head_dim, start = p->offsets[sequence], length = p->offsets[sequence + 1] - start;
    const float *k = p->k + start * p->ldk + head * head_dim, *v = p->v + start * p->ldk + head * head_dim;
    bw_pairs_along_rows((float *)to.k_rows, to.ld_rows, k, p->ldk, length, head_dim);
    if (backward)
        bw_pairs_along_rows((float *)to.v_rows, to.ld_rows, v, p->ldk, length, head_dim);
    bw_pairs_along_columns((float *)to.v_columns, to.ld_columns, backward ? k : v, p->ldk, length, head_dim);
}

static packed pack(const bw_attention *shape, const float *k, const float *v, int64_t ldk, const int32_t *offsets, int n_seq, float *scratch,
                   bool backward)
{
    const packed p = {shape, k, v, ldk, offsets[n_seq], offsets, n_seq, bw_attention_in_pairs() ? scratch : NULL};
    if (p.pairs)
#pragma omp parallel for collapse(2) schedule(dynamic)
        for (int sequence = 0; sequence < n_seq; sequence++)
            for (int head = 0; head < shape->n_kv; head++)
                write_pairs(&p, sequence, head, backward);
    return p;
}

/* ---- forward -------------------------------------------------------------------------------------------------------- */

/* scores[key][query] of some keys, rows of k. */
static void score(const block *b, float (*scores)[QUERIES], const float (*queries)[QUERIES], float scale, const float *k, int64_t ldk, int64_t keys)
{
    const bw_tile_call call = {keys, QUERIES, steps(b, b->shape->head_dim), scale, k, ldk, 1, queries[0], QUERIES, scores[0], QUERIES, false};
    multiply(b, &call);
}

/* Which of a key's queries see it: columns low .. high - 1. */
static void seen(const bw_block_of_queries *b, int64_t key, int64_t *low, int64_t *high)
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

static void mask_scores(const bw_block_of_queries *b, float (*scores)[QUERIES], int64_t first_key, int64_t keys, float value)
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

void bw_attention_block(const block *b, float *out, int64_t ldo, float *lse, const float *q, int64_t ldq, const bw_keys *source)
{
    const bw_attention *s = b->shape;
    float queries[MAX_HEAD][QUERIES], result[MAX_HEAD][QUERIES], scores[KEYS][QUERIES], pairs[KEYS / 2 * QUERIES];
    float highest[QUERIES], sum[QUERIES], shrink[QUERIES];
    bw_key_span here;
    turn_in(b, queries, q, ldq);
    for (int i = 0; i < QUERIES; i++)
        highest[i] = -3e38f, sum[i] = 0;
    for (int64_t first = b->first_key; first < b->last_key; first += KEYS) {
        int64_t keys = b->last_key - first < KEYS ? b->last_key - first : KEYS;
        bw_key_span_take(&here, b, source, first, keys);
        score(b, scores, queries, s->scale, here.k, here.ldk, keys);
        if (s->soft_cap > 0)
            cap_scores(scores, keys, s->soft_cap);
        mask_scores(b, scores, first, keys, -3e38f);
        soften(scores, keys, highest, sum, shrink);
        bool more = first > b->first_key;
        if (more)
            scale_columns(result, shrink, s->head_dim);
        const float *weights = over_keys(b, pairs, scores, keys);
        multiply(b, &(bw_tile_call){s->head_dim, QUERIES, steps(b, keys), 1, here.v, 1, here.ldv, weights, QUERIES, result[0], QUERIES, more});
    }
    for (int64_t i = 0; i < QUERIES; i++)
        shrink[i] = sum[i] > 0 ? 1.0f / sum[i] : 0.0f;
    scale_columns(result, shrink, s->head_dim);
    turn_out(b, out, ldo, result);
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
                          const int32_t *offsets, int n_seq, float *scratch)
{
    const packed p = pack(shape, k, v, ldk, offsets, n_seq, scratch, false);
    int64_t blocks = count_blocks(offsets, n_seq), T = p.T;
    int group = shape->n_head / shape->n_kv;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t index = 0; index < blocks; index++)
        for (int head = 0; head < shape->n_head; head++) {
            int sequence;
            int64_t first;
            if (!find_block(offsets, n_seq, index, &sequence, &first))
                continue;
            int64_t left = offsets[sequence + 1] - offsets[sequence] - first, row = offsets[sequence] + first;
            block b = bw_queries(shape, p.pairs, first, left < QUERIES ? left : QUERIES);
            int64_t at = row * ldq + (int64_t)head * shape->head_dim;
            const bw_keys keys = keys_of(&p, sequence, head / group);
            bw_attention_block(&b, out + at, ldq, lse + head * T + row, q + at, ldq, &keys);
        }
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

BW_HOT void bw_attention_dots(float *dots, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t rows, int64_t head_dim, float scale)
{
    for (int64_t i = 0; i < rows; i++)
        dots[i] = dot(a + i * lda, b + i * ldb, head_dim) * scale;
}

/* What the backward pass holds of a block of queries: turned over, and along columns for products that sum over queries. */
typedef struct turned {
    float queries[MAX_HEAD][QUERIES], douts[MAX_HEAD][QUERIES], dqueries[MAX_HEAD][QUERIES];
    const float *q_columns, *dout_columns;
    int64_t ld_columns;
    float pairs[2][QUERIES / 2 * MAX_HEAD];
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
static void backward_keys(const block *b, turned *t, int64_t first, int64_t keys, float *dk, float *dv, int64_t ldk, const bw_keys *from)
{
    const bw_attention *s = b->shape;
    const int64_t at = first * from->ld_rows;
    float scores[KEYS][QUERIES], dscores[KEYS][QUERIES], pairs[KEYS / 2 * QUERIES];
    score(b, scores, t->queries, s->scale, from->k_rows + at, from->ld_rows, keys);
    if (s->soft_cap > 0)
        cap_scores(scores, keys, s->soft_cap);
    mask_scores(b, scores, first, keys, -3e38f);
    score(b, dscores, t->douts, 1.0f, from->v_rows + at, from->ld_rows, keys);
    if (s->soft_cap > 0)
        score_gradient_capped(scores, dscores, keys, t->lse, t->dots, s->scale, s->soft_cap);
    else
        score_gradient(scores, dscores, keys, t->lse, t->dots, s->scale);
    bw_tile_call sum = {keys, s->head_dim, steps(b, b->count), 1, NULL, steps(b, QUERIES), 1, t->dout_columns, t->ld_columns, dv, ldk, true};
    sum.a = over_queries(b, pairs, scores, keys);
    multiply(b, &sum);
    sum.a = over_queries(b, pairs, dscores, keys), sum.b = t->q_columns, sum.c = dk;
    multiply(b, &sum);
    const float *columns = from->k_columns + steps(b, first) * from->ld_columns, *weights = over_keys(b, pairs, dscores, keys);
    multiply(b, &(bw_tile_call){s->head_dim, QUERIES, steps(b, keys), 1, columns, 1, from->ld_columns, weights, QUERIES, t->dqueries[0], QUERIES,
                                first > b->first_key});
}

static const float *queries_in_columns(const block *b, float *memory, const float *from, int64_t ld)
{
    if (!b->pairs)
        return from;
    bw_pairs_along_columns(memory, b->shape->head_dim, from, ld, b->count, b->shape->head_dim);
    return memory;
}

static void load_turned(turned *t, const block *b, const float *q, const float *dout, const float *out, const float *lse, int64_t ldq)
{
    int head_dim = b->shape->head_dim;
    turn_in(b, t->queries, q, ldq);
    turn_in(b, t->douts, dout, ldq);
    t->q_columns = queries_in_columns(b, t->pairs[0], q, ldq);
    t->dout_columns = queries_in_columns(b, t->pairs[1], dout, ldq);
    t->ld_columns = b->pairs ? head_dim : ldq;
    memset(t->dots, 0, sizeof t->dots);
    bw_attention_dots(t->dots, dout, ldq, out, ldq, b->count, head_dim, 1);
    for (int64_t i = 0; i < QUERIES; i++)
        t->lse[i] = i < b->count ? lse[i] : 0;
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
    for (int member = 0; member < shape->n_head / shape->n_kv; member++)
        for (int64_t first = 0; first < length; first += QUERIES) {
            block b = bw_queries(shape, p->pairs, first, length - first < QUERIES ? length - first : QUERIES);
            int64_t at = first * ldq + (int64_t)member * shape->head_dim;
            load_turned(&t, &b, q + at, dout + at, out + at, lse + member * p->T + first, ldq);
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
    const int group = shape->n_head / shape->n_kv;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int sequence = 0; sequence < n_seq; sequence++)
        for (int head = 0; head < shape->n_kv; head++) {
            const int64_t row = offsets[sequence], x = row * ldq + (int64_t)head * group * shape->head_dim;
            const int64_t y = row * ldk + (int64_t)head * shape->head_dim;
            backward_group(&p, sequence, head, dq + x, dk + y, dv + y, dout + x, out + x, lse + head * group * p.T + row, q + x, ldq);
        }
}

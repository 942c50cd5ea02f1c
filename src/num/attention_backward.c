/* The backward pass of attention over packed sequences: probabilities are made again from the logarithms of their sums. */
#include "num/attention.h"
#include "num/hot.h"
#include "num/row.h"
#include <string.h>

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
    float queries[BW_MAX_HEAD_DIM * BW_COLUMNS], douts[BW_MAX_HEAD_DIM * BW_COLUMNS], dqueries[BW_MAX_HEAD_DIM * BW_COLUMNS];
    float q_rows[BW_COLUMNS * BW_MAX_HEAD_DIM], dout_rows[BW_COLUMNS * BW_MAX_HEAD_DIM]; /* [head, query][head_dim] */
    float lse[BW_COLUMNS], dots[BW_COLUMNS];                                             /* dots: sum over the head of dout * out */
} turned;

/* scores -> probabilities, in place; dscores (the gradient of the probabilities) -> that of the products q k. */
BW_HOT static void score_gradient(float *scores, float *dscores, int64_t ld, int64_t keys, const float *lse, const float *dots, float scale)
{
    for (int64_t j = 0; j < keys; j++, scores += ld, dscores += ld)
#pragma omp simd
        for (int i = 0; i < BW_QUERIES; i++) {
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
        for (int i = 0; i < BW_QUERIES; i++) {
            bool visible = scores[i] > -1e30f;
            float t = visible ? scores[i] * inverse : 0.0f, p = visible ? bw_exp(scores[i] - lse[i]) : 0.0f;
            dscores[i] = p * (dscores[i] - dots[i]) * scale * (1.0f - t * t);
            scores[i] = p;
        }
}

/* Scores on the left of a product that sums over queries. memory: for their pairs. */
static const float *over_queries(const bw_queries *b, float *memory, const float *scores, int64_t keys)
{
    if (!b->half)
        return scores;
    bw_pairs_along_rows(memory, b->width / 2, scores, b->width, keys, b->width);
    return memory;
}

/* Keys first .. first + keys against the block: adds to dk, dv (rows of those keys) and to the block's dqueries. */
static void backward_keys(const bw_queries *b, turned *t, int64_t first, int64_t keys, float *dk, float *dv, int64_t ldk, const bw_keys *from)
{
    const bw_attention *s = b->shape;
    const int64_t width = b->width, head_dim = s->head_dim;
    float scores[BW_KEYS * BW_COLUMNS], dscores[BW_KEYS * BW_COLUMNS], pairs[BW_KEYS / 2 * BW_COLUMNS];
    bw_queries_score(b, scores, t->queries, s->scale, from->k_rows + first * from->ld_rows, from->ld_rows, 1, keys);
    bw_queries_score(b, dscores, t->douts, 1.0f, from->v_rows + first * from->ld_rows, from->ld_rows, 1, keys);
    for (int64_t head = 0; head < width; head += BW_QUERIES) {
        bw_queries_cap_and_mask(b, scores + head, first, keys);
        if (s->soft_cap > 0)
            score_gradient_capped(scores + head, dscores + head, width, keys, t->lse + head, t->dots + head, s->scale, s->soft_cap);
        else
            score_gradient(scores + head, dscores + head, width, keys, t->lse + head, t->dots + head, s->scale);
    }
    bw_tile_call sum = {keys, head_dim, bw_steps(b->half, width), 1, NULL, bw_steps(b->half, width), 1, t->dout_rows, head_dim, dv, ldk, true};
    sum.a = over_queries(b, pairs, scores, keys);
    bw_tile_of(b->half, &sum);
    sum.a = over_queries(b, pairs, dscores, keys), sum.b = t->q_rows, sum.c = dk;
    bw_tile_of(b->half, &sum);
    const float *k_columns = from->k_columns + bw_steps(b->half, first) * from->ld_columns, *weights = bw_queries_over_keys(b, pairs, dscores, keys);
    bw_tile_of(b->half, &(bw_tile_call){head_dim, width, bw_steps(b->half, keys), 1, k_columns, 1, from->ld_columns, weights, b->width, t->dqueries,
                                        b->width, first > b->first_key});
}

/* Rows of q or dout, heads one below the other, for products that sum over all of them; past the last row there are zeros. */
static void take_rows(const bw_queries *b, float *to, const float *from, int64_t ld)
{
    const int64_t head_dim = b->shape->head_dim, rows = bw_steps(b->half, BW_QUERIES), there = bw_steps(b->half, b->count);
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
static void take_dots(const bw_queries *b, float *dots, const float *dout, const float *out, int64_t ld)
{
    const int64_t head_dim = b->shape->head_dim;
    uint16_t half[BW_QUERIES * BW_MAX_HEAD_DIM];
    float rounded[BW_QUERIES * BW_MAX_HEAD_DIM];
    if (b->half) {
        bw_rows_narrow(half, head_dim, dout, ld, b->count, head_dim);
        bw_row_widen(rounded, half, b->count * head_dim);
    }
    attention_dots(dots, b->half ? rounded : dout, b->half ? head_dim : ld, out, ld, b->count, head_dim);
}

/* lse: of each head, T apart. */
static void load_turned(turned *t, const bw_queries *b, const float *q, const float *dout, const float *out, const float *lse, int64_t T, int64_t ldq)
{
    const int64_t head_dim = b->shape->head_dim;
    bw_queries_turn_in(b, t->queries, q, ldq);
    bw_queries_turn_in(b, t->douts, dout, ldq);
    take_rows(b, t->q_rows, q, ldq);
    take_rows(b, t->dout_rows, dout, ldq);
    memset(t->dots, 0, sizeof t->dots);
    memset(t->lse, 0, sizeof t->lse);
    for (int head = 0; head < b->heads; head++) {
        take_dots(b, t->dots + head * BW_QUERIES, dout + head * head_dim, out + head * head_dim, ldq);
        memcpy(t->lse + head * BW_QUERIES, lse + head * T, (size_t)b->count * sizeof *lse);
    }
}

/* All of one key head in one sequence; the pointers are at the sequence's first row and the head's first column. */
static void backward_group(const bw_packed *p, int sequence, int head, float *dq, float *dk, float *dv, const float *dout, const float *out,
                           const float *lse, const float *q, int64_t ldq)
{
    turned t;
    const bw_attention *shape = p->shape;
    const int64_t length = p->offsets[sequence + 1] - p->offsets[sequence];
    const bw_keys from = bw_packed_keys(p, sequence, head);
    for (int64_t j = 0; j < length; j++) {
        memset(dk + j * p->ldk, 0, (size_t)shape->head_dim * sizeof *dk);
        memset(dv + j * p->ldk, 0, (size_t)shape->head_dim * sizeof *dv);
    }
    for (int member = 0; member < bw_group(shape); member += BW_HEADS)
        for (int64_t first = 0; first < length; first += BW_QUERIES) {
            const bw_queries b = bw_queries_of(shape, p->pairs != NULL, first, length - first < BW_QUERIES ? length - first : BW_QUERIES,
                                               bw_heads_from(shape, member));
            const int64_t at = first * ldq + (int64_t)member * shape->head_dim;
            load_turned(&t, &b, q + at, dout + at, out + at, lse + member * p->T + first, p->T, ldq);
            for (int64_t key = b.first_key; key < b.last_key; key += BW_KEYS)
                backward_keys(&b, &t, key, b.last_key - key < BW_KEYS ? b.last_key - key : BW_KEYS, dk + key * p->ldk, dv + key * p->ldk, p->ldk,
                              &from);
            bw_queries_turn_out(&b, dq + at, ldq, t.dqueries);
        }
}

void bw_attention_backward(const bw_attention *shape, float *dq, float *dk, float *dv, const float *dout, const float *out, const float *lse,
                           const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk, const int32_t *offsets, int n_seq,
                           float *scratch)
{
    const bw_packed p = bw_packed_of(shape, k, v, ldk, offsets, n_seq, scratch, true);
    const int group = bw_group(shape);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int sequence = 0; sequence < n_seq; sequence++)
        for (int head = 0; head < shape->n_kv; head++) {
            const int64_t row = offsets[sequence], x = row * ldq + (int64_t)head * group * shape->head_dim;
            const int64_t y = row * ldk + (int64_t)head * shape->head_dim;
            backward_group(&p, sequence, head, dq + x, dk + y, dv + y, dout + x, out + x, lse + head * group * p.T + row, q + x, ldq);
        }
}

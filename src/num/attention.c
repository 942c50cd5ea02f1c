/* Causal attention over packed sequences: what all blocks of queries read, and the forward pass (the backward pass is num/attention_backward.c).
 * The forward pass is parallel over (block of queries, heads), the backward pass over (sequence, key head): whatever is summed is summed by one
 * thread in one order. */
#include "num/attention.h"
#include "num/gemm.h"
#include <stddef.h>

/* ---- packed sequences: what all blocks read ------------------------------------------------------------------------ */

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

static pairs_of_head pairs_at(const bw_packed *p, int sequence, int head)
{
    const int64_t head_dim = p->shape->head_dim, all = p->shape->n_kv * p->T * head_dim, at = (head * p->T + p->offsets[sequence]) * head_dim;
    return (pairs_of_head){p->pairs + at / 2, p->pairs + (all + at) / 2, p->pairs + all + at};
}

static int64_t place_in_fp32(const bw_packed *p, int sequence, int head)
{
    return p->offsets[sequence] * p->ldk + (int64_t)head * p->shape->head_dim;
}

bw_keys bw_packed_keys(const bw_packed *p, int sequence, int head)
{
    if (p->pairs) {
        const pairs_of_head here = pairs_at(p, sequence, head);
        return (bw_keys){here.k_rows, here.v_rows, here.columns, here.columns, p->shape->head_dim / 2, p->shape->head_dim, false};
    }
    const int64_t at = place_in_fp32(p, sequence, head);
    return (bw_keys){p->k + at, p->v + at, p->k + at, p->v + at, p->ldk, p->ldk, false};
}

static void write_pairs(const bw_packed *p, int sequence, int head, bool backward)
{
    const pairs_of_head to = pairs_at(p, sequence, head);
    const int64_t head_dim = p->shape->head_dim, length = p->offsets[sequence + 1] - p->offsets[sequence], at = place_in_fp32(p, sequence, head);
    bw_pairs_along_rows(to.k_rows, head_dim / 2, p->k + at, p->ldk, length, head_dim);
    if (backward)
        bw_pairs_along_rows(to.v_rows, head_dim / 2, p->v + at, p->ldk, length, head_dim);
    bw_pairs_along_columns(to.columns, head_dim, (backward ? p->k : p->v) + at, p->ldk, length, head_dim);
}

bw_packed bw_packed_of(const bw_attention *shape, const float *k, const float *v, int64_t ldk, const int32_t *offsets, int n_seq, float *scratch,
                       bool backward)
{
    const bw_packed p = {shape, k, v, ldk, offsets[n_seq], offsets, n_seq, bw_attention_is_half() ? scratch : NULL};
    if (p.pairs)
#pragma omp parallel for collapse(2) schedule(dynamic)
        for (int sequence = 0; sequence < n_seq; sequence++)
            for (int head = 0; head < shape->n_kv; head++)
                write_pairs(&p, sequence, head, backward);
    return p;
}

/* ---- forward -------------------------------------------------------------------------------------------------------- */

/* Sequence number and first query of the block that comes `index`-th, counted through all sequences. */
static bool find_block(const int32_t *offsets, int n_seq, int64_t index, int *sequence, int64_t *first_query)
{
    for (int i = 0; i < n_seq; i++) {
        int64_t blocks = (offsets[i + 1] - offsets[i] + BW_QUERIES - 1) / BW_QUERIES;
        if (index < blocks) {
            *sequence = i;
            *first_query = index * BW_QUERIES;
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
        blocks += (offsets[i + 1] - offsets[i] + BW_QUERIES - 1) / BW_QUERIES;
    return blocks;
}

/* Heads that share keys and values, as many as one block takes: the first of them is head `piece` * BW_HEADS of its key head. */
static int pieces(const bw_attention *shape)
{
    return (bw_group(shape) + BW_HEADS - 1) / BW_HEADS;
}

static void forward_piece(const bw_packed *p, int64_t index, int kv_head, int member, float *out, float *lse, const float *q, int64_t ldq)
{
    int sequence;
    int64_t first;
    if (!find_block(p->offsets, p->n_seq, index, &sequence, &first))
        return;
    const int64_t left = p->offsets[sequence + 1] - p->offsets[sequence] - first, row = p->offsets[sequence] + first;
    const int64_t head = (int64_t)kv_head * bw_group(p->shape) + member, at = row * ldq + head * p->shape->head_dim;
    const bw_queries b = bw_queries_of(p->shape, p->pairs != NULL, first, left < BW_QUERIES ? left : BW_QUERIES, bw_heads_from(p->shape, member));
    const bw_keys keys = bw_packed_keys(p, sequence, kv_head);
    bw_attention_block(&b, out + at, ldq, lse + head * p->T + row, p->T, q + at, ldq, &keys);
}

void bw_attention_forward(const bw_attention *shape, float *out, float *lse, const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk,
                          const int32_t *offsets, int n_seq, float *scratch)
{
    const bw_packed p = bw_packed_of(shape, k, v, ldk, offsets, n_seq, scratch, false);
    const int64_t blocks = count_blocks(offsets, n_seq);
    const int heads = shape->n_kv * pieces(shape);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t index = 0; index < blocks; index++)
        for (int head = 0; head < heads; head++)
            forward_piece(&p, index, head / pieces(shape), head % pieces(shape) * BW_HEADS, out, lse, q, ldq);
}

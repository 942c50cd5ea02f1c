/* Attention of a block of queries, as packed sequences and decoding share it. */
#ifndef NUM_ATTENTION_H
#define NUM_ATTENTION_H
#include "breakwater/num.h"
#include "num/pairs.h"

enum {
    BW_QUERIES = 16,                   /* rows of a block: a vector of the widest kind */
    BW_HEADS = 4,                      /* and its heads, at most: with more, what a block holds leaves the first caches */
    BW_KEYS = 64,                      /* keys that are met at a time */
    BW_UNIT = 32,                      /* keys that a cache turns over together: two vectors, as the small product likes them */
    BW_COLUMNS = BW_QUERIES * BW_HEADS /* of a block, at most */
};
_Static_assert(BW_KEYS % BW_UNIT == 0 && BW_UNIT % 2 == 0 && BW_QUERIES % 2 == 0, "spans begin with units, and pairs straddle nothing");

static inline int bw_group(const bw_attention *shape) /* heads that share keys and values */
{
    return shape->n_head / shape->n_kv;
}
/* The oldest key that a query sees. */
static inline int64_t bw_oldest_key(const bw_attention *shape, int64_t query)
{
    return shape->window > 0 && query >= shape->window ? query - shape->window + 1 : 0;
}

/* `count` rows of `heads` heads that share keys. Row i sees keys up to first_query + i, less what lies before its window; first_key is rounded down
 * to a unit, with which a span of a cache has to begin, and what is too old is masked. */
typedef struct bw_queries {
    const bw_attention *shape;
    bool half; /* products are of bf16 pairs (num/pairs.h) */
    int64_t first_query, count, first_key, last_key;
    int heads;
    int64_t width; /* columns: BW_QUERIES a head */
} bw_queries;
bw_queries bw_queries_of(const bw_attention *shape, bool half, int64_t first_query, int64_t count, int heads);
int bw_heads_from(const bw_attention *shape, int member); /* heads of a block whose first is head `member` of its group */

/* Keys and values of one head of a sequence, from its first key on, as products read them: along rows where they sum over the head, along columns
 * where they sum over keys. In fp32 that is the same matrix; of pairs, a row of columns serves two keys. Of a cache, k_rows is turned over unit by
 * unit, and there are only k_rows and v_columns. */
typedef struct bw_keys {
    const float *k_rows, *v_rows, *k_columns, *v_columns;
    int64_t ld_rows, ld_columns;
    bool cached;
} bw_keys;

/* out, q: the block's first row, at its first head's first column; lse: NULL, or of each row, heads T apart. Runs on the calling thread. */
void bw_attention_block(const bw_queries *b, float *out, int64_t ldo, float *lse, int64_t T, const float *q, int64_t ldq, const bw_keys *keys);

/* Its parts, for the backward pass. Rows of q or dout, heads beside one another, for products that sum over the head: to[c][h, i] = from[i][h, c];
 * past the last row are zeros. */
void bw_queries_turn_in(const bw_queries *b, float *to, const float *from, int64_t ld);
void bw_queries_turn_out(const bw_queries *b, float *to, int64_t ld, const float *from);
/* scores[key][head, query] of some keys, rows of k: entry (key, c) at k[key * row + c * column]. */
void bw_queries_score(const bw_queries *b, float *scores, const float *queries, float scale, const float *k, int64_t row, int64_t column,
                      int64_t keys);
/* Of one head, BW_QUERIES columns: scores are capped, and those that are not seen are given the lowest value. */
void bw_queries_cap_and_mask(const bw_queries *b, float *scores, int64_t first_key, int64_t keys);
/* Scores on the right of a product that sums over keys. memory: for their pairs. */
const float *bw_queries_over_keys(const bw_queries *b, float *memory, const float *scores, int64_t keys);

/* Packed sequences: what all blocks read. */
typedef struct bw_packed {
    const bw_attention *shape;
    const float *k, *v;
    int64_t ldk, T;
    const int32_t *offsets;
    int n_seq;
    /* [key head][T][head_dim / 2] of k and of v; then [key head][T][head_dim] of one of them, two keys a row, where a sequence begins at the row of
     * its first key and leaves half of its rows alone. NULL: products are fp32 */
    float *pairs;
} bw_packed;
/* The forward pass sums over keys of v, the backward pass of k. All threads. */
bw_packed bw_packed_of(const bw_attention *shape, const float *k, const float *v, int64_t ldk, const int32_t *offsets, int n_seq, float *scratch,
                       bool backward);
bw_keys bw_packed_keys(const bw_packed *p, int sequence, int head);

#endif

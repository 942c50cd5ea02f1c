/* Attention of a block of queries, as packed sequences and decoding share it. */
#ifndef NUM_ATTENTION_H
#define NUM_ATTENTION_H
#include "breakwater/num.h"

enum { BW_QUERIES = 16, BW_HEADS = 4, BW_KEYS = 64 }; /* rows and heads of a block, at most, and keys that it meets at a time */
_Static_assert(BW_KEYS % BW_CACHE_UNIT == 0 && BW_CACHE_UNIT % 2 == 0 && BW_QUERIES % 2 == 0, "blocks meet whole units, and pairs straddle nothing");

/* `count` rows of `heads` heads that share their keys; row i may see keys .. first_query + i of its sequence, less what lies before its window: of
 * those from first_key on, the first of a unit, some may be out of every row's window. */
typedef struct bw_block_of_queries {
    const bw_attention *shape;
    bool pairs; /* products are of bf16 pairs (num/pairs.h) */
    int64_t first_query, count, first_key, last_key;
    int heads;
    int64_t width; /* columns: BW_QUERIES a head */
} bw_block_of_queries;
bool bw_attention_in_pairs(void); /* with the backend that was started: ranks that agree on it agree on this */
bw_block_of_queries bw_queries(const bw_attention *shape, bool pairs, int64_t first_query, int64_t count, int heads);
int bw_heads_from(const bw_attention *shape, int member); /* of a block that begins with this head of those of one key head */

/* Keys and values of one head of a sequence, from its first key on, as products read them: along rows where they sum over the head, along columns
 * where they sum over keys. In fp32 that is the same matrix; of pairs, a row of columns serves two keys. Of a cache, k_rows is turned over unit by
 * unit, and there are only k_rows and v_columns. */
typedef struct bw_keys {
    const float *k_rows, *v_rows, *k_columns, *v_columns;
    int64_t ld_rows, ld_columns;
    bool cached;
} bw_keys;

/* out, q: the block's first row, at its first head's first column; lse: NULL, or of each row, heads T apart. Runs on the calling thread. */
void bw_attention_block(const bw_block_of_queries *b, float *out, int64_t ldo, float *lse, int64_t T, const float *q, int64_t ldq,
                        const bw_keys *keys);

#endif

/* Attention of a block of queries, as packed sequences and decoding share it. */
#ifndef NUM_ATTENTION_H
#define NUM_ATTENTION_H
#include "breakwater/num.h"

enum { BW_QUERIES = 16, BW_HEADS = 4, BW_KEYS = 64 }; /* rows and heads of a block, at most, and keys that it meets at a time; BW_KEYS is even */

/* `count` rows of `heads` heads that share their keys; row i may see keys first_key .. first_query + i of its sequence, less what lies before its
 * window. */
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
 * where they sum over keys. In fp32 that is the same matrix; of pairs, a row of columns serves two keys. A cache of bf16 is read span by span. */
typedef struct bw_keys {
    const float *k_rows, *v_rows, *k_columns, *v_columns;
    int64_t ld_rows, ld_columns;
    const bw_cache *half; /* NULL: the above */
} bw_keys;
/* Keys and values that lie in fp32, rows ld apart. */
bw_keys bw_keys_in_fp32(const float *k, const float *v, int64_t ld);

/* At most BW_KEYS of them: where they lie, or from a cache of bf16, widened or made pairs. */
typedef struct bw_key_span {
    const float *k, *v; /* along rows, along columns */
    int64_t ldk, ldv;
    float memory[2][BW_KEYS * BW_MAX_HEAD_DIM];
} bw_key_span;
/* Keys first .. first + count; where they are pairs, first is even. */
void bw_key_span_take(bw_key_span *s, const bw_block_of_queries *b, const bw_keys *keys, int64_t first, int64_t count);

/* out, q: the block's first row, at its first head's first column; lse: NULL, or of each row, heads T apart. Runs on the calling thread. */
void bw_attention_block(const bw_block_of_queries *b, float *out, int64_t ldo, float *lse, int64_t T, const float *q, int64_t ldq,
                        const bw_keys *keys);
/* dots[i] = scale * row i of a times row i of b; rows of b are ldb apart, of a lda: 0 takes the same one each time. */
void bw_attention_dots(float *dots, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t rows, int64_t head_dim, float scale);

#endif

/* model/block.h - the arithmetic of one transformer layer, forward next to backward. Private to model/: transformer.c runs
 * it with packed attention and gradients, generate.c with a KV cache. No MPI, no allocation after create. */
#ifndef BREAKWATER_MODEL_BLOCK_H
#define BREAKWATER_MODEL_BLOCK_H
#include "breakwater/model.h"
#include "breakwater/num.h"

typedef struct bw_block {
    const bw_store *store;
    const bw_spec *spec; /* of the store */
    const bw_lora *lora; /* or NULL */
    bw_attention attention;
    float *cosines, *sines; /* [positions][head_dim / 2] */
    int64_t positions;
    /* dropout of this pass: 0 when evaluating */
    float dropout;
    uint64_t seed;
    uint32_t step;
    /* scratch for T rows: what a layer's projections read, made again in the backward pass, which takes less than keeping it (a fifth of all that is
     * kept); a target's input and the gradient of its output, ready for products, and what dropout left of the input; the gradient of the dropped
     * input, and T x r of a gradient */
    float *normed, *hidden; /* T x C; T x F, silu(gate) * up */
    char *ready_x, *ready_dy, *dropped;
    float *d_wide, *d_low;
    float *side;              /* the same of a frozen adapter beside its weight; NULL where none is */
    float *attention_scratch; /* for packed attention, of who runs it; NULL otherwise. Not the block's own */
} bw_block;
bw_attention bw_attention_of(const bw_spec *spec);
int bw_block_create(bw_block *block, const bw_store *store, const bw_lora *lora, int64_t max_tokens, int64_t positions);
void bw_block_free(bw_block *block);
int64_t bw_block_floats(const bw_spec *spec, const bw_adapter *adapter, int side_rank, int64_t max_tokens,
                        int64_t positions); /* what create takes; adapter or NULL */

typedef struct bw_rows_of { /* the rows of a pass */
    int64_t T;
    const int32_t *positions, *samples; /* samples: keys of the dropout masks, read where dropout is on */
} bw_rows_of;

/* What a layer's backward pass needs of its forward pass; all T rows, but in the last layer only those with a target of what comes after attention
 * (mixed, middle, gate, up, and what belongs to their targets). The input x belongs to the caller. */
typedef struct bw_saved {
    float *inv_rms_attention, *inv_rms_mlp;
    float *q, *k, *v, *mixed, *lse; /* mixed: attention's output, before the o projection */
    float *middle;                  /* residual stream after attention */
    float *gate, *up;
    float *low[BW_TARGETS];     /* T x r: dropped input times A^T */
    uint32_t *kept[BW_TARGETS]; /* dropout's mask of a target's input, where an adapter has it and the pass drops */
    float *masks;               /* memory of kept */
    float *memory;              /* owns all of the above */
} bw_saved;
int bw_saved_create(bw_saved *saved, const bw_spec *spec, const bw_lora *lora, int64_t max_tokens);
void bw_saved_free(bw_saved *saved);
int64_t bw_saved_floats(const bw_spec *spec, const bw_adapter *adapter, int64_t max_tokens);

/* x -> q, k (rotated), v. */
void bw_block_inputs_forward(const bw_block *block, const bw_rows_of *rows, const bw_layer *weights, int layer, const float *x, bw_saved *saved);
/* mixed -> middle -> out (T x C). out may be x. */
void bw_block_output_forward(const bw_block *block, const bw_rows_of *rows, const bw_layer *weights, int layer, const float *x, bw_saved *saved,
                             float *out);

/* Gradient buffers of one layer's backward pass, shared by all layers. */
typedef struct bw_slopes {
    float *wide_a, *wide_b; /* T x F */
    float *q, *k, *v, *mixed, *normed;
    float *memory;
} bw_slopes;
int bw_slopes_create(bw_slopes *slopes, const bw_spec *spec, int64_t max_tokens);
void bw_slopes_free(bw_slopes *slopes);
int64_t bw_slopes_floats(const bw_spec *spec, int64_t max_tokens);

/* dx holds the gradient of the layer's output and leaves with that of its input (of nothing, when need_dx is false: the layer is the lowest with a
 * LoRA, and what nobody asks for is not computed). LoRA gradients go to the views. The two halves in reverse: T rows of out -> those of x that went
 * past attention, and slopes->mixed; then all rows of q, k, v -> added to dx. */
void bw_block_output_backward(const bw_block *block, int64_t T, const bw_layer *weights, int layer, const bw_saved *saved, bw_slopes *slopes,
                              float *dx, bool need_dx);
void bw_block_inputs_backward(const bw_block *block, const bw_rows_of *rows, const bw_batch *batch, const bw_layer *weights, int layer,
                              const float *x, const bw_saved *saved, bw_slopes *slopes, float *dx, bool need_dx);
#endif

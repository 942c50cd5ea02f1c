/* breakwater/num.h - arithmetic on dense fp32 arrays: the GEMM seam, layers, attention, loss. No MPI; nothing is
 * allocated but what the backends of products hold, which grows to the largest product. Row-major; sizes in the field's letters: T tokens, C d_model,
 * V vocabulary. Each result is the same bits for the same inputs and thread count, whatever the address of its arguments. */
#ifndef BREAKWATER_NUM_H
#define BREAKWATER_NUM_H
#include <stdbool.h>
#include <stdint.h>

/* ---- gemm: the one seam; a backend is a row of a table in num/gemm.c -------------------------------------------- */
/* Choose the backend and kernel set for this CPU. Call before any other BLIS or ScaLAPACK call (the first sets BLIS_ARCH_TYPE from CPUID
 * unless the user set it), and again to change over: what was packed before is void then, and what the old backend held is given back. threads: of
 * this rank. "fp32"; "bf16": operands rounded to bf16, products and sums in fp32; "auto": the fastest that this CPU and build have. Local. */
int bw_gemm_start(const char *precision, int threads);
/* Ranks must take the same backend: the largest place that any of them has. BW_SYSTEM where this rank cannot. Local. */
int bw_gemm_place(void);
int bw_gemm_start_at(int place, int threads);
bool bw_gemm_is_half(void);          /* it multiplies bf16 */
void bw_gemm_stop(void);             /* gives back the memory that products hold; the next one takes it again. Local. */
const char *bw_gemm_precision(void); /* of the backend that was chosen: "fp32" or "bf16" */
const char *bw_gemm_describe(void);  /* e.g. "BLIS 0.9.0, kernels zen3, 2 threads", and what would have been better and why it is not here */
/* What a product reads: a row-major matrix x with leading dimension ld. Products in bf16 round it each time; what enters several products is rounded
 * once, by bw_operand_ready or bw_operand_drop, into memory of the caller's. */
typedef struct bw_operand {
    const float *x; /* NULL: only what is ready is there */
    int64_t ld;
    const void *ready; /* the matrix in the type that is multiplied; NULL: x is taken as it lies */
} bw_operand;
static inline bw_operand bw_operand_of(const float *x, int64_t ld)
{
    return (bw_operand){.x = x, .ld = ld};
}
/* x[rows, cols], dense, for several products; memory: bw_operand_bytes of the backend that is started, from a cache line on, and nothing (0 bytes,
 * NULL) where products read it as it lies: in fp32, and where cols is no multiple of 32. Changes in x are not seen afterwards. Runs on all threads.
 */
int64_t bw_operand_bytes(int64_t rows, int64_t cols);
bw_operand bw_operand_ready(void *memory, const float *x, int64_t rows, int64_t cols);
/* C[m,n] = alpha * op(A)[m,k] * op(B)[k,n] + beta * C, row-major with leading dimensions; op(X) = X or X^T.
 * beta == 0 writes C without reading it. m, n or k may be 0. Runs on all threads: not to be called inside a parallel region. */
void bw_gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha, bw_operand a, bw_operand b, float beta, float *c, int64_t ldc);
/* A frozen weight W[rows, cols] is prepared once, in the form that its products like: the dense matrix itself, which may be filled in place
 * (bw_weight_is_dense), or packed from one. The form depends on the precision, and on the products that it is for: the forward one, that of the
 * backward pass, or both. Starts on a cache line. Local; packing runs on all threads. */
typedef enum bw_use { BW_FORWARD = 1, BW_BACKWARD = 2, BW_BOTH = BW_FORWARD | BW_BACKWARD } bw_use;
typedef struct bw_weight {
    const void *data;
    bool dense;
    bw_use use; /* prepared for these products */
} bw_weight;
bool bw_weight_is_dense(bw_use use);
const char *bw_weight_type(void); /* "f32" or "bf16" */
int64_t bw_weight_bytes(int64_t rows, int64_t cols, bw_use use);
/* What it is packed from: rows of fp32 or, for products in bf16, of bf16. Fastest where ld is bw_weight_ld(cols): rows then begin in different sets
 * of a cache. A weight that is packed for both uses (not bw_weight_is_dense(BW_BOTH)) may be packed for one at a time. */
typedef struct bw_unpacked {
    const float *full;
    const uint16_t *half; /* instead */
    int64_t ld;
} bw_unpacked;
int64_t bw_weight_ld(int64_t cols);
int64_t bw_weight_entry_bytes(void); /* of the rows that need no rounding: 2 where products are in bf16, else 4 */
void bw_weight_pack(void *weight, bw_unpacked from, int64_t rows, int64_t cols, bw_use use);
/* C[m,n] = A[m,k] op(W) + beta * C with W prepared, A dense, C with leading dimension ldc: a layer's forward product with W^T (W is n x k), or dX
 * with W (k x n). */
void bw_gemm_weight(bool trans, int64_t m, int64_t n, int64_t k, bw_operand a, bw_weight weight, float beta, float *c, int64_t ldc);
double bw_gemm_flops(void); /* of all calls so far */
/* Multiply-adds in registers on every thread, as fast as this CPU does them; returns how many flops that was. *result: 24 per thread. */
double bw_fma_burst(int64_t rounds, float *result);

/* W[rows, cols] (leading dimension ld) += s * B[rows, r] * A[r, cols]: each entry sums over r in order, so that any cut
 * of W into blocks gives the same bits. Used to fold a BufferLoRA into a gathered layer. Half as fast where lda is a multiple of 1,024: rows of A
 * then share a few sets of the cache. */
void bw_fold(float *w, int64_t ld, int64_t rows, int64_t cols, float s, const float *b, int64_t ldb, const float *a, int64_t lda, int r);

/* sums += over n entries: delta^2, (now - before)^2, their product, and their difference squared, in float64. */
typedef struct bw_delta_sums {
    double wanted, stored, product, error;
} bw_delta_sums;
void bw_delta_kept(bw_delta_sums *sums, const float *delta, const float *now, const float *before, int64_t n);

/* ---- layers: forward next to backward ---------------------------------------------------------------------------- */
/* y = x / rms(x) * w (+1 added to w where add_one, Gemma). inv_rms[T] is kept for the backward pass.
 * Zhang and Sennrich 2019. w is frozen: no gradient for it. */
void bw_rmsnorm_forward(float *y, float *inv_rms, const float *x, const float *w, bool add_one, float eps, int64_t T, int64_t C);
/* dx += */
void bw_rmsnorm_backward(float *dx, const float *dy, const float *x, const float *inv_rms, const float *w, bool add_one, int64_t T, int64_t C);
/* Rotary embedding, rotate-half form, in place on x[T][n_head][head_dim] with row stride ld; cos, sin: [max position][head_dim/2].
 * Su et al. 2021. The backward pass is the rotation by the negative angle: inverse = true. */
void bw_rope(float *x, int64_t ld, const int32_t *positions, const float *cosines, const float *sines, int64_t T, int n_head, int head_dim,
             bool inverse);
/* h = silu(g) * u, and its backward pass: dg, du may be the same memory as g, u. */
void bw_swiglu_forward(float *h, const float *g, const float *u, int64_t n);
void bw_swiglu_backward(float *dg, float *du, const float *dh, const float *g, const float *u, int64_t n);
void bw_add(float *y, const float *x, int64_t n); /* y += x */
void bw_embed(float *y, const float *table, const int32_t *tokens, int64_t T, int64_t C, float scale);
/* Dropout at rate p: a mask is drawn once, then applied to what goes in and to its gradient. Row t of it is drawn from (seed, step, sample[t],
 * position[t], stream). stream tells layer and target apart: stream = layer * 8 + target < 2^16.
 * kept[T][bw_mask_words(C)]: bit c % 32 of word c / 32 of a row is 1 where column c is kept. It is dropped where a draw of 16 bits is below
 * p * 2^16, rounded: half c % 2 of word c / 2 % 4 of bw_rng({seed, BW_PURPOSE_DROPOUT, step, sample, stream}, position * ceil(C / 8) + c / 8).
 * One stream has one C. Bits past column C of a row's last word are 0. */
int64_t bw_mask_words(int64_t C);
void bw_dropout_draw(uint32_t *kept, const int32_t *samples, const int32_t *positions, uint64_t seed, uint32_t step, uint32_t stream, float p,
                     int64_t T, int64_t C);
/* y = what is kept of x, scaled by 1/(1-p); y may be x. The second adds it to y. */
void bw_dropout(float *y, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C);
void bw_dropout_add(float *y, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C);
/* What is kept of x for products, as bw_dropout and then bw_operand_ready would give it; memory: bw_operand_drop_bytes, with the backend that is
 * started, from a cache line on. A product C = A^T B of two that came from here ends the program: neither could be turned over. */
int64_t bw_operand_drop_bytes(int64_t T, int64_t C);
bw_operand bw_operand_drop(void *memory, const float *x, const uint32_t *kept, float p, int64_t T, int64_t C);
void bw_flush_denormals(void); /* FTZ and DAZ on, for the calling thread and every OpenMP thread: after their number is set */

/* ---- attention: packed, causal within each sequence, grouped heads ----------------------------------------------
 * q[T][n_head*head_dim] (row stride ldq), k, v [T][n_kv*head_dim] (ldk); offsets[n_seq+1] cut T into sequences.
 * out[T][n_head*head_dim] (ldq), lse[n_head][T] = log-sum-exp of each row, kept for the backward pass. Where oneDNN multiplies bf16
 * (bw_gemm_start) and the CPU has AVX512-BF16, so does attention. scratch: bw_attention_scratch(shape, T) floats with the backend that is started;
 * with NULL products are fp32 in any case. */
enum { BW_MAX_HEAD_DIM = 256 }; /* head_dim is even and at most this: a block is held on the stack (the loader checks) */
typedef struct bw_attention {
    int n_head, n_kv, head_dim;
    float scale;
    float soft_cap; /* 0: none */
    int window;     /* 0: none */
} bw_attention;
bool bw_attention_is_half(void); /* with the backend that is started it multiplies bf16; ranks that agree on the backend agree on this */
int64_t bw_attention_scratch(const bw_attention *shape, int64_t T);
void bw_attention_forward(const bw_attention *shape, float *out, float *lse, const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk,
                          const int32_t *offsets, int n_seq, float *scratch);
/* dq, dk, dv are written (not added to). A key at distance `window` or more before its query is not seen. */
void bw_attention_backward(const bw_attention *shape, float *dq, float *dk, float *dv, const float *dout, const float *out, const float *lse,
                           const float *q, const float *k, const float *v, int64_t ldq, int64_t ldk, const int32_t *offsets, int n_seq,
                           float *scratch);
/* Keys and values of one sequence, in an order that only the functions below know: head by head, `head` entries apart, each with room for
 * bw_cache_room(keys) keys of head_dim entries. Entries are bf16 where attention multiplies it, which then rounds queries and weights, too; else
 * fp32. */
typedef struct bw_cache {
    void *k, *v;
    int64_t head;
    bool half;
} bw_cache;
int64_t bw_cache_room(int64_t keys);                  /* in whole units: so many keys have to be there for */
int64_t bw_cache_bytes(int64_t entries);              /* of keys, or of values, with the backend that is started */
bw_cache bw_cache_in(void *k, void *v, int64_t head); /* in memory that the caller has */
bw_cache bw_cache_at(bw_cache cache, int64_t entry);  /* from there on: where the room of a sequence or a head begins */
/* Keys and values 0 .. n - 1 of every head; up to bw_cache_room(n), what was there is overwritten. Runs on the calling thread. */
void bw_cache_copy(const bw_attention *shape, bw_cache to, bw_cache from, int64_t n);
/* Rows k, v[n][n_kv*head_dim] become keys and values first .. first + n - 1. Each is written after all before it: in bf16 the value of an even key
 * clears that of the next one. Runs on the calling thread. */
void bw_cache_write(const bw_attention *shape, bw_cache cache, int64_t first, int64_t n, const float *k, const float *v);
/* Decoding: n_new query rows of one sequence whose last key is at length-1; keys and values 0 .. length-1 are in the cache.
 * Runs on all threads, or on the calling one inside a parallel region: a loop over sequences may be parallel itself. */
void bw_attention_cached(const bw_attention *shape, float *out, const float *q, int64_t ldq, int n_new, bw_cache cache, int length);

/* ---- loss: cross-entropy of answer rows, the vocabulary walked in chunks (no T x V logits) -----------------------
 * h[n][C] are the rows with a target, head[V][C]; targets[n]. loss[n] gets each row's loss; where dh is not NULL it gets
 * scale * d(sum loss)/dh. cap: 30 for Gemma's final soft-cap, 0 none. scratch: bw_loss_scratch(n, C) floats, from a cache line on,
 * as many as the backend that is started asks for. */
int64_t bw_loss_scratch(int64_t n, int64_t C);
void bw_loss(float *loss, float *dh, float scale, const float *h, const float *head, const int32_t *targets, int64_t n, int64_t C, int64_t V,
             float cap, float *scratch);
/* Index of the largest of x[n]; the lowest index wins a tie. */
int64_t bw_argmax(const float *x, int64_t n);
#endif

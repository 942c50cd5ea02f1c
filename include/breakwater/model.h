/* breakwater/model.h - the network: families, frozen weights, adapters, forward and backward, decoding.
 * Letters: L layers, T tokens of a micro-batch, C d_model, F d_ff, V vocabulary, r rank of a LoRA.
 * W is out x in, B out x r, A r x in; a LoRA adds scaling * B * A. */
#ifndef BREAKWATER_MODEL_H
#define BREAKWATER_MODEL_H
#include "breakwater/base.h"
#include "breakwater/data.h"
#include "breakwater/io.h"
#include "breakwater/num.h"
#include "breakwater/par.h"

/* ---- family: what tells one architecture from another, as data --------------------------------------------------- */
typedef enum bw_target { BW_Q, BW_K, BW_V, BW_O, BW_GATE, BW_UP, BW_DOWN, BW_TARGETS } bw_target;
/* Sets of them, bit t for target t: what comes before attention, and after it. */
enum { BW_QKV = 1u << BW_Q | 1u << BW_K | 1u << BW_V, BW_AFTER_ATTENTION = 1u << BW_O | 1u << BW_GATE | 1u << BW_UP | 1u << BW_DOWN };
typedef struct bw_spec {
    const char *family; /* "llama" */
    int n_layer, n_head, n_kv, head_dim;
    int64_t d_model, d_ff, vocab, max_positions;
    double norm_eps, rope_theta;
    double rope_factor, rope_low, rope_high, rope_original; /* llama3 scaling; rope_factor 0: none */
    double embed_scale;                                     /* 1 */
    bool tied, norm_add_one;
    int32_t eos[8]; /* ids that end an answer, from the configuration of the model */
    int n_eos;
} bw_spec;
/* Shape of a target's weight (any pointer may be NULL). */
void bw_spec_shape(const bw_spec *spec, bw_target target, int64_t *out, int64_t *in);
double bw_spec_flops(const bw_spec *spec, unsigned targets); /* of a token in the weights of some targets of a layer */
const char *bw_target_name(bw_target target);                /* "q", "gate", ... */
const char *bw_target_module(bw_target target);              /* "self_attn.q_proj", "mlp.gate_proj", ... */
int bw_targets_parse(const char *text, unsigned *mask);      /* "q,v,gate" or "q_proj,v_proj"; bit 1 << target; BW_USAGE names the choices */

/* ---- source: the model's files, opened and checked: every tensor there, none surplus, shapes and types right ------ */
typedef struct bw_source bw_source;
/* `path`: a Hugging Face directory or a GGUF file. Local (maps files, reads only headers). An unknown architecture, a missing,
 * surplus or misshapen tensor: BW_DATA with its name. */
int bw_source_open(bw_source **out, const char *path);
/* The same for a plan, where a config.json will do: its path, or a folder without weights. Such a source has a spec and dtypes (torch_dtype of the
 * configuration) and nothing to read; weights that are there are opened and checked. Local. */
int bw_source_outline(bw_source **out, const char *path);
/* A model of these sizes with random weights (bf16; norms are one), for measurements: there is no file, so bw_source_path is "" and
 * bw_source_write_config must not be called. Local. */
int bw_source_random(bw_source **out, const bw_spec *spec, uint64_t seed);
void bw_source_close(bw_source *source);
const bw_spec *bw_source_spec(const bw_source *source);
const char *bw_source_path(const bw_source *source);
/* XXH3-128 over names, types, shapes and the first and last 4 KiB of every tensor. Local. */
bw_hash bw_source_fingerprint(const bw_source *source);
/* Entries [row, row+rows) x [col, col+cols) of a target's weight in Hugging Face's row order, as fp32 (GGUF's q and k
 * permutation is undone; quantised blocks are decoded). NaN or Inf: BW_DATA with tensor and place. Local. */
int bw_source_read(const bw_source *source, int layer, bw_target target, int64_t row, int64_t rows, int64_t col, int64_t cols, float *out,
                   int64_t ld);
/* Vectors and the two big tables. name: "input_layernorm", "post_attention_layernorm", "norm" (layer -1), "embed_tokens", "lm_head". */
int bw_source_read_named(const bw_source *source, int layer, const char *name, int64_t row, int64_t rows, int64_t col, int64_t cols, float *out,
                         int64_t ld);
/* BW_DATA when a tokenizer of this many tokens has ids that the embedding has no row for. Local. */
int bw_source_check_tokens(const bw_source *source, int32_t tokens);
bw_dtype bw_source_dtype(const bw_source *source, int layer, bw_target target);
/* Copies config.json and tokenizer files to a model folder we write, with torch_dtype set; a GGUF's are generated from its metadata. */
int bw_source_write_config(const bw_source *source, const char *folder, bw_dtype dtype);

/* ---- adapter: a LoRA per (layer, target), factors block-cyclic fp32 ------------------------------------------------ */
typedef struct bw_pair {
    bool present;
    int r;
    double scaling; /* alpha / r, or alpha / sqrt(r) */
    bw_matrix A, B; /* r x in and out x r; the short side in blocks of ceil(r/P) or ceil(r/Q) so that all ranks own a part */
} bw_pair;
typedef struct bw_adapter {
    int n_layer;
    bw_pair *pairs; /* [layer * BW_TARGETS + target] */
    int r;          /* of the configuration; pairs may differ (rank_pattern) */
    double alpha, dropout;
    char role[16];             /* "align" "buffer" "reinforce" "user" "sft" "merged"; "" when the file does not say */
    char template_name[16];    /* of the prompts it was trained on; "" when the file does not say */
    char base[33], buffer[33]; /* fingerprints, as text, of the model and the BufferLoRA that it was trained on; "" when the file does not say */
    bw_hash fingerprint;       /* of the files it came from, or zero */
} bw_adapter;
/* One pair of zero factors in that layout, for a weight of out x in. Local. */
int bw_pair_create(bw_pair *pair, const bw_grid *grid, int64_t out, int64_t in, int r, double scaling, int block);
void bw_pair_free(bw_pair *pair);
/* Zero factors for the targets in `mask`. Local. */
int bw_adapter_create(bw_adapter **out, const bw_grid *grid, const bw_spec *spec, unsigned mask, int r, double alpha, double dropout, int block);
/* As bw_adapter_create, but pairs have shapes and no data: what a plan counts. Only the grid's shape and this rank's place in it are read. Local. */
int bw_adapter_outline(bw_adapter **out, const bw_grid *grid, const bw_spec *spec, unsigned mask, int r, int block);
/* PEFT's initialisation: A uniform in +-1/sqrt(in) (kaiming_uniform with a = sqrt 5), B zero; Philox by (seed, layer, target, entry): any grid the
 * same bits. */
void bw_adapter_init(bw_adapter *adapter, uint64_t seed);
void bw_adapter_free(bw_adapter **adapter);
bw_pair *bw_adapter_pair(const bw_adapter *adapter, int layer, bw_target target); /* NULL when absent */
int64_t bw_adapter_parameters(const bw_adapter *adapter);                         /* global count */
int64_t bw_adapter_bytes(const bw_adapter *adapter);                              /* of this rank's pieces */
int64_t bw_adapter_floats(const bw_adapter *adapter);                             /* of all factors, dense, and of a rank's gradients */

/* ---- peft: adapters in and out (reference: PEFT's adapter_config.json and adapter_model.safetensors) -------------- */
/* Collective on world. Every rank reads its own pieces. Refused with a message: adapter_model.bin, DoRA, bias, modules_to_save, shapes of another
 * model, unknown or missing tensors, NaN. rslora, rank_pattern and alpha_pattern are understood. */
int bw_peft_load(bw_adapter **out, const bw_grid *grid, const bw_spec *spec, const char *folder, int block);
/* The fingerprint that bw_peft_load would give, without checking or reading the numbers. Local. */
int bw_peft_fingerprint(bw_hash *out, const bw_spec *spec, const char *folder);
/* Collective on world. Replica 0's ranks write; temporary folder, then rename. base: path recorded. metadata: key, value, ..., NULL into the
 * safetensors header. A buffer is written with mode 0600 (folder 0700). The bytes depend on the factors alone. */
int bw_peft_save(const bw_adapter *adapter, const bw_grid *grid, const bw_spec *spec, const char *folder, const char *base,
                 const char *const *metadata);
/* The role an adapter folder declares ("" when it does not say); reads only the header. Local. */
int bw_peft_role(const char *folder, char role[16]);
/* Warns where an adapter that `option` names was trained on prompts of another template than `template_name`. Local. */
void bw_peft_warn_template(const bw_adapter *adapter, const char *option, const char *folder, const char *template_name);
/* Warns where an adapter that `option` names was trained on another base model. The same weights as GGUF and as safetensors are two. Local. */
void bw_peft_warn_base(const bw_adapter *adapter, const char *option, const char *folder, bw_hash model);
/* A BufferLoRA where `option` means another adapter is refused (BW_USAGE) unless it is allowed. Local. */
int bw_peft_refuse_buffer(const char *folder, const char *option, bool allow);

/* ---- store: frozen weights as block-cyclic pieces, lent layer by layer, ready for their products and shared by the node */
typedef struct bw_side { /* a frozen adapter that runs beside its weight: y += scaling * (x A^T) B^T */
    int r;
    float scaling;
    const float *A, *B; /* dense r x in, out x r */
} bw_side;
typedef struct bw_layer {
    bw_weight weight[BW_TARGETS]; /* out x in, for bw_gemm_weight */
    const bw_side *sides[BW_TARGETS];
    int n_sides[BW_TARGETS];
    const float *norm_attention, *norm_mlp;
} bw_layer;
typedef struct bw_store bw_store;
/* Adapters in folded[] become part of the frozen model: W + sum_i factor[i] * scaling * B A. Their share of an entry is far below the spacing of
 * bf16, so they are added where the copy is fp32 (bw_store_folds), never to the pieces, and else run beside the weight.
 * They are borrowed until bw_store_close. config: weights, store, block. backward: the weights serve a backward pass too. The backend of the products
 * stays what it is until bw_store_close. Collective on world. */
int bw_store_open(bw_store **out, const bw_grid *grid, const bw_source *source, const bw_config *config, bool backward,
                  const bw_adapter *const *folded, const double *factors, int n_folded);
void bw_store_close(bw_store **store);
/* Lend a layer for the products of `use`, which the store was opened for (the weights may serve more). `next` (or -1) is the layer that will be asked
 * for next, for the same use; it is fetched meanwhile where weights are streamed. Collective on world when streamed (bw_store_streams), local when
 * resident. At most one layer is lent at a time. */
int bw_store_acquire(bw_store *store, int layer, int next, bw_use use, bw_layer *out);
int bw_store_release(bw_store *store, int layer);
bool bw_store_streams(const bw_store *store);
void bw_store_progress(const bw_store *store);          /* between products: lets layers and gradients under way move on */
const float *bw_store_embedding(const bw_store *store); /* V x C, always held */
const float *bw_store_head(const bw_store *store);      /* V x C; the embedding where tied */
const float *bw_store_norm(const bw_store *store);      /* C: the last norm */
const bw_spec *bw_store_spec(const bw_store *store);
/* What lending cost this rank so far where the store streams, in seconds: sums over the gathers of layers. */
typedef struct bw_streaming {
    int64_t gathers;
    double in_flight; /* from the start until the last message was there: hidden, but for what was waited for */
    double waited, unpacked,
        met; /* the layer was needed: its messages were not there; unpacking (and packing for products); until the node's other ranks were done */
} bw_streaming;
const bw_streaming *bw_store_streaming(const bw_store *store);
const char *bw_store_describe(const bw_store *store); /* "resident, f32, 513 MiB per node" */
bool bw_store_folds(void);                            /* adapters are added to the copies: these are fp32 with the precision chosen */
int bw_store_side_rank(const bw_store *store);        /* of the largest adapter that runs beside its weight; 0: none does */
/* Sizes without a store, for a plan of training, with the precision chosen (bw_gemm_start). A rank's piece as it would be held, without data; the
 * rest is once a node: a layer ready for its products, all slots for layers (and the dense one they are packed from), embedding with head and norms.
 */
bw_matrix bw_store_piece_outline(const bw_source *source, const bw_grid *grid, const bw_config *config, int layer, bw_target target);
int64_t bw_store_layer_bytes(const bw_spec *spec);
int64_t bw_store_slot_bytes(const bw_spec *spec, bool streams);
int64_t bw_store_table_bytes(const bw_spec *spec);

/* ---- lora: an adapter in training: dense shared copies for the kernels, this rank's gradients --------------------- */
typedef struct bw_lora bw_lora;
int bw_lora_create(bw_lora **out, const bw_grid *grid, bw_adapter *adapter); /* borrows the adapter; collective on world */
void bw_lora_free(bw_lora **lora);
int bw_lora_refresh(bw_lora *lora); /* dense copies from the pieces (after an update); collective on world */
typedef struct bw_lora_view {
    int r;
    float scaling;
    const float *A, *B; /* dense r x in, out x r */
    float *dA, *dB;     /* this rank's gradient of one micro-batch */
} bw_lora_view;
/* NULL where the adapter has no such pair. */
const bw_lora_view *bw_lora_at(const bw_lora *lora, int layer, bw_target target);
const bw_adapter *bw_lora_adapter(const bw_lora *lora);
/* Tensors in a fixed order for bw_reduce: pair after pair, A then B, layer by layer. Tensor index of a pair's A (B is the next), -1 when absent. */
int bw_lora_tensors(const bw_lora *lora);
int bw_lora_tensor(const bw_lora *lora, int layer, bw_target target);

/* ---- transformer -------------------------------------------------------------------------------------------------- */
typedef struct bw_transformer bw_transformer;
/* lora may be NULL (evaluation). max_tokens, max_answers: of one micro-batch; training: keep activations for the backward pass, recompute: keep only
 * each layer's input and run the layer again. Local. Prints nothing; memory is counted under "activations". */
int bw_transformer_create(bw_transformer **out, bw_store *store, bw_lora *lora, int64_t max_tokens, int64_t max_answers, bool training,
                          bool recompute);
void bw_transformer_free(bw_transformer **transformer);
/* Called after the gradients of `layer` are in the lora views, layers from last to first. */
typedef int (*bw_layer_done)(void *context, int layer);
typedef struct bw_pass {
    uint64_t seed;
    uint32_t step;     /* of the dropout masks */
    double loss_scale; /* 1 / answer tokens of the global batch: scales gradients, not *loss */
    bw_layer_done done;
    void *context;
} bw_pass;
/* Forward, loss, backward of one micro-batch. *loss = sum of the answer tokens' cross-entropies (not scaled). A batch with T = 0 takes part in
 * the collectives of a streamed store and leaves zero gradients. Collective on world when the store streams, local otherwise. */
int bw_transformer_train(bw_transformer *transformer, const bw_batch *batch, const bw_pass *pass, double *loss);
/* Forward and loss only, no dropout; row_loss[answers] may be NULL. */
int bw_transformer_loss(bw_transformer *transformer, const bw_batch *batch, double *loss, float *row_loss);
/* Logits of every row, out[T][V]; for checks and small inputs. */
int bw_transformer_logits(bw_transformer *transformer, const bw_batch *batch, float *out);
/* What bw_transformer_create takes (adapter: of the lora, or NULL; side_rank: bw_store_side_rank) with the backend that is started. */
int64_t bw_transformer_bytes(const bw_spec *spec, const bw_adapter *adapter, int side_rank, int64_t max_tokens, int64_t max_answers, bool training,
                             bool recompute);
/* Floating-point operations of a micro-batch, by what does them: the model's own count, not recompute. Of the batch only T, answers and offsets
 * are read. After the attention of the last layer only answers count. Pure. */
typedef struct bw_work {
    double weights, attention, head, lora;
} bw_work;
bw_work bw_transformer_work(const bw_spec *spec, const bw_adapter *adapter, const bw_batch *batch, bool backward);
/* Their sum. */
double bw_transformer_flops(const bw_spec *spec, const bw_adapter *adapter, const bw_batch *batch, bool backward);

/* ---- generate: greedy decoding in batches with a KV cache --------------------------------------------------------- */
typedef struct bw_answer {
    int32_t *tokens;
    int32_t count;
    bool ended; /* by an end token, which is left out */
} bw_answer;
/* Continue prompts[0..count) (token lists) by up to max_new tokens. A batch is always prompts [i*batch, (i+1)*batch) of the
 * whole list and batches are shared out over ranks, so answers do not depend on the number of ranks. Collective on world: every rank brings the
 * whole list; answers[] is filled where this rank did the work, tokens NULL elsewhere. stop: ids that end.
 * after, or NULL, is called after each batch a rank; what it returns is agreed on, and ends the work unless it is BW_OK. */
int bw_generate(const bw_grid *grid, bw_store *store, const bw_tokens *prompts, int64_t count, int64_t batch, int64_t max_new, const int32_t *stop,
                int n_stop, bw_answer *answers, int (*after)(void *context, int64_t done, int64_t of), void *context);
void bw_answers_free(bw_answer *answers, int64_t count);
#endif

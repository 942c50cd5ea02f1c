/* model/transformer.c - forward, loss and backward over all layers of one micro-batch. */
#include "block.h"
#include <math.h>
#include <string.h>

struct bw_transformer {
    bw_store *store;
    const bw_spec *spec;
    bw_block block;
    int64_t max_tokens, max_answers;
    bool training, recompute;
    int lowest;      /* first layer with a LoRA: below it nothing needs a gradient */
    float **x;       /* input of each layer, x[n_layer] the rows that the last one gives; evaluating: one buffer, in place */
    bw_saved *saved; /* a set per layer, or one set used again */
    int n_saved;
    bw_slopes slopes;
    float *dx;
    /* Of the rows with a target, which alone go on after the last layer's attention. input: of the last layer */
    int64_t n;
    float *input, *normed, *inv_rms, *d_rows, *row_loss, *loss_scratch;
    int32_t *row_of, *row_target, *row_position, *row_sample;
};

/* ---- create and free ------------------------------------------------------------------------------------------------- */

static int lowest_layer(const bw_spec *spec, const bw_lora *lora)
{
    for (int i = 0; lora && i < spec->n_layer * BW_TARGETS; i++)
        if (bw_lora_at(lora, i / BW_TARGETS, (bw_target)(i % BW_TARGETS)))
            return i / BW_TARGETS;
    return spec->n_layer;
}

static int create_streams(bw_transformer *t)
{
    int n = t->spec->n_layer;
    BW_TRY(BW_NEW(t->x, n + 1, "activations"));
    int64_t size = t->max_tokens * t->spec->d_model;
    BW_TRY(BW_NEW(t->x[0], size, "activations"));
    for (int layer = 1; layer <= n; layer++) {
        if (t->training)
            BW_TRY(BW_NEW(t->x[layer], size, "activations"));
        else
            t->x[layer] = t->x[0];
    }
    return BW_OK;
}

/* Sets of a layer's activations: all are kept for the backward pass, or one is used again and again. */
static int saved_sets(const bw_spec *spec, bool training, bool recompute)
{
    return training && !recompute ? spec->n_layer : 1;
}

static int create_saved(bw_transformer *t, const bw_lora *lora)
{
    t->n_saved = saved_sets(t->spec, t->training, t->recompute);
    BW_TRY(BW_NEW(t->saved, t->n_saved, "activations"));
    for (int i = 0; i < t->n_saved; i++)
        BW_TRY(bw_saved_create(&t->saved[i], t->spec, lora, t->max_tokens));
    return BW_OK;
}

static int create_answers(bw_transformer *t)
{
    int64_t n = t->max_answers, C = t->spec->d_model;
    BW_TRY(BW_NEW(t->input, n * C, "activations"));
    BW_TRY(BW_NEW(t->normed, n * C, "activations"));
    BW_TRY(BW_NEW(t->inv_rms, n, "activations"));
    BW_TRY(BW_NEW(t->row_loss, n, "activations"));
    BW_TRY(BW_NEW(t->row_of, n, "activations"));
    BW_TRY(BW_NEW(t->row_target, n, "activations"));
    BW_TRY(BW_NEW(t->row_position, n, "activations"));
    BW_TRY(BW_NEW(t->row_sample, n, "activations"));
    BW_TRY(BW_NEW(t->d_rows, n * C, "activations"));
    return BW_NEW(t->loss_scratch, bw_loss_scratch(n, C), "activations");
}

/* Four C-wide buffers are of answer rows, or of all tokens (dx); the streams between layers are one more than layers, or one. */
int64_t bw_transformer_bytes(const bw_spec *spec, const bw_adapter *adapter, int side_rank, int64_t max_tokens, int64_t max_answers, bool training,
                             bool recompute)
{
    const int64_t C = spec->d_model, stream = max_tokens * C;
    const bw_attention attention = bw_attention_of(spec);
    int64_t floats = bw_block_floats(spec, adapter, side_rank, max_tokens, max_tokens) + bw_attention_scratch(&attention, max_tokens);
    floats += (training ? spec->n_layer + 1 : 1) * stream;
    floats += saved_sets(spec, training, recompute) * bw_saved_floats(spec, adapter, max_tokens);
    floats += max_answers * (3 * C + 6) + bw_loss_scratch(max_answers, C);
    floats += training ? bw_slopes_floats(spec, max_tokens) + stream : 0;
    return floats * (int64_t)sizeof(float);
}

int bw_transformer_create(bw_transformer **out, bw_store *store, bw_lora *lora, int64_t max_tokens, int64_t max_answers, bool training,
                          bool recompute)
{
    *out = NULL;
    bw_transformer *t;
    BW_TRY(BW_NEW(t, 1, "activations"));
    int status = BW_OK;
    t->store = store;
    t->spec = bw_store_spec(store);
    t->max_tokens = max_tokens > 0 ? max_tokens : 1;
    t->max_answers = max_answers > 0 ? max_answers : 1;
    t->training = training;
    t->recompute = recompute;
    t->lowest = lowest_layer(t->spec, lora);
    BW_GO(bw_block_create(&t->block, t->store, lora, t->max_tokens, t->max_tokens));
    BW_GO(BW_NEW(t->block.attention_scratch, bw_attention_scratch(&t->block.attention, t->max_tokens), "activations"));
    BW_GO(create_streams(t));
    BW_GO(create_saved(t, lora));
    BW_GO(create_answers(t));
    if (training) {
        BW_GO(bw_slopes_create(&t->slopes, t->spec, t->max_tokens));
        BW_GO(BW_NEW(t->dx, t->max_tokens * t->spec->d_model, "activations"));
    }
    *out = t;
done:
    if (status != BW_OK)
        bw_transformer_free(&t);
    return status;
}

void bw_transformer_free(bw_transformer **transformer)
{
    bw_transformer *t = *transformer;
    *transformer = NULL;
    if (!t)
        return;
    for (int layer = 0; t->x && layer <= t->spec->n_layer; layer++)
        if (layer == 0 || t->x[layer] != t->x[0])
            bw_free(t->x[layer]);
    bw_free(t->x);
    for (int i = 0; t->saved && i < t->n_saved; i++)
        bw_saved_free(&t->saved[i]);
    bw_free(t->saved);
    bw_slopes_free(&t->slopes);
    bw_free(t->block.attention_scratch);
    bw_block_free(&t->block);
    void *owned[] = {t->dx,           t->input,  t->normed,     t->inv_rms,      t->d_rows,    t->row_loss,
                     t->loss_scratch, t->row_of, t->row_target, t->row_position, t->row_sample};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        bw_free(owned[i]);
    bw_free(t);
}

static bw_saved *saved_of(bw_transformer *t, int layer)
{
    return &t->saved[t->n_saved == 1 ? 0 : layer];
}

static bw_rows_of rows_of(const bw_batch *batch)
{
    return (bw_rows_of){.T = batch->T, .positions = batch->positions, .samples = batch->samples};
}

/* ---- rows with a target ---------------------------------------------------------------------------------------------- */

static int find_answers(bw_transformer *t, const bw_batch *batch)
{
    t->n = 0;
    for (int64_t row = 0; row < batch->T; row++) {
        if (batch->targets[row] < 0)
            continue;
        BW_ASSERT(t->n < t->max_answers);
        t->row_of[t->n] = (int32_t)row;
        t->row_target[t->n] = batch->targets[row];
        t->row_position[t->n] = batch->positions[row];
        t->row_sample[t->n++] = batch->samples[row];
    }
    return BW_OK;
}

/* Rows of x that have a target, to the front of `to`, which may be x. */
static void keep_answers(const bw_transformer *t, float *to, const float *x, int64_t width)
{
    for (int64_t i = 0; i < t->n; i++)
        memmove(to + i * width, x + t->row_of[i] * width, (size_t)width * sizeof *x);
}

/* Back to where they were, the last one first; the rows between them become zeros. */
static void spread_answers(const bw_transformer *t, float *x, int64_t T, int64_t width)
{
    int64_t end = T;
    for (int64_t i = t->n - 1; i >= -1; i--) {
        const int64_t row = i >= 0 ? t->row_of[i] : -1;
        memset(x + (row + 1) * width, 0, (size_t)((end - row - 1) * width) * sizeof *x);
        if (i >= 0)
            memmove(x + row * width, x + i * width, (size_t)width * sizeof *x);
        end = row;
    }
}

/* ---- a layer ----------------------------------------------------------------------------------------------------------- */

static bool is_last(const bw_transformer *t, int layer)
{
    return layer == t->spec->n_layer - 1;
}

static int64_t query_width(const bw_spec *spec)
{
    return (int64_t)spec->n_head * spec->head_dim;
}

/* all: every row of the last layer is asked for. */
static void layer_forward(bw_transformer *t, const bw_batch *batch, const bw_layer *weights, int layer, bool all)
{
    const bw_spec *spec = t->spec;
    bw_rows_of rows = rows_of(batch);
    bw_saved *saved = saved_of(t, layer);
    const float *x = t->x[layer];
    bw_block_inputs_forward(&t->block, &rows, weights, layer, x, saved);
    bw_attention_forward(&t->block.attention, saved->mixed, saved->lse, saved->q, saved->k, saved->v, query_width(spec),
                         (int64_t)spec->n_kv * spec->head_dim, batch->offsets, batch->n_seq, t->block.attention_scratch);
    if (is_last(t, layer) && !all) {
        keep_answers(t, t->input, x, spec->d_model);
        keep_answers(t, saved->mixed, saved->mixed, query_width(spec));
        x = t->input;
        rows = (bw_rows_of){.T = t->n, .positions = t->row_position, .samples = t->row_sample};
    }
    bw_block_output_forward(&t->block, &rows, weights, layer, x, saved, t->x[layer + 1]);
}

static void layer_backward(bw_transformer *t, const bw_batch *batch, const bw_layer *weights, int layer)
{
    const bool need_dx = layer > t->lowest, last = is_last(t, layer);
    const bw_rows_of rows = rows_of(batch);
    bw_saved *saved = saved_of(t, layer);
    bw_block_output_backward(&t->block, last ? t->n : batch->T, weights, layer, saved, &t->slopes, t->dx, need_dx);
    if (last) {
        spread_answers(t, t->dx, batch->T, t->spec->d_model);
        spread_answers(t, t->slopes.mixed, batch->T, query_width(t->spec));
        spread_answers(t, saved->mixed, batch->T, query_width(t->spec)); /* what it was at other rows meets gradients of zero */
    }
    bw_block_inputs_backward(&t->block, &rows, batch, weights, layer, t->x[layer], saved, &t->slopes, t->dx, need_dx);
}

/* ---- forward --------------------------------------------------------------------------------------------------------- */

/* Of the forward pass; the backward pass has five products where this has two. */
static double attention_flops(const bw_spec *spec, const bw_batch *batch)
{
    double pairs = 0;
    for (int s = 0; s < batch->n_seq; s++) {
        double length = batch->offsets[s + 1] - batch->offsets[s];
        pairs += length * (length + 1) / 2;
    }
    return 4.0 * pairs * spec->n_head * spec->head_dim * spec->n_layer;
}

static int forward(bw_transformer *t, const bw_batch *batch, bool all)
{
    BW_ASSERT(batch->T <= t->max_tokens && batch->answers <= t->max_answers);
    int last = t->spec->n_layer - 1;
    bw_span span = bw_span_begin();
    double flops = bw_gemm_flops();
    if (!all)
        BW_TRY(find_answers(t, batch));
    bw_embed(t->x[0], bw_store_embedding(t->store), batch->tokens, batch->T, t->spec->d_model, (float)t->spec->embed_scale);
    for (int layer = 0; layer <= last; layer++) {
        bw_layer weights;
        /* After the last layer the backward pass begins with the two that the slots still hold. */
        BW_TRY(bw_store_acquire(t->store, layer, layer < last ? layer + 1 : t->training ? last - 1 : 0, BW_FORWARD, &weights));
        const double start = bw_now();
        layer_forward(t, batch, &weights, layer, all);
        bw_timeline_add("forward", layer, start, bw_now());
        BW_TRY(bw_store_release(t->store, layer));
    }
    bw_span_end(&span, BW_EVENT_FORWARD, bw_gemm_flops() - flops + attention_flops(t->spec, batch), 0);
    return BW_OK;
}

/* ---- loss on answer rows --------------------------------------------------------------------------------------------- */

static double loss(bw_transformer *t, float scale, bool gradient)
{
    double start = bw_now(), flops = bw_gemm_flops();
    const int64_t n = t->n, C = t->spec->d_model;
    const float *x = t->x[t->spec->n_layer], *norm = bw_store_norm(t->store);
    bw_rmsnorm_forward(t->normed, t->inv_rms, x, norm, t->spec->norm_add_one, (float)t->spec->norm_eps, n, C);
    bw_loss(t->row_loss, gradient ? t->d_rows : NULL, scale, t->normed, bw_store_head(t->store), t->row_target, n, C, t->spec->vocab, 0,
            t->loss_scratch);
    if (gradient) {
        memset(t->dx, 0, (size_t)(n * C) * sizeof *t->dx);
        bw_rmsnorm_backward(t->dx, t->d_rows, x, t->inv_rms, norm, t->spec->norm_add_one, n, C);
    }
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += t->row_loss[i];
    const double end = bw_now();
    bw_timeline_add("loss", -1, start, end);
    bw_event_add(BW_EVENT_LOSS, end - start, bw_gemm_flops() - flops, 0);
    return sum;
}

/* ---- backward -------------------------------------------------------------------------------------------------------- */

static int backward(bw_transformer *t, const bw_batch *batch, const bw_pass *pass)
{
    bw_span span = bw_span_begin();
    double flops = bw_gemm_flops();
    for (int layer = t->spec->n_layer - 1; layer >= t->lowest; layer--) {
        bw_layer weights;
        BW_TRY(bw_store_acquire(t->store, layer, layer > t->lowest ? layer - 1 : 0, t->recompute ? BW_BOTH : BW_BACKWARD, &weights));
        const double start = bw_now();
        if (t->recompute)
            layer_forward(t, batch, &weights, layer, false);
        layer_backward(t, batch, &weights, layer);
        bw_timeline_add("backward", layer, start, bw_now());
        BW_TRY(bw_store_release(t->store, layer));
        if (pass->done)
            BW_TRY(pass->done(pass->context, layer));
    }
    double share = (double)(t->spec->n_layer - t->lowest) / t->spec->n_layer * (t->recompute ? 3.5 : 2.5);
    bw_span_end(&span, BW_EVENT_BACKWARD, bw_gemm_flops() - flops + share * attention_flops(t->spec, batch), 0);
    return BW_OK;
}

/* ---- public ---------------------------------------------------------------------------------------------------------- */

int bw_transformer_train(bw_transformer *t, const bw_batch *batch, const bw_pass *pass, double *out)
{
    BW_ASSERT(t->training && t->block.lora);
    t->block.dropout = (float)bw_lora_adapter(t->block.lora)->dropout;
    t->block.seed = pass->seed;
    t->block.step = pass->step;
    BW_TRY(forward(t, batch, false));
    *out = loss(t, (float)pass->loss_scale, true);
    return backward(t, batch, pass);
}

int bw_transformer_loss(bw_transformer *t, const bw_batch *batch, double *out, float *row_loss)
{
    t->block.dropout = 0;
    BW_TRY(forward(t, batch, false));
    *out = loss(t, 1, false);
    if (row_loss)
        memcpy(row_loss, t->row_loss, (size_t)t->n * sizeof *row_loss);
    return BW_OK;
}

int bw_transformer_logits(bw_transformer *t, const bw_batch *batch, float *out)
{
    BW_ASSERT(batch->T <= t->max_answers);
    t->block.dropout = 0;
    BW_TRY(forward(t, batch, true));
    int64_t C = t->spec->d_model, V = t->spec->vocab;
    bw_rmsnorm_forward(t->normed, t->inv_rms, t->x[t->spec->n_layer], bw_store_norm(t->store), t->spec->norm_add_one, (float)t->spec->norm_eps,
                       batch->T, C);
    bw_gemm(false, true, batch->T, V, C, 1, bw_operand_of(t->normed, C), bw_operand_of(bw_store_head(t->store), C), 0, out, V);
    return BW_OK;
}

/* Of a token in the factors of some targets of a layer. */
static double adapter_flops(const bw_spec *spec, const bw_adapter *adapter, int layer, unsigned targets)
{
    double flops = 0;
    for (int target = 0; adapter && target < BW_TARGETS; target++) {
        const bw_pair *pair = bw_adapter_pair(adapter, layer, (bw_target)target);
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        flops += pair && (targets >> target & 1u) ? 2.0 * pair->r * (double)(out + in) : 0;
    }
    return flops;
}

bw_work bw_transformer_work(const bw_spec *spec, const bw_adapter *adapter, const bw_batch *batch, bool backward)
{
    const double T = (double)batch->T, answers = (double)batch->answers;
    bw_work work = {.attention = attention_flops(spec, batch), .head = 2.0 * answers * (double)spec->d_model * (double)spec->vocab};
    for (int layer = 0; layer < spec->n_layer; layer++) {
        const double after = layer < spec->n_layer - 1 ? T : answers; /* rows that go on after attention */
        work.weights += bw_spec_flops(spec, BW_QKV) * T + bw_spec_flops(spec, BW_AFTER_ATTENTION) * after;
        work.lora += adapter_flops(spec, adapter, layer, BW_QKV) * T + adapter_flops(spec, adapter, layer, BW_AFTER_ATTENTION) * after;
    }
    if (backward) {
        work.weights *= 2;
        work.attention *= 3.5;
        work.head *= 2;
        work.lora *= 3;
    }
    return work;
}

double bw_transformer_flops(const bw_spec *spec, const bw_adapter *adapter, const bw_batch *batch, bool backward)
{
    const bw_work work = bw_transformer_work(spec, adapter, batch, backward);
    return work.weights + work.attention + work.head + work.lora;
}

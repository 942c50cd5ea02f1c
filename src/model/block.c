/* model/block.c - one layer: norm, q k v, rotary embedding, attention, o, norm, gated MLP; each step's backward pass in reverse. */
#include "block.h"
#include <math.h>
#include <string.h>

/* ---- rotary angles, with the llama3 scaling of long contexts ------------------------------------------------------- */

/* Source: Llama 3.1's rope_scaling in transformers' modeling_rope_utils: low frequencies are slowed by `factor`, high ones
 * kept, those between blended. */
static double scaled_frequency(const bw_spec *spec, double frequency)
{
    if (spec->rope_factor <= 0)
        return frequency;
    double wavelength = 2 * M_PI / frequency;
    double low_wavelength = spec->rope_original / spec->rope_low, high_wavelength = spec->rope_original / spec->rope_high;
    if (wavelength < high_wavelength)
        return frequency;
    if (wavelength > low_wavelength)
        return frequency / spec->rope_factor;
    double smooth = (spec->rope_original / wavelength - spec->rope_low) / (spec->rope_high - spec->rope_low);
    return (1 - smooth) * frequency / spec->rope_factor + smooth * frequency;
}

/* Frequencies and angles are rounded to float where the reference does, so that long sequences turn by the same angle. */
static void fill_angles(bw_block *block)
{
    int half = block->spec->head_dim / 2;
    for (int i = 0; i < half; i++) {
        float frequency = (float)scaled_frequency(block->spec, 1.0 / pow(block->spec->rope_theta, 2.0 * i / block->spec->head_dim));
        for (int64_t p = 0; p < block->positions; p++) {
            double angle = (double)((float)p * frequency);
            block->cosines[p * half + i] = (float)cos(angle);
            block->sines[p * half + i] = (float)sin(angle);
        }
    }
}

static int64_t widest_input(const bw_spec *spec)
{
    int64_t widest = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t in;
        bw_spec_shape(spec, (bw_target)target, NULL, &in);
        widest = in > widest ? in : widest;
    }
    return widest;
}

/* Largest rank that a target has in any layer: scratch fits every layer, also where rank_pattern makes them differ. */
static int largest_rank(const bw_adapter *adapter, bw_target target)
{
    int largest = 0;
    for (int layer = 0; adapter && layer < adapter->n_layer; layer++) {
        const bw_pair *pair = bw_adapter_pair(adapter, layer, target);
        largest = pair && pair->r > largest ? pair->r : largest;
    }
    return largest;
}

static int largest_rank_of_all(const bw_adapter *adapter)
{
    int largest = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        int rank = largest_rank(adapter, (bw_target)target);
        largest = rank > largest ? rank : largest;
    }
    return largest;
}

static const bw_adapter *adapter_of(const bw_lora *lora)
{
    return lora ? bw_lora_adapter(lora) : NULL;
}

static int64_t angle_floats(const bw_spec *spec, int64_t positions)
{
    return positions * spec->head_dim / 2;
}

bw_attention bw_attention_of(const bw_spec *spec)
{
    return (bw_attention){.n_head = spec->n_head, .n_kv = spec->n_kv, .head_dim = spec->head_dim, .scale = (float)(1 / sqrt(spec->head_dim))};
}

/* Memory for what products read: the largest input, dropped or not, and the largest input or output of a target. */
static int64_t most_bytes(const bw_spec *spec, int64_t max_tokens, bool dropped)
{
    int64_t most = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        const int64_t a = dropped ? bw_operand_drop_bytes(max_tokens, in) : bw_operand_bytes(max_tokens, in);
        const int64_t b = dropped ? 0 : bw_operand_bytes(max_tokens, out);
        most = a > most ? a : most;
        most = b > most ? b : most;
    }
    return most;
}

int64_t bw_block_floats(const bw_spec *spec, const bw_adapter *adapter, int side_rank, int64_t max_tokens, int64_t positions)
{
    const int64_t of_lora = adapter ? widest_input(spec) + largest_rank_of_all(adapter) : 0;
    const int64_t ready = most_bytes(spec, max_tokens, false) * (adapter ? 2 : 1) + (adapter ? most_bytes(spec, max_tokens, true) : 0);
    return 2 * angle_floats(spec, positions) + max_tokens * (spec->d_model + spec->d_ff + of_lora + side_rank) + ready / (int64_t)sizeof(float);
}

int bw_block_create(bw_block *block, const bw_store *store, const bw_lora *lora, int64_t max_tokens, int64_t positions)
{
    const bw_spec *spec = bw_store_spec(store);
    *block = (bw_block){.store = store, .spec = spec, .lora = lora, .positions = positions};
    block->attention = bw_attention_of(spec);
    BW_TRY(BW_NEW(block->cosines, angle_floats(spec, positions), "activations"));
    BW_TRY(BW_NEW(block->sines, angle_floats(spec, positions), "activations"));
    fill_angles(block);
    BW_TRY(BW_NEW(block->normed, max_tokens * spec->d_model, "activations"));
    BW_TRY(BW_NEW(block->hidden, max_tokens * spec->d_ff, "activations"));
    if (bw_store_side_rank(store) > 0)
        BW_TRY(BW_NEW(block->side, max_tokens * bw_store_side_rank(store), "activations"));
    BW_TRY(BW_NEW(block->ready_x, most_bytes(spec, max_tokens, false), "activations"));
    if (lora) {
        BW_TRY(BW_NEW(block->ready_dy, most_bytes(spec, max_tokens, false), "activations"));
        BW_TRY(BW_NEW(block->dropped, most_bytes(spec, max_tokens, true), "activations"));
        BW_TRY(BW_NEW(block->d_wide, max_tokens * widest_input(spec), "activations"));
        BW_TRY(BW_NEW(block->d_low, max_tokens * largest_rank_of_all(adapter_of(lora)), "activations"));
    }
    return BW_OK;
}

void bw_block_free(bw_block *block)
{
    bw_free(block->cosines);
    bw_free(block->sines);
    bw_free(block->normed);
    bw_free(block->hidden);
    bw_free(block->ready_x);
    bw_free(block->ready_dy);
    bw_free(block->dropped);
    bw_free(block->d_wide);
    bw_free(block->d_low);
    bw_free(block->side);
    *block = (bw_block){0};
}

/* ---- memory of a pass: one allocation, cut up by a table of sizes --------------------------------------------------- */
typedef struct slice {
    float **place;
    int64_t count;
} slice;

static int64_t total_floats(const slice *slices, int count)
{
    int64_t total = 0;
    for (int i = 0; i < count; i++)
        total += (slices[i].count + 15) / 16 * 16; /* each starts on a cache line */
    return total;
}

static int cut(float **memory, const slice *slices, int count)
{
    BW_TRY(BW_NEW(*memory, total_floats(slices, count), "activations"));
    float *next = *memory;
    for (int i = 0; i < count; i++) {
        *slices[i].place = next;
        next += (slices[i].count + 15) / 16 * 16;
    }
    return BW_OK;
}

enum { SAVED_SLICES = 11 + BW_TARGETS, SLOPE_SLICES = 7 };

/* Words of dropout's mask of a target's input, a row. */
static int64_t mask_words(const bw_spec *spec, const bw_adapter *adapter, bw_target target)
{
    int64_t in;
    bw_spec_shape(spec, target, NULL, &in);
    return largest_rank(adapter, target) > 0 ? bw_mask_words(in) : 0;
}

static void saved_slices(bw_saved *saved, const bw_spec *spec, const bw_adapter *adapter, int64_t T, slice slices[SAVED_SLICES])
{
    int64_t C = spec->d_model, F = spec->d_ff, query = (int64_t)spec->n_head * spec->head_dim, key = (int64_t)spec->n_kv * spec->head_dim, masks = 0;
    for (int target = 0; target < BW_TARGETS; target++)
        masks += mask_words(spec, adapter, (bw_target)target);
    const slice fixed[SAVED_SLICES - BW_TARGETS] = {
        {&saved->inv_rms_attention, T},  {&saved->q, T * query},  {&saved->k, T * key},     {&saved->v, T * key},  {&saved->mixed, T * query},
        {&saved->lse, T * spec->n_head}, {&saved->middle, T * C}, {&saved->inv_rms_mlp, T}, {&saved->gate, T * F}, {&saved->up, T * F},
        {&saved->masks, T * masks},
    };
    memcpy(slices, fixed, sizeof fixed);
    for (int target = 0; target < BW_TARGETS; target++)
        slices[SAVED_SLICES - BW_TARGETS + target] = (slice){&saved->low[target], T * largest_rank(adapter, (bw_target)target)};
}

int64_t bw_saved_floats(const bw_spec *spec, const bw_adapter *adapter, int64_t T)
{
    bw_saved nothing;
    slice slices[SAVED_SLICES];
    saved_slices(&nothing, spec, adapter, T, slices);
    return total_floats(slices, SAVED_SLICES);
}

int bw_saved_create(bw_saved *saved, const bw_spec *spec, const bw_lora *lora, int64_t T)
{
    slice slices[SAVED_SLICES];
    *saved = (bw_saved){0};
    saved_slices(saved, spec, adapter_of(lora), T, slices);
    BW_TRY(cut(&saved->memory, slices, SAVED_SLICES));
    uint32_t *next = (uint32_t *)(void *)saved->masks;
    for (int target = 0; target < BW_TARGETS; target++) {
        saved->kept[target] = next;
        next += T * mask_words(spec, adapter_of(lora), (bw_target)target);
    }
    return BW_OK;
}

void bw_saved_free(bw_saved *saved)
{
    bw_free(saved->memory);
    *saved = (bw_saved){0};
}

static void slope_slices(bw_slopes *slopes, const bw_spec *spec, int64_t T, slice slices[SLOPE_SLICES])
{
    int64_t query = (int64_t)spec->n_head * spec->head_dim, key = (int64_t)spec->n_kv * spec->head_dim;
    const slice all[SLOPE_SLICES] = {
        {&slopes->wide_a, T * spec->d_ff}, {&slopes->wide_b, T * spec->d_ff},   {&slopes->q, T * query}, {&slopes->k, T * key}, {&slopes->v, T * key},
        {&slopes->mixed, T * query},       {&slopes->normed, T * spec->d_model}};
    memcpy(slices, all, sizeof all);
}

int64_t bw_slopes_floats(const bw_spec *spec, int64_t T)
{
    bw_slopes nothing;
    slice slices[SLOPE_SLICES];
    slope_slices(&nothing, spec, T, slices);
    return total_floats(slices, SLOPE_SLICES);
}

int bw_slopes_create(bw_slopes *slopes, const bw_spec *spec, int64_t T)
{
    slice slices[SLOPE_SLICES];
    *slopes = (bw_slopes){0};
    slope_slices(slopes, spec, T, slices);
    return cut(&slopes->memory, slices, SLOPE_SLICES);
}

void bw_slopes_free(bw_slopes *slopes)
{
    bw_free(slopes->memory);
    *slopes = (bw_slopes){0};
}

/* ---- one projection with its LoRA ----------------------------------------------------------------------------------- */
typedef struct projection {
    int64_t out, in;
    const bw_lora_view *lora;
} projection;

static projection projection_of(const bw_block *block, int layer, bw_target target)
{
    projection p = {.lora = block->lora ? bw_lora_at(block->lora, layer, target) : NULL};
    bw_spec_shape(block->spec, target, &p.out, &p.in);
    return p;
}

static void draw_mask(const bw_block *block, const bw_rows_of *rows, int layer, bw_target target, uint32_t *kept, int64_t width)
{
    if (block->dropout > 0)
        bw_dropout_draw(kept, rows->samples, rows->positions, block->seed, block->step, (uint32_t)(layer * 8 + (int)target), block->dropout, rows->T,
                        width);
}

/* The LoRA's input: x itself, or x with this target's mask applied (made again in the backward pass, not kept). */
static bw_operand lora_input(const bw_block *block, int64_t T, const uint32_t *kept, bw_operand x, int64_t width)
{
    return block->dropout > 0 ? bw_operand_drop(block->dropped, x.x, kept, block->dropout, T, width) : x;
}

/* What the targets read that have x, T x width, for input. */
static bw_operand input_of(const bw_block *block, int64_t T, const float *x, int64_t width)
{
    return bw_operand_ready(block->ready_x, x, T, width);
}

/* The same for their backward pass, where only LoRAs read it, each what its dropout leaves. */
static bw_operand input_again(const bw_block *block, int64_t T, const float *x, int64_t width)
{
    return block->dropout > 0 ? bw_operand_of(x, width) : input_of(block, T, x, width);
}

/* Frozen adapters beside the weight: y += scaling * (x A^T) B^T. */
static void add_sides(const bw_block *block, int64_t T, const bw_layer *weights, bw_target target, const projection *p, bw_operand x, float *y)
{
    for (int i = 0; i < weights->n_sides[target]; i++) {
        const bw_side *side = &weights->sides[target][i];
        const bw_operand low = bw_operand_of(block->side, side->r);
        bw_gemm(false, true, T, side->r, p->in, 1, x, bw_operand_of(side->A, p->in), 0, block->side, side->r);
        bw_gemm(false, true, T, p->out, side->r, side->scaling, low, bw_operand_of(side->B, side->r), 1, y, p->out);
    }
}

/* dx += scaling * (dy B) A */
static void add_sides_backward(const bw_block *block, int64_t T, const bw_layer *weights, bw_target target, const projection *p, bw_operand dy,
                               float *dx)
{
    for (int i = 0; i < weights->n_sides[target]; i++) {
        const bw_side *side = &weights->sides[target][i];
        const bw_operand low = bw_operand_of(block->side, side->r);
        bw_gemm(false, false, T, side->r, p->out, side->scaling, dy, bw_operand_of(side->B, side->r), 0, block->side, side->r);
        bw_gemm(false, false, T, p->in, side->r, 1, low, bw_operand_of(side->A, p->in), 1, dx, p->in);
    }
}

/* y = beta * y + x W^T + scaling * (drop(x) A^T) B^T */
static void project(const bw_block *block, const bw_rows_of *rows, const bw_layer *weights, int layer, bw_target target, bw_operand x, float beta,
                    float *y, const bw_saved *saved)
{
    float *low = saved->low[target];
    projection p = projection_of(block, layer, target);
    bw_gemm_weight(true, rows->T, p.out, p.in, x, weights->weight[target], beta, y, p.out);
    bw_store_progress(block->store);
    add_sides(block, rows->T, weights, target, &p, x, y);
    if (!p.lora)
        return;
    draw_mask(block, rows, layer, target, saved->kept[target], p.in);
    const bw_operand input = lora_input(block, rows->T, saved->kept[target], x, p.in);
    const int r = p.lora->r;
    bw_gemm(false, true, rows->T, r, p.in, 1, input, bw_operand_of(p.lora->A, p.in), 0, low, r);
    bw_gemm(false, true, rows->T, p.out, r, p.lora->scaling, bw_operand_of(low, r), bw_operand_of(p.lora->B, r), 1, y, p.out);
}

/* dA, dB of the views are written; dx = beta * dx + the gradient of x, unless dx is NULL. */
static void project_backward(const bw_block *block, int64_t T, const bw_layer *weights, int layer, bw_target target, bw_operand x,
                             const bw_saved *saved, const float *d_out, float beta, float *dx)
{
    projection p = projection_of(block, layer, target);
    const uint32_t *kept = saved->kept[target];
    if (!dx && !p.lora)
        return;
    const bw_operand dy = bw_operand_ready(block->ready_dy, d_out, T, p.out);
    if (dx) {
        bw_gemm_weight(false, T, p.in, p.out, dy, weights->weight[target], beta, dx, p.in);
        bw_store_progress(block->store);
        add_sides_backward(block, T, weights, target, &p, dy, dx);
    }
    if (!p.lora)
        return;
    int r = p.lora->r;
    float scaling = p.lora->scaling;
    const bw_operand A = bw_operand_of(p.lora->A, p.in), d_low = bw_operand_of(block->d_low, r);
    bw_gemm(true, false, p.out, r, T, scaling, dy, bw_operand_of(saved->low[target], r), 0, p.lora->dB, r);
    bw_gemm(false, false, T, r, p.out, scaling, dy, bw_operand_of(p.lora->B, r), 0, block->d_low, r);
    bw_gemm(true, false, r, p.in, T, 1, d_low, lora_input(block, T, kept, x, p.in), 0, p.lora->dA, p.in);
    if (!dx)
        return;
    if (block->dropout <= 0) {
        bw_gemm(false, false, T, p.in, r, 1, d_low, A, 1, dx, p.in);
        return;
    }
    bw_gemm(false, false, T, p.in, r, 1, d_low, A, 0, block->d_wide, p.in);
    bw_dropout_add(dx, block->d_wide, kept, block->dropout, T, p.in);
}

static void rotate(const bw_block *block, const bw_rows_of *rows, float *x, int n_head, bool inverse)
{
    int head_dim = block->spec->head_dim;
    bw_rope(x, (int64_t)n_head * head_dim, rows->positions, block->cosines, block->sines, rows->T, n_head, head_dim, inverse);
}

static void norm_forward(const bw_block *block, int64_t T, float *y, float *inv_rms, const float *x, const float *w)
{
    bw_rmsnorm_forward(y, inv_rms, x, w, block->spec->norm_add_one, (float)block->spec->norm_eps, T, block->spec->d_model);
}

static void norm_backward(const bw_block *block, int64_t T, float *dx, const float *dy, const float *x, const float *inv_rms, const float *w)
{
    bw_rmsnorm_backward(dx, dy, x, inv_rms, w, block->spec->norm_add_one, T, block->spec->d_model);
}

/* ---- the layer -------------------------------------------------------------------------------------------------------*/

static void norm_before_attention(const bw_block *block, int64_t T, const bw_layer *weights, const float *x, const bw_saved *saved)
{
    norm_forward(block, T, block->normed, saved->inv_rms_attention, x, weights->norm_attention);
}

static void norm_before_mlp(const bw_block *block, int64_t T, const bw_layer *weights, const bw_saved *saved)
{
    norm_forward(block, T, block->normed, saved->inv_rms_mlp, saved->middle, weights->norm_mlp);
}

static void activate(const bw_block *block, int64_t T, const bw_saved *saved)
{
    bw_swiglu_forward(block->hidden, saved->gate, saved->up, T * block->spec->d_ff);
}

void bw_block_inputs_forward(const bw_block *block, const bw_rows_of *rows, const bw_layer *weights, int layer, const float *x, bw_saved *saved)
{
    norm_before_attention(block, rows->T, weights, x, saved);
    const bw_operand normed = input_of(block, rows->T, block->normed, block->spec->d_model);
    project(block, rows, weights, layer, BW_Q, normed, 0, saved->q, saved);
    project(block, rows, weights, layer, BW_K, normed, 0, saved->k, saved);
    project(block, rows, weights, layer, BW_V, normed, 0, saved->v, saved);
    rotate(block, rows, saved->q, block->spec->n_head, false);
    rotate(block, rows, saved->k, block->spec->n_kv, false);
}

void bw_block_output_forward(const bw_block *block, const bw_rows_of *rows, const bw_layer *weights, int layer, const float *x, bw_saved *saved,
                             float *out)
{
    const bw_spec *spec = block->spec;
    const size_t stream_bytes = (size_t)(rows->T * spec->d_model) * sizeof(float);
    const bw_operand mixed = input_of(block, rows->T, saved->mixed, (int64_t)spec->n_head * spec->head_dim);
    memcpy(saved->middle, x, stream_bytes);
    project(block, rows, weights, layer, BW_O, mixed, 1, saved->middle, saved);
    norm_before_mlp(block, rows->T, weights, saved);
    const bw_operand normed = input_of(block, rows->T, block->normed, spec->d_model);
    project(block, rows, weights, layer, BW_GATE, normed, 0, saved->gate, saved);
    project(block, rows, weights, layer, BW_UP, normed, 0, saved->up, saved);
    activate(block, rows->T, saved);
    memcpy(out, saved->middle, stream_bytes);
    project(block, rows, weights, layer, BW_DOWN, input_of(block, rows->T, block->hidden, spec->d_ff), 1, out, saved);
}

enum { MLP_INPUTS = 1u << BW_GATE | 1u << BW_UP };

static bool trains(const bw_block *block, int layer, unsigned mask)
{
    for (int target = 0; target < BW_TARGETS; target++)
        if ((mask & 1u << target) && bw_lora_at(block->lora, layer, (bw_target)target))
            return true;
    return false;
}

static void mlp_backward(const bw_block *block, int64_t T, const bw_layer *weights, int layer, const bw_saved *saved, bw_slopes *slopes, float *dx,
                         bool need_dx)
{
    float *d_gate = slopes->wide_a, *d_up = slopes->wide_b, *d_normed = need_dx ? slopes->normed : NULL;
    bool inner = need_dx || trains(block, layer, MLP_INPUTS);
    bw_operand hidden = {0}, normed = {0};
    if (trains(block, layer, 1u << BW_DOWN)) {
        activate(block, T, saved);
        hidden = input_again(block, T, block->hidden, block->spec->d_ff);
    }
    project_backward(block, T, weights, layer, BW_DOWN, hidden, saved, dx, 0, inner ? d_up : NULL);
    if (!inner)
        return;
    bw_swiglu_backward(d_gate, d_up, d_up, saved->gate, saved->up, T * block->spec->d_ff);
    if (trains(block, layer, MLP_INPUTS)) {
        norm_before_mlp(block, T, weights, saved);
        normed = input_again(block, T, block->normed, block->spec->d_model);
    }
    project_backward(block, T, weights, layer, BW_GATE, normed, saved, d_gate, 0, d_normed);
    project_backward(block, T, weights, layer, BW_UP, normed, saved, d_up, 1, d_normed);
    if (need_dx)
        norm_backward(block, T, dx, d_normed, saved->middle, saved->inv_rms_mlp, weights->norm_mlp);
}

void bw_block_output_backward(const bw_block *block, int64_t T, const bw_layer *weights, int layer, const bw_saved *saved, bw_slopes *slopes,
                              float *dx, bool need_dx)
{
    const bool inner = need_dx || trains(block, layer, BW_QKV), attention = inner || trains(block, layer, 1u << BW_O);
    mlp_backward(block, T, weights, layer, saved, slopes, dx, attention);
    bw_operand mixed = {0};
    if (trains(block, layer, 1u << BW_O))
        mixed = input_again(block, T, saved->mixed, (int64_t)block->spec->n_head * block->spec->head_dim);
    if (attention)
        project_backward(block, T, weights, layer, BW_O, mixed, saved, dx, 0, inner ? slopes->mixed : NULL);
}

void bw_block_inputs_backward(const bw_block *block, const bw_rows_of *rows, const bw_batch *batch, const bw_layer *weights, int layer,
                              const float *x, const bw_saved *saved, bw_slopes *slopes, float *dx, bool need_dx)
{
    const bw_spec *spec = block->spec;
    const int64_t T = rows->T, query = (int64_t)spec->n_head * spec->head_dim, key = (int64_t)spec->n_kv * spec->head_dim;
    const bool reads = trains(block, layer, BW_QKV);
    if (!need_dx && !reads)
        return;
    bw_attention_backward(&block->attention, slopes->q, slopes->k, slopes->v, slopes->mixed, saved->mixed, saved->lse, saved->q, saved->k, saved->v,
                          query, key, batch->offsets, batch->n_seq, block->attention_scratch);
    rotate(block, rows, slopes->q, spec->n_head, true);
    rotate(block, rows, slopes->k, spec->n_kv, true);
    float *d_normed = need_dx ? slopes->normed : NULL;
    bw_operand normed = {0};
    if (reads) {
        norm_before_attention(block, T, weights, x, saved);
        normed = input_again(block, T, block->normed, spec->d_model);
    }
    project_backward(block, T, weights, layer, BW_Q, normed, saved, slopes->q, 0, d_normed);
    project_backward(block, T, weights, layer, BW_K, normed, saved, slopes->k, 1, d_normed);
    project_backward(block, T, weights, layer, BW_V, normed, saved, slopes->v, 1, d_normed);
    if (need_dx)
        norm_backward(block, T, dx, d_normed, x, saved->inv_rms_attention, weights->norm_attention);
}

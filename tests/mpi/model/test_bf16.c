/* test_bf16.c - training with bf16 operands beside fp32: packed weights from any grid, adapters beside the weights instead of in them, gradients and
 * logits as near to fp32's as 8 bits allow, and the same bits wherever the weights lie. */
#include "factors.h"
#include <float.h>
#include "base/half.h"
#include "breakwater/num.h"
#include "model/block.h"
#include "model/head.h"

enum { LAYERS = 6, R = 3, T = 23, SEED = 11, SEED_FOLDED = 5, MOST = 64 * 64, ALL = (1 << BW_TARGETS) - 1, SLOTS = LAYERS * BW_TARGETS };
static bw_source *source;
static double dropout = 0.25;  /* of the adapter that is trained, */
static unsigned targets = ALL; /* and what it has */
static bool recompute;         /* activations */

/* ---- build ----------------------------------------------------------------------------------------------------------- */
typedef struct engine {
    bw_adapter *adapter, *folded;
    bw_store *store;
    bw_lora *lora;
    bw_transformer *transformer;
} engine;

static void engine_open(engine *e, const bw_grid *grid, const char *precision, const char *weights, double factor)
{
    bw_config config;
    bw_config_init(&config);
    *e = (engine){0};
    CHECK_OK(bw_gemm_start(precision, 1));
    CHECK_OK(bw_config_set(&config, BW_TRAIN, "weights", weights));
    config.block = 8;
    CHECK_OK(bw_adapter_create(&e->adapter, grid, bw_source_spec(source), targets, R, 4, dropout, 8));
    CHECK_OK(bw_adapter_create(&e->folded, grid, bw_source_spec(source), 1u << BW_Q | 1u << BW_O | 1u << BW_DOWN, 4, 8, 0, 8));
    test_fill(e->adapter, SEED);
    test_fill(e->folded, SEED_FOLDED);
    const bw_adapter *const folded[] = {e->folded};
    CHECK_OK(bw_store_open(&e->store, grid, source, &config, true, folded, &factor, factor != 0));
    CHECK_OK(bw_lora_create(&e->lora, grid, e->adapter));
    CHECK_OK(bw_transformer_create(&e->transformer, e->store, e->lora, 32, 32, true, recompute));
    bw_config_free(&config);
}

static void engine_close(engine *e)
{
    bw_transformer_free(&e->transformer);
    bw_lora_free(&e->lora);
    bw_store_close(&e->store);
    bw_adapter_free(&e->adapter);
    bw_adapter_free(&e->folded);
}

static void fill_batch(bw_batch *batch)
{
    batch->T = batch->answers = 0;
    batch->n_seq = 1;
    for (int32_t p = 0; p < T; p++, batch->T++) {
        bool asked = p > 0 && p + 1 < T;
        batch->tokens[p] = (p * 101 + 7) % 256;
        batch->targets[p] = asked ? ((p + 1) * 101 + 7) % 256 : -1;
        batch->positions[p] = p;
        batch->samples[p] = 1;
        batch->answers += asked;
    }
    batch->offsets[0] = 0, batch->offsets[1] = T;
}

/* ---- a pass: loss and gradients of every factor ------------------------------------------------------------------------ */
typedef struct slopes {
    double loss;
    float entries[SLOTS][2][MOST];
} slopes;

static void slopes_of(const bw_grid *grid, const char *precision, const char *weights, double factor, slopes *out)
{
    engine e;
    bw_batch batch;
    bw_pass pass = {.seed = 5, .step = 2, .loss_scale = 1};
    memset(out, 0, sizeof *out);
    engine_open(&e, grid, precision, weights, factor);
    CHECK_OK(bw_batch_create(&batch, 32, 1));
    fill_batch(&batch);
    for (int times = 0; times < 2; times++) /* the second pass finds in the slots what the first has left */
        CHECK_OK(bw_transformer_train(e.transformer, &batch, &pass, &out->loss));
    for (int slot = 0; slot < SLOTS; slot++) {
        const bw_lora_view *view = bw_lora_at(e.lora, slot / BW_TARGETS, (bw_target)(slot % BW_TARGETS));
        int64_t rows, cols;
        bw_spec_shape(bw_source_spec(source), (bw_target)(slot % BW_TARGETS), &rows, &cols);
        if (!view)
            continue;
        memcpy(out->entries[slot][0], view->dA, (size_t)(R * cols) * sizeof(float));
        memcpy(out->entries[slot][1], view->dB, (size_t)(R * rows) * sizeof(float));
    }
    bw_batch_free(&batch);
    engine_close(&e);
}

/* The largest distance of a factor's gradient from the other's, as a share of its length. */
static double distance(const slopes *a, const slopes *b)
{
    double worst = 0;
    for (int slot = 0; slot < 2 * SLOTS; slot++) {
        double apart = 0, length = 0;
        for (int i = 0; i < MOST; i++) {
            double x = (double)a->entries[slot / 2][slot % 2][i], y = (double)b->entries[slot / 2][slot % 2][i];
            apart += (x - y) * (x - y);
            length += y * y;
        }
        CHECK((length > 0) == ((targets >> (slot / 2 % BW_TARGETS) & 1u) != 0));
        worst = length > 0 ? fmax(worst, sqrt(apart / length)) : worst;
    }
    return worst;
}

/* An operand is off by 2^-8 of itself at most, by 2^-9.3 in the mean (uniform in the last place, over all mantissas), and a product's terms by
 * sqrt 2 times that, in directions that do not conspire. A gradient has about 12 products a layer behind it, forward and backward: sqrt(72 * 2)
 * 2^-9.3 is 0.019; four times that is allowed. What leaves an adapter out, or takes one for another, is off by its whole share, tested below. */
static const double near = 0.076;

static void check_gradients(const bw_grid *grid)
{
    static slopes full, half, without;
    for (int folds = 0; folds < 2; folds++) { /* the frozen adapter in the weights there, beside them here */
        slopes_of(grid, "fp32", "resident", folds, &full);
        slopes_of(grid, "bf16", "resident", folds, &half);
        if (grid->rank == 0)
            printf("folded %d: loss %.4f and %.4f, gradients %.4f apart\n", folds, full.loss, half.loss, distance(&half, &full));
        CHECK(fabs(half.loss / full.loss - 1) <= near / 4);
        CHECK(distance(&half, &full) <= near);
    }
    slopes_of(grid, "fp32", "resident", 0, &without);
    CHECK(distance(&without, &full) > 4 * near);
}

/* Without dropout, targets that have one input read one rounded copy of it, and so do their gradients; some targets leave others' copies unread. */
static void check_shared_inputs(const bw_grid *grid)
{
    static slopes full, half;
    static const unsigned subsets[] = {ALL, 1u << BW_V | 1u << BW_UP, 1u << BW_K | 1u << BW_O | 1u << BW_GATE, 1u << BW_DOWN};
    for (size_t i = 0; i < sizeof subsets / sizeof *subsets; i++) {
        dropout = 0, targets = subsets[i];
        slopes_of(grid, "fp32", "resident", 1, &full);
        slopes_of(grid, "bf16", "resident", 1, &half);
        CHECK(distance(&half, &full) <= near);
    }
    dropout = 0.25, targets = ALL;
}

static void check_same_bits(const bw_grid *grid)
{
    static slopes resident, streamed;
    slopes_of(grid, "bf16", "resident", 1, &resident);
    for (int again = 0; again < 2; again++) {
        recompute = again;
        slopes_of(grid, "bf16", "stream", 1, &streamed);
        CHECK(memcmp(&resident, &streamed, sizeof resident) == 0);
    }
    recompute = false;
}

/* ---- what the store lends ---------------------------------------------------------------------------------------------- */
/* The model's own numbers, packed whole: what the grid cut up comes together again, and no adapter is in it. What a layer was not asked for need not
 * be there. */
static void check_weight(const bw_layer *lent, int layer, bw_target target, bw_use room, bw_use asked)
{
    static float dense[MOST];
    int64_t out, in;
    bw_spec_shape(bw_source_spec(source), target, &out, &in);
    CHECK_OK(bw_source_read(source, layer, target, 0, out, 0, in, dense, in));
    const int64_t forward = bw_weight_bytes(out, in, BW_FORWARD), all = bw_weight_bytes(out, in, room);
    const int64_t backward = forward < all ? forward : 0; /* where its part begins; one copy may serve both */
    char *packed = bw_calloc(all, 1, "test");
    const char *there = lent->weight[target].data;
    const bw_use ready = lent->weight[target].use;
    bw_weight_pack(packed, (bw_unpacked){.full = dense, .ld = in}, out, in, room);
    CHECK((ready & asked) == asked && (ready & ~room) == 0);
    if (ready & BW_FORWARD)
        CHECK(memcmp(packed, there, (size_t)forward) == 0);
    if (ready & BW_BACKWARD)
        CHECK(memcmp(packed + backward, there + backward, (size_t)(all - backward)) == 0);
    CHECK(lent->weight[target].dense == bw_weight_is_dense(room));
    CHECK((uintptr_t)lent->weight[target].data % 64 == 0);
    bw_free(packed);
}

static void check_side(const bw_layer *lent, const bw_adapter *folded, int layer, bw_target target, double factor)
{
    static float A[MOST], B[MOST];
    const bw_pair *pair = bw_adapter_pair(folded, layer, target);
    CHECK(lent->n_sides[target] == (pair != NULL));
    if (!pair || lent->n_sides[target] != 1)
        return;
    const bw_side *side = lent->sides[target];
    test_dense(SEED_FOLDED, layer * BW_TARGETS + (int)target, pair, A, B);
    CHECK(side->r == pair->r && side->scaling == (float)(factor * pair->scaling));
    CHECK(memcmp(A, side->A, (size_t)(pair->r * pair->A.layout.n) * sizeof *A) == 0);
    CHECK(memcmp(B, side->B, (size_t)(pair->r * pair->B.layout.m) * sizeof *B) == 0);
}

static void check_lending(const bw_grid *grid)
{
    /* Forward and backward through the layers in between, which are packed for what they are asked for; one of them is asked for in the other
     * direction while it is there, and for both. */
    static const struct {
        int layer, next;
        bw_use use, streamed; /* asked for; ready where it is streamed */
    } walk[] = {{0, 1, BW_FORWARD, BW_BOTH},    {1, 2, BW_FORWARD, BW_BOTH},      {2, 3, BW_FORWARD, BW_FORWARD},   {2, 3, BW_BACKWARD, BW_BACKWARD},
                {3, 4, BW_FORWARD, BW_FORWARD}, {4, 5, BW_FORWARD, BW_BOTH},      {5, 4, BW_FORWARD, BW_BOTH},      {5, 4, BW_BACKWARD, BW_BOTH},
                {4, 3, BW_BACKWARD, BW_BOTH},   {3, 2, BW_BACKWARD, BW_BACKWARD}, {2, 0, BW_BACKWARD, BW_BACKWARD}, {1, 3, BW_FORWARD, BW_BOTH},
                {3, 2, BW_BOTH, BW_BOTH},       {2, -1, BW_FORWARD, BW_BOTH}};
    for (int streams = 0; streams < 2; streams++) {
        engine e;
        engine_open(&e, grid, "bf16", streams ? "stream" : "resident", -0.75);
        CHECK(bw_store_side_rank(e.store) == 4 && strstr(bw_store_describe(e.store), "packed bf16"));
        for (size_t i = 0; i < sizeof walk / sizeof *walk; i++) {
            bw_layer lent;
            CHECK_OK(bw_store_acquire(e.store, walk[i].layer, walk[i].next, walk[i].use, &lent));
            for (int target = 0; target < BW_TARGETS; target++) {
                check_weight(&lent, walk[i].layer, (bw_target)target, BW_BOTH, walk[i].use);
                CHECK(lent.weight[target].use == (streams ? walk[i].streamed : BW_BOTH));
                check_side(&lent, e.folded, walk[i].layer, (bw_target)target, -0.75);
            }
            CHECK_OK(bw_store_release(e.store, walk[i].layer));
        }
        engine_close(&e);
    }
}

/* ---- a delta far below the spacing of bf16 ------------------------------------------------------------------------------ */
static void queries(const bw_grid *grid, const char *precision, double factor, float *q)
{
    engine e;
    bw_block block;
    bw_saved saved;
    bw_layer lent;
    const bw_spec *spec = bw_source_spec(source);
    int32_t positions[T] = {0};
    float *x = bw_calloc(T * spec->d_model, sizeof *x, "test");
    bw_rows_of rows = {.T = T, .positions = positions}; /* all at position 0, where nothing is rotated */
    for (int64_t i = 0; i < T * spec->d_model; i++)
        x[i] = test_b(3, (int)(i % 7), i, i / 13);
    engine_open(&e, grid, precision, "resident", factor);
    CHECK_OK(bw_block_create(&block, e.store, NULL, T, T));
    CHECK_OK(bw_saved_create(&saved, spec, NULL, T));
    CHECK_OK(bw_store_acquire(e.store, 1, -1, BW_FORWARD, &lent));
    bw_block_inputs_forward(&block, &rows, &lent, 1, x, &saved);
    memcpy(q, saved.q, (size_t)(T * spec->n_head * spec->head_dim) * sizeof *q);
    CHECK_OK(bw_store_release(e.store, 1));
    bw_saved_free(&saved);
    bw_block_free(&block);
    engine_close(&e);
    bw_free(x);
}

/* Of what factor * scaling * B A would add to W_q, the share of entries that W rounded to bf16 does not show. */
static double lost_share(double factor)
{
    static float dense[MOST], A[MOST], B[MOST];
    const int64_t out = bw_source_spec(source)->n_head * bw_source_spec(source)->head_dim, in = bw_source_spec(source)->d_model;
    const bw_pair shape = {.r = 4, .A = {.layout = {.n = in}}, .B = {.layout = {.m = out}}};
    int64_t lost = 0;
    CHECK_OK(bw_source_read(source, 1, BW_Q, 0, out, 0, in, dense, in));
    test_dense(SEED_FOLDED, BW_TARGETS + BW_Q, &shape, A, B);
    for (int64_t i = 0; i < out; i++)
        for (int64_t j = 0; j < in; j++) {
            double delta = 0;
            for (int l = 0; l < 4; l++)
                delta += factor * 2 * (double)B[i * 4 + l] * (double)A[l * in + j]; /* scaling 8 / 4 */
            const float w = dense[i * in + j];
            lost += bw_to_bf16(w + (float)delta) == bw_to_bf16(w);
        }
    return (double)lost / (double)(out * in);
}

/* q with the adapter less q without it is what the adapter adds, here as in fp32: off by its own four roundings to 8 bits, not by the weight's. */
static void check_small_delta(const bw_grid *grid)
{
    static float with[T * 64], without[T * 64], with_full[T * 64], without_full[T * 64];
    const double factor = 0x1p-12;
    const int64_t n = T * bw_source_spec(source)->n_head * bw_source_spec(source)->head_dim;
    double apart = 0, length = 0;
    queries(grid, "bf16", factor, with);
    queries(grid, "bf16", 0, without);
    queries(grid, "fp32", factor, with_full);
    queries(grid, "fp32", 0, without_full);
    for (int64_t i = 0; i < n; i++) {
        const double here = (double)with[i] - (double)without[i], there = (double)with_full[i] - (double)without_full[i];
        apart += (here - there) * (here - there);
        length += there * there;
    }
    if (grid->rank == 0)
        printf("delta: %.1f%% of its entries lost in bf16 storage; beside the weight %.4f of it\n", 100 * lost_share(factor), sqrt(apart / length));
    CHECK(lost_share(factor) > 0.9);
    CHECK(sqrt(apart / length) < 0x1p-6);
}

/* ---- weights of an evaluation, for the forward product alone ------------------------------------------------------------ */
static void check_forward_only(const bw_grid *grid)
{
    static const char *const precisions[] = {"fp32", "bf16"}, *const modes[] = {"resident", "stream"};
    for (int which = 0; which < 4; which++) {
        bw_config config;
        bw_store *store;
        bw_config_init(&config);
        CHECK_OK(bw_gemm_start(precisions[which % 2], 1));
        CHECK_OK(bw_config_set(&config, BW_EVAL, "weights", modes[which / 2]));
        CHECK_OK(bw_store_open(&store, grid, source, &config, false, NULL, NULL, 0));
        for (int layer = 0; layer < LAYERS; layer++) {
            bw_layer lent;
            CHECK_OK(bw_store_acquire(store, layer, (layer + 1) % LAYERS, BW_FORWARD, &lent));
            for (int target = 0; target < BW_TARGETS; target++)
                check_weight(&lent, layer, (bw_target)target, BW_FORWARD, BW_FORWARD);
            CHECK_OK(bw_store_release(store, layer));
        }
        bw_store_close(&store);
        bw_config_free(&config);
    }
}

/* ---- the head, which decoding multiplies in parts of 4,096 words: here one and a short one ------------------------------- */

/* Rows like words of the head, the last of the first part and the first of the second among them. */
static void check_head_rows(const bw_head *head, const float *words, int64_t rows)
{
    const bw_spec *spec = bw_source_spec(source);
    const int64_t C = spec->d_model, V = spec->vocab;
    float *x = bw_calloc(rows * C, sizeof *x, "test"), *whole = bw_calloc(rows * V, sizeof *x, "test"), *highest = bw_calloc(rows, sizeof *x, "test"),
          *scratch = bw_calloc(bw_head_scratch(spec, rows), sizeof *x, "test");
    int32_t *best = bw_calloc(rows, sizeof *best, "test");
    for (int64_t i = 0; i < rows * C; i++)
        x[i] = words[(i / C * 97 + 4095) % V * C + i % C] + 0.1f * test_b(3, (int)(i % 7), i, i / 13);
    bw_head_choose(head, rows, x, scratch, highest, best);
    bw_gemm(false, true, rows, V, C, 1, bw_operand_of(x, C), bw_operand_of(words, C), 0, whole, V);
    int64_t wrong = 0, second = 0;
    for (int64_t i = 0; i < rows; i++) {
        const float *row = whole + i * V;
        double size = 0; /* of the largest sum; both are sums of the same rounded operands, each off by C + 3 roundings */
        for (int64_t j = 0; j < V; j++) {
            double terms = 0;
            for (int64_t l = 0; l < C; l++)
                terms += fabs((double)x[i * C + l] * (double)words[j * C + l]);
            size = fmax(size, terms);
        }
        const double bound = (double)(C + 3) * FLT_EPSILON * 1.01 * size, most = (double)row[bw_argmax(row, V)];
        wrong += !(fabs((double)highest[i] - most) <= bound) || !(fabs((double)row[best[i]] - most) <= 2 * bound);
        second += best[i] >= 4096;
    }
    CHECK(wrong == 0);
    CHECK(second > 0 && second < rows);
    bw_free(x), bw_free(whole), bw_free(highest), bw_free(scratch), bw_free(best);
}

static void check_head(const bw_grid *grid)
{
    static const char *const precisions[] = {"fp32", "bf16"};
    for (int i = 0; i < 2; i++) {
        engine e;
        bw_head head;
        engine_open(&e, grid, precisions[i], "resident", 0);
        CHECK_OK(bw_head_create(&head, grid, e.store));
        check_head_rows(&head, bw_store_head(e.store), 3);
        check_head_rows(&head, bw_store_head(e.store), 40);
        bw_head_free(&head, grid);
        engine_close(&e);
    }
}

int main(int argc, char **argv)
{
    bw_grid *grid = NULL;
    bw_tiny tiny = BW_TINY;
    CHECK_OK(bw_par_start(&argc, &argv));
    test_folder_make();
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    tiny.n_layer = LAYERS;
    tiny.vocab = 4096 + 100;
    if (grid->rank == 0)
        CHECK_OK(bw_tiny_model_write_as(test_folder, &tiny, 3));
    CHECK_OK(bw_barrier(grid));
    CHECK_OK(bw_source_open(&source, test_folder));
    check_every_grid(check_lending);
    check_every_grid(check_same_bits);
    check_gradients(grid);
    check_shared_inputs(grid);
    check_small_delta(grid);
    check_every_grid(check_forward_only);
    check_every_grid(check_head);
    bw_gemm_stop();
    bw_source_close(source);
    CHECK_OK(bw_barrier(grid));
    if (grid->rank == 0)
        test_remove(test_folder);
    bw_grid_destroy(&grid);
    return check_finish("bf16");
}

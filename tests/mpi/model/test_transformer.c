/* test_transformer.c - gradients do not depend on what else is trained, on where activations come from, on how samples are packed, nor on where the
 * weights lie; and they are the slope of the loss. */
#include "factors.h"
#include "breakwater/num.h"

enum { LAYERS = 3, R = 3, MOST = R * 48, SEED = 11, SEQUENCES = 4, SLOTS = LAYERS * BW_TARGETS, ALL = (1 << BW_TARGETS) - 1 };
static bw_source *source;
static const int32_t lengths[SEQUENCES] = {5, 1, 9, 4}; /* one has nothing to predict */

typedef struct setting {
    unsigned present[LAYERS], live[LAYERS]; /* targets that have a pair; of those with B not zero */
    double dropout;
    const char *weights;
    bool recompute;
} setting;

typedef struct engine {
    bw_adapter *adapter;
    bw_store *store;
    bw_lora *lora;
    bw_transformer *transformer;
} engine;

typedef struct slopes {
    double loss;
    float entries[SLOTS][2][MOST];
} slopes;

/* ---- build --------------------------------------------------------------------------------------------------------- */
static void choose_pairs(bw_adapter *adapter, const setting *setting)
{
    for (int i = 0; i < SLOTS; i++) {
        bw_pair *pair = &adapter->pairs[i];
        unsigned bit = 1u << i % BW_TARGETS;
        if (!(setting->present[i / BW_TARGETS] & bit))
            bw_pair_free(pair);
        else if (!(setting->live[i / BW_TARGETS] & bit))
            memset(pair->B.data, 0, (size_t)(pair->B.ld * pair->B.cols) * sizeof(float));
    }
}

static void engine_open(engine *e, const bw_grid *grid, const setting *setting)
{
    bw_config config;
    bw_config_init(&config);
    CHECK_OK(bw_config_set(&config, BW_TRAIN, "weights", setting->weights));
    *e = (engine){0};
    CHECK_OK(bw_adapter_create(&e->adapter, grid, bw_source_spec(source), ALL, R, 4, setting->dropout, 8));
    test_fill(e->adapter, SEED);
    choose_pairs(e->adapter, setting);
    CHECK_OK(bw_store_open(&e->store, grid, source, &config, true, NULL, NULL, 0));
    CHECK_OK(bw_lora_create(&e->lora, grid, e->adapter));
    CHECK_OK(bw_transformer_create(&e->transformer, e->store, e->lora, 32, 32, true, setting->recompute));
    bw_config_free(&config);
}

static void engine_close(engine *e)
{
    bw_transformer_free(&e->transformer);
    bw_lora_free(&e->lora);
    bw_store_close(&e->store);
    bw_adapter_free(&e->adapter);
}

/* Sequences [first, last) of the four, packed. */
static void fill_batch(bw_batch *batch, int first, int last)
{
    batch->T = batch->answers = batch->n_seq = 0;
    batch->offsets[0] = 0;
    for (int s = first; s < last; s++) {
        for (int32_t p = 0; p < lengths[s]; p++, batch->T++) {
            bool asked = p > 0 && p + 1 < lengths[s];
            batch->tokens[batch->T] = (s * 37 + p * 101 + 7) % 256;
            batch->targets[batch->T] = asked ? (s * 37 + (p + 1) * 101 + 7) % 256 : -1;
            batch->positions[batch->T] = p;
            batch->samples[batch->T] = s;
            batch->answers += asked;
        }
        batch->offsets[++batch->n_seq] = (int32_t)batch->T;
    }
}

static int32_t size_of(const bw_lora_view *view, int slot, int factor)
{
    int64_t out, in;
    bw_spec_shape(bw_source_spec(source), (bw_target)(slot % BW_TARGETS), &out, &in);
    return (int32_t)(view->r * (factor ? out : in));
}

static double train(engine *e, int first, int last)
{
    bw_batch batch;
    bw_pass pass = {.seed = 5, .step = 2, .loss_scale = 1};
    double loss = -1;
    CHECK_OK(bw_batch_create(&batch, 32, SEQUENCES));
    fill_batch(&batch, first, last);
    CHECK_OK(bw_transformer_train(e->transformer, &batch, &pass, &loss));
    bw_batch_free(&batch);
    return loss;
}

/* Add what the views hold after a pass over sequences [first, last). */
static void add_slopes(engine *e, int first, int last, slopes *out)
{
    out->loss += train(e, first, last);
    for (int slot = 0; slot < SLOTS; slot++) {
        const bw_lora_view *view = bw_lora_at(e->lora, slot / BW_TARGETS, (bw_target)(slot % BW_TARGETS));
        for (int factor = 0; view && factor < 2; factor++)
            for (int32_t i = 0; i < size_of(view, slot, factor); i++)
                out->entries[slot][factor][i] += (factor ? view->dB : view->dA)[i];
    }
}

static void slopes_of(const bw_grid *grid, const setting *setting, slopes *out)
{
    engine e;
    *out = (slopes){0};
    engine_open(&e, grid, setting);
    add_slopes(&e, 0, SEQUENCES, out);
    engine_close(&e);
}

/* ---- what is trained ------------------------------------------------------------------------------------------------ */
#define BIT(target) (1u << (target))
/* Each lowest layer asks for another part of the backward pass; in the last two a layer without any pair lies between. */
static const unsigned subsets[][LAYERS] = {
    {BIT(BW_Q), 0, 0},
    {0, BIT(BW_K), 0},
    {0, 0, BIT(BW_V)},
    {0, BIT(BW_O), 0},
    {BIT(BW_GATE), 0, 0},
    {0, BIT(BW_UP), 0},
    {0, 0, BIT(BW_DOWN)},
    {BIT(BW_DOWN), 0, 0},
    {0, BIT(BW_O) | BIT(BW_DOWN), ALL},
    {BIT(BW_O), 0, BIT(BW_Q)},
    {BIT(BW_GATE) | BIT(BW_V), 0, BIT(BW_UP)},
};

/* A pair with B = 0 adds nothing, so a network with such pairs everywhere has the same gradients as one without them, and computes every part of the
 * backward pass. Adding zero changes no bit. */
static void check_subsets(const bw_grid *grid)
{
    static slopes few, all;
    for (size_t i = 0; i < sizeof subsets / sizeof *subsets; i++) {
        setting some = {.dropout = 0.25, .weights = "resident"}, full = {.present = {ALL, ALL, ALL}, .dropout = 0.25, .weights = "resident"};
        for (int layer = 0; layer < LAYERS; layer++)
            some.present[layer] = some.live[layer] = full.live[layer] = subsets[i][layer];
        slopes_of(grid, &some, &few);
        slopes_of(grid, &full, &all);
        CHECK(few.loss == all.loss);
        for (int slot = 0; slot < SLOTS; slot++)
            for (int n = 0; n < 2 * MOST && subsets[i][slot / BW_TARGETS] >> slot % BW_TARGETS & 1; n++)
                CHECK(few.entries[slot][n / MOST][n % MOST] == all.entries[slot][n / MOST][n % MOST]);
    }
}

/* ---- the same to the bit -------------------------------------------------------------------------------------------- */
static void check_same_bits(const bw_grid *grid)
{
    static slopes one, other;
    setting plain = {.present = {ALL, 0, ALL}, .live = {ALL, 0, ALL}, .dropout = 0.25, .weights = "resident"}, changed = plain;
    slopes_of(grid, &plain, &one);
    changed.recompute = true;
    slopes_of(grid, &changed, &other);
    CHECK(memcmp(&one, &other, sizeof one) == 0);
    changed.weights = "stream";
    slopes_of(grid, &changed, &other);
    CHECK(memcmp(&one, &other, sizeof one) == 0);
}

/* ---- packing -------------------------------------------------------------------------------------------------------- */
/* Sums in another order: each of at most 20 rows may round by 2^-24 of the largest term, and errors pass through 3 layers; 1e-5 of a factor's largest
 * gradient is beyond that, and far below what a mask or a neighbour's row in the wrong place would do. A micro-batch without rows leaves zeros. */
static void check_packing(const bw_grid *grid)
{
    static slopes packed, apart, nothing;
    engine e;
    setting setting = {.present = {ALL, ALL, ALL}, .live = {ALL, ALL, ALL}, .dropout = 0.25, .weights = "stream"};
    packed = apart = nothing = (slopes){0};
    engine_open(&e, grid, &setting);
    add_slopes(&e, 0, SEQUENCES, &packed);
    for (int s = 0; s < SEQUENCES; s++)
        add_slopes(&e, s, s + 1, &apart);
    add_slopes(&e, 0, 0, &nothing);
    engine_close(&e);
    CHECK(packed.loss > 0 && fabs(packed.loss - apart.loss) <= 1e-5 * packed.loss && nothing.loss == 0);
    for (int slot = 0; slot < 2 * SLOTS; slot++) {
        const float *a = packed.entries[slot / 2][slot % 2], *b = apart.entries[slot / 2][slot % 2];
        float largest = 0;
        for (int i = 0; i < MOST; i++)
            largest = fmaxf(largest, fabsf(a[i]));
        CHECK(largest > 0);
        for (int i = 0; i < MOST; i++)
            CHECK(fabsf(a[i] - b[i]) <= 1e-5f * largest && nothing.entries[slot / 2][slot % 2][i] == 0);
    }
}

/* ---- rows with a target ---------------------------------------------------------------------------------------------- */

/* Only they go on after the last layer's attention: their losses are those that the logits of all rows give. Both are some 300 roundings of fp32 away
 * from a number near 6. */
static void check_row_losses(const bw_grid *grid)
{
    engine e;
    bw_batch batch;
    const int64_t V = bw_source_spec(source)->vocab;
    float row_loss[32], *logits = bw_calloc(32 * V, sizeof *logits, "test");
    double loss;
    int64_t answer = 0;
    setting setting = {.present = {ALL, ALL, ALL}, .live = {ALL, ALL, ALL}, .weights = "resident"};
    engine_open(&e, grid, &setting);
    CHECK_OK(bw_batch_create(&batch, 32, SEQUENCES));
    fill_batch(&batch, 0, SEQUENCES);
    CHECK_OK(bw_transformer_logits(e.transformer, &batch, logits));
    CHECK_OK(bw_transformer_loss(e.transformer, &batch, &loss, row_loss));
    for (int64_t row = 0; row < batch.T; row++) {
        double sum = 0;
        for (int64_t word = 0; word < V; word++)
            sum += exp((double)logits[row * V + word]);
        if (batch.targets[row] >= 0)
            CHECK(fabs(log(sum) - (double)logits[row * V + batch.targets[row]] - (double)row_loss[answer++]) <= 1e-4);
    }
    CHECK(answer == batch.answers && answer > 0);
    bw_batch_free(&batch);
    bw_free(logits);
    engine_close(&e);
}

/* Without any target there is no loss and no gradient. */
static void check_no_answers(const bw_grid *grid)
{
    engine e;
    bw_batch batch;
    bw_pass pass = {.seed = 5, .step = 2, .loss_scale = 1};
    double loss = -1;
    setting setting = {.present = {ALL, ALL, ALL}, .live = {ALL, ALL, ALL}, .dropout = 0.25, .weights = "resident"};
    engine_open(&e, grid, &setting);
    train(&e, 0, SEQUENCES); /* leaves gradients */
    CHECK_OK(bw_batch_create(&batch, 32, SEQUENCES));
    fill_batch(&batch, 0, SEQUENCES);
    for (int64_t row = 0; row < batch.T; row++)
        batch.targets[row] = -1;
    batch.answers = 0;
    CHECK_OK(bw_transformer_train(e.transformer, &batch, &pass, &loss));
    CHECK(loss == 0);
    for (int slot = 0; slot < SLOTS; slot++) {
        const bw_lora_view *view = bw_lora_at(e.lora, slot / BW_TARGETS, (bw_target)(slot % BW_TARGETS));
        for (int factor = 0; factor < 2; factor++)
            for (int32_t i = 0; i < size_of(view, slot, factor); i++)
                CHECK((factor ? view->dB : view->dA)[i] == 0);
    }
    bw_batch_free(&batch);
    engine_close(&e);
}

/* ---- slope of the loss ---------------------------------------------------------------------------------------------- */
typedef struct move {
    const float *direction; /* dense, row-major */
    double factor;
} move;

static int move_block(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const move *m = context;
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            ((float *)block)[r + c * matrix->ld] += (float)(m->factor * (double)m->direction[(i + r) * matrix->layout.n + j + c]);
    return BW_OK;
}

static double loss_beside(engine *e, bw_matrix *matrix, const float *direction, double factor)
{
    move there = {direction, factor}, back = {direction, -factor};
    bw_matrix_visit(matrix, move_block, &there);
    CHECK_OK(bw_lora_refresh(e->lora));
    double loss = train(e, 0, SEQUENCES);
    bw_matrix_visit(matrix, move_block, &back);
    return loss;
}

/* Along its own gradient the loss rises by the gradient's length. Steps of 0.02: the loss, about 60, is good to 1e-5, which leaves 3e-4 of the slope;
 * the third derivative leaves 4e-4 of it. Slopes here are 0.1 and more. A wrong mask in the backward pass would cost a quarter of the slope. */
static void check_slopes(const bw_grid *grid)
{
    static slopes all;
    static float direction[MOST];
    engine e;
    const double step = 0.02;
    setting setting = {.present = {ALL, ALL, ALL}, .live = {ALL, ALL, ALL}, .dropout = 0.25, .weights = "resident"};
    all = (slopes){0};
    engine_open(&e, grid, &setting);
    add_slopes(&e, 0, SEQUENCES, &all);
    for (int slot = 0; slot < 2 * SLOTS; slot++) {
        bw_pair *pair = &e.adapter->pairs[slot / 2];
        double length = 0;
        for (int i = 0; i < MOST; i++)
            length += pow((double)all.entries[slot / 2][slot % 2][i], 2);
        length = sqrt(length);
        for (int i = 0; i < MOST; i++)
            direction[i] = (float)((double)all.entries[slot / 2][slot % 2][i] / length);
        bw_matrix *factor = slot % 2 ? &pair->B : &pair->A;
        double slope = (loss_beside(&e, factor, direction, step) - loss_beside(&e, factor, direction, -step)) / (2 * step);
        CHECK(fabs(slope - length) <= 0.01 * length + 1e-3);
    }
    engine_close(&e);
}

static void open_model(const bw_grid *grid)
{
    bw_tiny tiny = BW_TINY;
    tiny.n_layer = LAYERS;
    if (grid->rank == 0)
        CHECK_OK(bw_tiny_model_write_as(test_folder, &tiny, 3));
    CHECK_OK(bw_barrier(grid));
    CHECK_OK(bw_source_open(&source, test_folder));
    CHECK_OK(bw_barrier(grid));
    if (grid->rank == 0)
        test_remove(test_folder);
}

int main(int argc, char **argv)
{
    bw_grid *grid = NULL;
    CHECK_OK(bw_par_start(&argc, &argv));
    CHECK_OK(bw_gemm_start("fp32", 1));
    test_folder_make();
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    open_model(grid);
    if (grid->size <= 2) { /* arithmetic of one rank: more ranks say nothing more, and take their time */
        check_subsets(grid);
        check_slopes(grid);
    }
    check_same_bits(grid);
    check_packing(grid);
    check_row_losses(grid);
    check_no_answers(grid);
    CHECK_OK(bw_gemm_start("bf16", 1));
    check_same_bits(grid);
    check_no_answers(grid);
    bw_source_close(source);
    bw_grid_destroy(&grid);
    bw_gemm_stop();
    return check_finish("transformer");
}

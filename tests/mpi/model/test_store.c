/* test_store.c - whatever the grid, the nodes and the mode, a lent layer holds the same bits: those of the source, with the folded adapters added. */
#include "factors.h"
#include "breakwater/num.h"

enum { MOST = 48 * 32, SEED_A = 5, SEED_B = 9 };
static bw_source *source;
static const double factors[2] = {1.0, -0.75};

typedef struct variant {
    const char *weights, *store;
    int n_folded;
    int64_t block;
} variant;
static const variant variants[] = {
    {"resident", "auto", 0, 8}, {"stream", "auto", 0, 5},  {"resident", "auto", 2, 7},
    {"stream", "auto", 2, 16},  {"stream", "bf16", 1, 64}, {"auto", "f32", 2, 3},
};

/* What the source and the known factors say, computed whole and by nobody else's blocks. */
static void expected(float *w, int layer, bw_target target, const variant *variant, const bw_adapter *const *adapters)
{
    static float A[MOST], B[MOST];
    int64_t out, in;
    bw_spec_shape(bw_source_spec(source), target, &out, &in);
    CHECK_OK(bw_source_read(source, layer, target, 0, out, 0, in, w, in));
    if (strcmp(variant->store, "bf16") == 0) {
        uint16_t half[MOST];
        bw_from_f32(half, w, BW_BF16, out * in);
        bw_to_f32(w, half, BW_BF16, out * in);
    }
    for (int f = 0; f < variant->n_folded; f++) {
        const bw_pair *pair = bw_adapter_pair(adapters[f], layer, target);
        if (!pair)
            continue;
        test_dense(f ? SEED_B : SEED_A, layer * BW_TARGETS + (int)target, pair, A, B);
        bw_fold(w, in, out, in, (float)(factors[f] * pair->scaling), B, pair->r, A, in, pair->r);
    }
}

static void check_layer(bw_store *store, int layer, int next, const variant *variant, const bw_adapter *const *adapters)
{
    const bw_spec *spec = bw_source_spec(source);
    float want[MOST];
    bw_layer lent;
    CHECK_OK(bw_store_acquire(store, layer, next, BW_BOTH, &lent));
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        expected(want, layer, (bw_target)target, variant, adapters);
        CHECK(memcmp(want, lent.weight[target].data, (size_t)(out * in) * sizeof *want) == 0);
        CHECK((uintptr_t)lent.weight[target].data % 64 == 0);
    }
    CHECK_OK(bw_source_read_named(source, layer, "input_layernorm", 0, 1, 0, spec->d_model, want, spec->d_model));
    CHECK(memcmp(want, lent.norm_attention, (size_t)spec->d_model * sizeof *want) == 0);
    CHECK_OK(bw_source_read_named(source, layer, "post_attention_layernorm", 0, 1, 0, spec->d_model, want, spec->d_model));
    CHECK(memcmp(want, lent.norm_mlp, (size_t)spec->d_model * sizeof *want) == 0);
    CHECK_OK(bw_store_release(store, layer));
}

static void check_tables(bw_store *store)
{
    const bw_spec *spec = bw_source_spec(source);
    const int64_t count = spec->vocab * spec->d_model;
    float *want = bw_calloc(count, sizeof *want, "test");
    CHECK_OK(bw_source_read_named(source, -1, "embed_tokens", 0, spec->vocab, 0, spec->d_model, want, spec->d_model));
    CHECK(memcmp(want, bw_store_embedding(store), (size_t)count * sizeof *want) == 0);
    CHECK_OK(bw_source_read_named(source, -1, "lm_head", 0, spec->vocab, 0, spec->d_model, want, spec->d_model));
    CHECK(memcmp(want, bw_store_head(store), (size_t)count * sizeof *want) == 0);
    CHECK((bw_store_head(store) == bw_store_embedding(store)) == spec->tied);
    CHECK_OK(bw_source_read_named(source, -1, "norm", 0, 1, 0, spec->d_model, want, spec->d_model));
    CHECK(memcmp(want, bw_store_norm(store), (size_t)spec->d_model * sizeof *want) == 0);
    bw_free(want);
}

/* Forward, backward, the same layer twice, a guess that was wrong, and one that nobody asks for in the end. */
static const int walks[][2] = {{0, 1}, {1, 2}, {2, 1}, {1, 0}, {0, -1}, {0, 2}, {1, 0}, {2, -1}, {1, 0}, {1, 2}};

static void check_variant(const bw_grid *grid, const variant *variant)
{
    bw_adapter *adapters[2] = {NULL, NULL};
    bw_store *store = NULL;
    bw_config config;
    bw_config_init(&config);
    CHECK_OK(bw_config_set(&config, BW_TRAIN, "weights", variant->weights));
    CHECK_OK(bw_config_set(&config, BW_TRAIN, "store", variant->store));
    config.block = variant->block;
    /* Different targets and ranks, one of them 3, which no grid of 2 divides. */
    CHECK_OK(bw_adapter_create(&adapters[0], grid, bw_source_spec(source), 1u << BW_Q | 1u << BW_DOWN | 1u << BW_UP, 4, 8, 0, (int)variant->block));
    CHECK_OK(bw_adapter_create(&adapters[1], grid, bw_source_spec(source), 1u << BW_V | 1u << BW_DOWN, 3, 5, 0, (int)variant->block));
    test_fill(adapters[0], SEED_A);
    test_fill(adapters[1], SEED_B);
    const bw_adapter *const folded[2] = {adapters[0], adapters[1]};
    CHECK_OK(bw_store_open(&store, grid, source, &config, true, folded, factors, variant->n_folded));
    if (store) {
        CHECK(bw_store_streams(store) == (strcmp(variant->weights, "stream") == 0)); /* auto: a tiny model fits anywhere */
        for (size_t i = 0; i < sizeof walks / sizeof *walks; i++)
            check_layer(store, walks[i][0], walks[i][1], variant, folded);
        check_tables(store);
    }
    bw_store_close(&store);
    bw_adapter_free(&adapters[0]);
    bw_adapter_free(&adapters[1]);
    bw_config_free(&config);
}

static void check_variants(const bw_grid *grid)
{
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        check_variant(grid, &variants[i]);
}

static void open_model(const bw_tiny *tiny)
{
    if (bw_par_rank() == 0)
        CHECK_OK(bw_tiny_model_write_as(test_folder, tiny, 3));
    bw_grid *grid = NULL;
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    CHECK_OK(bw_barrier(grid));
    CHECK_OK(bw_source_open(&source, test_folder));
    bw_grid_destroy(&grid);
}

static void close_model(void)
{
    bw_grid *grid = NULL;
    bw_source_close(source);
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    CHECK_OK(bw_barrier(grid));
    if (grid->rank == 0)
        test_remove(test_folder);
    CHECK_OK(bw_barrier(grid));
    bw_grid_destroy(&grid);
}

/* A NaN in the file is found by the rank that reads it, and reported by all. */
static void check_poison(const bw_grid *grid)
{
    bw_store *store = NULL;
    bw_config config;
    bw_config_init(&config);
    bw_error_clear();
    CHECK(bw_store_open(&store, grid, source, &config, true, NULL, NULL, 0) == BW_DATA);
    CHECK(store == NULL && strstr(bw_error(), "model.layers.1.mlp.up_proj.weight holds") != NULL);
    bw_error_clear();
    bw_config_free(&config);
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    test_folder_make();
    bw_tiny tiny = BW_TINY;
    tiny.n_layer = 3, tiny.dtype = BW_BF16, tiny.tied = false;
    open_model(&tiny);
    check_every_grid(check_variants);
    close_model();
    tiny = BW_TINY;
    tiny.poison = "model.layers.1.mlp.up_proj.weight";
    open_model(&tiny);
    check_every_grid(check_poison);
    close_model();
    return check_finish("store");
}

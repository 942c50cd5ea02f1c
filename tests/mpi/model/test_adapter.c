/* test_adapter.c - an adapter's first values and its dense copies are the same bits on every grid. */
#include "factors.h"

enum { SEED = 42 };
static const bw_spec spec = {.n_layer = 3, .n_head = 4, .n_kv = 2, .head_dim = 8, .d_model = 32, .d_ff = 48, .vocab = 64};
static const unsigned mask = 1u << BW_Q | 1u << BW_K | 1u << BW_GATE | 1u << BW_DOWN;

static void check_first_values(const bw_adapter *adapter)
{
    static float A[64 * 64], B[64 * 64];
    for (int i = 0; i < spec.n_layer * BW_TARGETS; i++) {
        const bw_pair *pair = &adapter->pairs[i];
        CHECK(pair->present == (mask >> (i % BW_TARGETS) & 1));
        if (!pair->present)
            continue;
        test_dense(SEED, i, pair, A, B);
        memset(B, 0, sizeof B);
        CHECK_OK(bw_matrix_visit(&pair->A, test_same_block, A));
        CHECK_OK(bw_matrix_visit(&pair->B, test_same_block, B));
    }
}

/* The short side is cut so that no rank of a row or column is left without a part, where r allows it. */
static void check_shares(const bw_grid *grid, const bw_adapter *adapter)
{
    const bw_pair *pair = bw_adapter_pair(adapter, 0, BW_Q);
    CHECK(pair->A.layout.mb * grid->nprow >= pair->r && pair->B.layout.nb * grid->npcol >= pair->r);
    if (pair->r % grid->nprow == 0)
        CHECK(pair->A.rows == pair->r / grid->nprow);
}

static void check_lora(const bw_grid *grid, bw_adapter *adapter)
{
    static float A[64 * 64], B[64 * 64];
    bw_lora *lora = NULL;
    int next = 0;
    CHECK_OK(bw_lora_create(&lora, grid, adapter));
    test_fill(adapter, SEED);
    CHECK_OK(bw_lora_refresh(lora));
    for (int i = 0; i < spec.n_layer * BW_TARGETS; i++) {
        const int layer = i / BW_TARGETS;
        const bw_target target = (bw_target)(i % BW_TARGETS);
        const bw_pair *pair = &adapter->pairs[i];
        const bw_lora_view *view = bw_lora_at(lora, layer, target);
        CHECK((view != NULL) == pair->present && bw_lora_tensor(lora, layer, target) == (pair->present ? next : -1));
        if (!view)
            continue;
        next += 2;
        test_dense(SEED, i, pair, A, B);
        CHECK(view->r == pair->r && view->scaling == (float)pair->scaling);
        CHECK(memcmp(A, view->A, (size_t)(pair->r * pair->A.layout.n) * sizeof *A) == 0);
        CHECK(memcmp(B, view->B, (size_t)(pair->r * pair->B.layout.m) * sizeof *B) == 0);
        /* Gradients are this rank's own: writing them touches nobody's factors. */
        memset(view->dA, 1, (size_t)(pair->r * pair->A.layout.n) * sizeof *A);
        memset(view->dB, 1, (size_t)(pair->r * pair->B.layout.m) * sizeof *B);
    }
    CHECK(bw_lora_tensors(lora) == next && bw_lora_adapter(lora) == adapter);
    CHECK_OK(bw_barrier(grid));
    bw_lora_free(&lora);
}

static void check_adapter(const bw_grid *grid)
{
    static const int ranks[] = {1, 3, 4, 8};
    for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++) {
        bw_adapter *adapter = NULL;
        const int64_t r = ranks[i];
        CHECK_OK(bw_adapter_create(&adapter, grid, &spec, mask, (int)r, 16, 0.1, 5 + (int)i));
        CHECK(bw_adapter_parameters(adapter) == spec.n_layer * r * ((32 + 32) + (16 + 32) + (48 + 32) + (32 + 48)));
        bw_adapter_init(adapter, SEED);
        check_first_values(adapter);
        check_shares(grid, adapter);
        check_lora(grid, adapter);
        bw_adapter_free(&adapter);
    }
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    check_every_grid(check_adapter);
    return check_finish("adapter");
}

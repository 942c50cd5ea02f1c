/* Adapters: LoRA factors as block-cyclic matrices, their first values, and dense copies of them for kernels and folding. */
#include "model/adapter.h"
#include <math.h>
#include <string.h>

/* ---- pairs -------------------------------------------------------------------------------------------------------- */
static int share_of(int r, int ranks)
{
    return (r + ranks - 1) / ranks;
}

static bw_pair pair_outline(const bw_grid *grid, int64_t out, int64_t in, int r, double scaling, int block)
{
    return (bw_pair){.present = true,
                     .r = r,
                     .scaling = scaling,
                     .A = bw_matrix_outline(grid, BW_PIECE_F32, r, in, share_of(r, grid->nprow), block),
                     .B = bw_matrix_outline(grid, BW_PIECE_F32, out, r, block, share_of(r, grid->npcol))};
}

static int factor_create(bw_matrix *factor, const bw_grid *grid)
{
    const bw_bcyc layout = factor->layout;
    return bw_matrix_create(factor, grid, factor->type, layout.m, layout.n, layout.mb, layout.nb, "adapter");
}

int bw_pair_create(bw_pair *pair, const bw_grid *grid, int64_t out, int64_t in, int r, double scaling, int block)
{
    BW_ASSERT(r >= 1 && block >= 1);
    *pair = pair_outline(grid, out, in, r, scaling, block);
    int status = factor_create(&pair->A, grid);
    if (status == BW_OK)
        status = factor_create(&pair->B, grid);
    if (status != BW_OK)
        bw_pair_free(pair);
    return status;
}

void bw_pair_free(bw_pair *pair)
{
    if (pair->present) {
        bw_matrix_free(&pair->A);
        bw_matrix_free(&pair->B);
    }
    *pair = (bw_pair){0};
}

/* ---- adapters ----------------------------------------------------------------------------------------------------- */
int bw_adapter_blank(bw_adapter **out, int n_layer)
{
    bw_adapter *adapter;
    *out = NULL;
    BW_TRY(BW_NEW(adapter, 1, "adapter"));
    adapter->n_layer = n_layer;
    const int status = BW_NEW(adapter->pairs, (int64_t)n_layer * BW_TARGETS, "adapter");
    if (status != BW_OK)
        bw_adapter_free(&adapter);
    *out = adapter;
    return status;
}

static int check_rank(int r)
{
    return r >= 1 && r <= BW_MAX_LORA_RANK ? BW_OK : bw_fail(BW_USAGE, "a LoRA of rank %d; expected 1 to %d", r, BW_MAX_LORA_RANK);
}

int bw_adapter_outline(bw_adapter **out, const bw_grid *grid, const bw_spec *spec, unsigned mask, int r, int block)
{
    BW_TRY(check_rank(r));
    BW_TRY(bw_adapter_blank(out, spec->n_layer));
    (*out)->r = r;
    for (int i = 0; i < spec->n_layer * BW_TARGETS; i++) {
        int64_t rows, cols;
        bw_spec_shape(spec, (bw_target)(i % BW_TARGETS), &rows, &cols);
        if (mask >> i % BW_TARGETS & 1)
            (*out)->pairs[i] = pair_outline(grid, rows, cols, r, 1, block);
    }
    return BW_OK;
}

int bw_adapter_create(bw_adapter **out, const bw_grid *grid, const bw_spec *spec, unsigned mask, int r, double alpha, double dropout, int block)
{
    bw_adapter *adapter;
    int status = BW_OK;
    BW_TRY(check_rank(r));
    BW_TRY(bw_adapter_blank(&adapter, spec->n_layer));
    adapter->r = r, adapter->alpha = alpha, adapter->dropout = dropout;
    for (int i = 0; status == BW_OK && i < spec->n_layer * BW_TARGETS; i++) {
        const bw_target target = (bw_target)(i % BW_TARGETS);
        int64_t rows, cols;
        bw_spec_shape(spec, target, &rows, &cols);
        if (mask >> target & 1)
            status = bw_pair_create(&adapter->pairs[i], grid, rows, cols, r, alpha / r, block);
    }
    if (status != BW_OK)
        bw_adapter_free(&adapter);
    *out = adapter;
    return status;
}

void bw_adapter_free(bw_adapter **adapter)
{
    if (!*adapter)
        return;
    if ((*adapter)->pairs)
        for (int i = 0; i < (*adapter)->n_layer * BW_TARGETS; i++)
            bw_pair_free(&(*adapter)->pairs[i]);
    bw_free((*adapter)->pairs);
    bw_free(*adapter);
    *adapter = NULL;
}

bw_pair *bw_adapter_pair(const bw_adapter *adapter, int layer, bw_target target)
{
    bw_pair *pair = &adapter->pairs[bw_target_at(layer, target)];
    return pair->present ? pair : NULL;
}

int64_t bw_adapter_parameters(const bw_adapter *adapter)
{
    int64_t count = 0;
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++) {
        const bw_pair *pair = &adapter->pairs[i];
        if (pair->present)
            count += pair->A.layout.m * pair->A.layout.n + pair->B.layout.m * pair->B.layout.n;
    }
    return count;
}

int64_t bw_pair_floats(const bw_pair *pair)
{
    const bw_bcyc *a = &pair->A.layout, *b = &pair->B.layout;
    return pair->present ? bw_line_round(a->m * a->n) + bw_line_round(b->m * b->n) : 0;
}

int64_t bw_adapter_floats(const bw_adapter *adapter)
{
    int64_t floats = 0;
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++)
        floats += bw_pair_floats(&adapter->pairs[i]);
    return floats;
}

int64_t bw_adapter_bytes(const bw_adapter *adapter)
{
    int64_t bytes = 0;
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++)
        if (adapter->pairs[i].present)
            bytes += bw_matrix_bytes(&adapter->pairs[i].A) + bw_matrix_bytes(&adapter->pairs[i].B);
    return bytes;
}

/* ---- first values ------------------------------------------------------------------------------------------------- */
/* Entry e of A (row-major) is number e % 4 of position e / 4 of the target's stream: no rank, grid or block can show in it. */
static int init_block(void *context, const bw_matrix *A, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const bw_key *key = context;
    const float bound = (float)(1 / sqrt((double)A->layout.n));
    float *entries = block;
    for (int64_t r = 0; r < rows; r++) {
        uint32_t bits[4];
        int64_t drawn = -1;
        for (int64_t c = 0; c < cols; c++) {
            const int64_t entry = (i + r) * A->layout.n + j + c;
            if (entry / 4 != drawn)
                bw_rng(key, (uint32_t)(drawn = entry / 4), bits);
            entries[r + c * A->ld] = bound * (2 * bw_rng_uniform(bits[entry % 4]) - 1);
        }
    }
    return BW_OK;
}

void bw_adapter_init(bw_adapter *adapter, uint64_t seed)
{
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++) {
        bw_pair *pair = &adapter->pairs[i];
        if (!pair->present)
            continue;
        bw_key key = {.seed = seed, .purpose = BW_PURPOSE_INIT, .layer = (uint32_t)i};
        bw_matrix_visit_on_threads(&pair->A, 0, 1, init_block, &key);
        memset(pair->B.data, 0, (size_t)(pair->B.rows * pair->B.cols) * sizeof(float));
    }
}

/* ---- dense copies ------------------------------------------------------------------------------------------------- */
static void add_item(bw_dense *dense, const bw_matrix *piece, float **place, float **next)
{
    *place = *next;
    dense->items[dense->count++] = (bw_gather_item){.piece = piece, .dense = *place, .ld = piece->layout.n};
    *next += bw_line_round(piece->layout.m * piece->layout.n);
}

int bw_dense_create(bw_dense *dense, const bw_grid *grid, const bw_adapter *adapter, const char *purpose)
{
    const int pairs = adapter->n_layer * BW_TARGETS;
    int status;
    *dense = (bw_dense){.grid = grid, .adapter = adapter};
    BW_GO(BW_NEW(dense->A, pairs, purpose));
    BW_GO(BW_NEW(dense->B, pairs, purpose));
    BW_GO(BW_NEW(dense->items, 2 * pairs, purpose));
done:
    BW_TRY(bw_agree(grid, status));
    BW_TRY(bw_shared_create(grid, &dense->memory, bw_adapter_floats(adapter) * (int64_t)sizeof(float) + BW_LINE, purpose));
    float *next = bw_shared_floats(&dense->memory);
    for (int i = 0; i < pairs; i++)
        if (adapter->pairs[i].present) {
            add_item(dense, &adapter->pairs[i].A, &dense->A[i], &next);
            add_item(dense, &adapter->pairs[i].B, &dense->B[i], &next);
        }
    return BW_OK;
}

int bw_dense_refresh(bw_dense *dense, bw_gather *gather)
{
    BW_TRY(bw_node_sync(dense->grid));
    BW_TRY(bw_gather_start(gather, dense->items, dense->count));
    return bw_gather_finish(gather);
}

void bw_dense_free(bw_dense *dense)
{
    if (!dense->grid)
        return;
    bw_shared_free(dense->grid, &dense->memory);
    bw_free(dense->A);
    bw_free(dense->B);
    bw_free(dense->items);
    *dense = (bw_dense){0};
}

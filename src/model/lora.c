/* An adapter in training: dense copies for the kernels, shared by the node, and this rank's gradients. */
#include "model/adapter.h"

struct bw_lora {
    const bw_grid *grid;
    bw_adapter *adapter; /* borrowed */
    bw_dense dense;
    bw_gather *gather;
    bw_lora_view *views; /* [layer * BW_TARGETS + target]; r 0: absent */
    int *tensors;        /* likewise: index of the pair's A, or -1 */
    int n_tensors;
    float *gradients;
};

static int allocate(bw_lora *lora)
{
    const int pairs = lora->adapter->n_layer * BW_TARGETS;
    BW_TRY(BW_NEW(lora->views, pairs, "adapter"));
    BW_TRY(BW_NEW(lora->tensors, pairs, "adapter"));
    return BW_NEW(lora->gradients, bw_adapter_floats(lora->adapter), "gradients");
}

static void lay_out(bw_lora *lora)
{
    float *next = lora->gradients;
    for (int i = 0; i < lora->adapter->n_layer * BW_TARGETS; i++) {
        const bw_pair *pair = &lora->adapter->pairs[i];
        lora->tensors[i] = pair->present ? lora->n_tensors : -1;
        if (!pair->present)
            continue;
        lora->n_tensors += 2;
        lora->views[i] = (bw_lora_view){.r = pair->r, .scaling = (float)pair->scaling, .A = lora->dense.A[i], .B = lora->dense.B[i], .dA = next};
        lora->views[i].dB = next + bw_line_round(pair->A.layout.m * pair->A.layout.n);
        next += bw_pair_floats(pair);
    }
}

int bw_lora_create(bw_lora **out, const bw_grid *grid, bw_adapter *adapter)
{
    bw_lora *lora = NULL;
    *out = NULL;
    int status = BW_NEW(lora, 1, "adapter");
    if (status == BW_OK) {
        lora->grid = grid;
        lora->adapter = adapter;
        status = allocate(lora);
    }
    BW_GO(bw_agree(grid, status));
    BW_GO(bw_agree(grid, bw_dense_create(&lora->dense, grid, adapter, "adapter, dense")));
    lay_out(lora);
    BW_GO(bw_gather_create(&lora->gather, grid));
    BW_GO(bw_lora_refresh(lora));
    *out = lora;
    return BW_OK;
done:
    bw_lora_free(&lora);
    return status;
}

void bw_lora_free(bw_lora **lora)
{
    if (!*lora)
        return;
    bw_gather_destroy(&(*lora)->gather);
    bw_dense_free(&(*lora)->dense);
    bw_free((*lora)->views);
    bw_free((*lora)->tensors);
    bw_free((*lora)->gradients);
    bw_free(*lora);
    *lora = NULL;
}

int bw_lora_refresh(bw_lora *lora)
{
    return bw_dense_refresh(&lora->dense, lora->gather);
}

const bw_lora_view *bw_lora_at(const bw_lora *lora, int layer, bw_target target)
{
    const bw_lora_view *view = &lora->views[bw_target_at(layer, target)];
    return view->r ? view : NULL;
}

const bw_adapter *bw_lora_adapter(const bw_lora *lora)
{
    return lora->adapter;
}

int bw_lora_tensors(const bw_lora *lora)
{
    return lora->n_tensors;
}

int bw_lora_tensor(const bw_lora *lora, int layer, bw_target target)
{
    return lora->tensors[bw_target_at(layer, target)];
}

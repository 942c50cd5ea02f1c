/* model/head.c - with bf16 the head is packed once, as layers are: rounding it at each token took ten times as long as the product. */
#include "head.h"
#include "adapter.h"
#include "breakwater/num.h"

enum { PART = 4096 }; /* vocabulary rows packed as one weight: what ranks share out, and a bound for scratch */

static int64_t part_rows(const bw_spec *spec, int64_t first)
{
    return spec->vocab - first < PART ? spec->vocab - first : PART;
}

static int64_t part_offset(const bw_spec *spec, int64_t first)
{
    return first / PART * bw_weight_bytes(PART, spec->d_model, false);
}

/* The part that begins at row `first`. */
static void *part(const bw_head *head, int64_t first)
{
    return (char *)bw_shared_floats(&head->packed) + part_offset(bw_store_spec(head->store), first);
}

int bw_head_create(bw_head *head, const bw_grid *grid, const bw_store *store)
{
    const bw_spec *spec = bw_store_spec(store);
    *head = (bw_head){.store = store};
    if (bw_weight_is_dense())
        return BW_OK;
    const int64_t last = (spec->vocab - 1) / PART * PART,
                  bytes = part_offset(spec, last) + bw_weight_bytes(part_rows(spec, last), spec->d_model, false) + BW_LINE;
    BW_TRY(bw_agree(grid, bw_shared_create(grid, &head->packed, bytes, "weights, packed head")));
    for (int64_t first = grid->node_rank * PART; first < spec->vocab; first += (int64_t)grid->node_size * PART)
        bw_weight_pack(part(head, first), bw_store_head(store) + first * spec->d_model, part_rows(spec, first), spec->d_model, false);
    return bw_node_sync(grid);
}

void bw_head_free(bw_head *head, const bw_grid *grid)
{
    bw_shared_free(grid, &head->packed);
}

void bw_head_logits(const bw_head *head, int64_t rows, const float *x, float *logits)
{
    const bw_spec *spec = bw_store_spec(head->store);
    const int64_t C = spec->d_model, V = spec->vocab;
    if (!head->packed.base) {
        bw_gemm(false, true, rows, V, C, 1, x, C, bw_store_head(head->store), C, 0, logits, V);
        return;
    }
    for (int64_t first = 0; first < V; first += PART)
        bw_gemm_weight(true, rows, part_rows(spec, first), C, x, part(head, first), 0, logits + first, V);
}

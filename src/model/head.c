/* model/head.c - the head is packed once, as layers are: with bf16, rounding it at each token took ten times as long as the product. Logits are
 * looked at part by part, while they are in the cache. */
#include "head.h"
#include "adapter.h"
#include "breakwater/num.h"
#include <math.h>

enum { PART = 4096 }; /* vocabulary rows packed as one weight: what ranks share out, and a bound for scratch */

static int64_t part_rows(const bw_spec *spec, int64_t first)
{
    return spec->vocab - first < PART ? spec->vocab - first : PART;
}

static int64_t part_offset(const bw_spec *spec, int64_t first)
{
    return first / PART * bw_weight_bytes(PART, spec->d_model, BW_FORWARD);
}

/* Where the part that begins at row `first` is packed. */
static void *packed_part(const bw_head *head, int64_t first)
{
    return (char *)bw_shared_floats(&head->packed) + part_offset(bw_store_spec(head->store), first);
}

static bw_weight part(const bw_head *head, int64_t first)
{
    if (!head->packed.base)
        return (bw_weight){bw_store_head(head->store) + first * bw_store_spec(head->store)->d_model, true, BW_FORWARD};
    return (bw_weight){packed_part(head, first), false, BW_FORWARD};
}

int bw_head_create(bw_head *head, const bw_grid *grid, const bw_store *store)
{
    const bw_spec *spec = bw_store_spec(store);
    *head = (bw_head){.store = store};
    if (bw_weight_is_dense(BW_FORWARD))
        return BW_OK;
    const int64_t last = (spec->vocab - 1) / PART * PART,
                  bytes = part_offset(spec, last) + bw_weight_bytes(part_rows(spec, last), spec->d_model, BW_FORWARD) + BW_LINE;
    BW_TRY(bw_agree(grid, bw_shared_create(grid, &head->packed, bytes, "weights, packed head")));
    for (int64_t first = grid->node_rank * PART; first < spec->vocab; first += (int64_t)grid->node_size * PART)
        bw_weight_pack(packed_part(head, first), (bw_unpacked){.full = bw_store_head(store) + first * spec->d_model, .ld = spec->d_model},
                       part_rows(spec, first), spec->d_model, BW_FORWARD);
    return bw_node_sync(grid);
}

void bw_head_free(bw_head *head, const bw_grid *grid)
{
    bw_shared_free(grid, &head->packed);
}

int64_t bw_head_scratch(const bw_spec *spec, int64_t rows)
{
    return rows * part_rows(spec, 0);
}

void bw_head_choose(const bw_head *head, int64_t rows, const float *x, float *scratch, float *highest, int32_t *best)
{
    const bw_spec *spec = bw_store_spec(head->store);
    for (int64_t i = 0; i < rows; i++)
        highest[i] = -INFINITY, best[i] = 0;
    for (int64_t first = 0; first < spec->vocab; first += PART) {
        const int64_t width = part_rows(spec, first);
        bw_gemm_weight(true, rows, width, spec->d_model, bw_operand_of(x, spec->d_model), part(head, first), 0, scratch, width);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < rows; i++) {
            const int64_t found = bw_argmax(scratch + i * width, width);
            if (scratch[i * width + found] > highest[i])
                highest[i] = scratch[i * width + found], best[i] = (int32_t)(first + found);
        }
    }
}

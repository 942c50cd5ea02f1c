/* model/adapter.h - adapters from the inside, and dense copies of their factors that a node shares. Private to model/. */
#ifndef BREAKWATER_MODEL_ADAPTER_H
#define BREAKWATER_MODEL_ADAPTER_H
#include "model/family.h"

enum { BW_MAX_LORA_RANK = 1 << 14 };

int bw_adapter_blank(bw_adapter **out, int n_layer); /* no pair present */
int64_t bw_pair_floats(const bw_pair *pair);         /* of both factors, dense, each on a line's border; 0 when absent */

/* ---- dense copies: every factor of an adapter, row-major, once per node ------------------------------------------- */
typedef struct bw_dense {
    const bw_grid *grid;
    const bw_adapter *adapter; /* borrowed */
    bw_shared memory;
    float **A, **B;        /* [layer * BW_TARGETS + target], NULL where the adapter has no pair; r x in, out x r */
    bw_gather_item *items; /* pair after pair, A then B */
    int count;
} bw_dense;
/* Collective on world; the caller agrees. Contents are zero until the first refresh. */
int bw_dense_create(bw_dense *dense, const bw_grid *grid, const bw_adapter *adapter, const char *purpose);
int bw_dense_refresh(bw_dense *dense, bw_gather *gather); /* collective on world; waits until no rank of the node reads any more */
void bw_dense_free(bw_dense *dense);                      /* collective on the node */

/* Floats in shared memory, on a cache line's border at the same place for all ranks. Reserve BW_LINE bytes more than needed. */
enum { BW_LINE = 64, BW_LINE_FLOATS = 16 };
static inline float *bw_shared_floats(const bw_shared *shared)
{
    return (float *)(((uintptr_t)shared->base + BW_LINE - 1) / BW_LINE * BW_LINE);
}
static inline int64_t bw_line_round(int64_t floats)
{
    return (floats + BW_LINE_FLOATS - 1) / BW_LINE_FLOATS * BW_LINE_FLOATS;
}
#endif

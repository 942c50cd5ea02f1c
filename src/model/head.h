/* model/head.h - the head as decoding meets it: few rows times all of it, again and again. Private to model/. */
#ifndef BREAKWATER_MODEL_HEAD_H
#define BREAKWATER_MODEL_HEAD_H
#include "breakwater/model.h"

typedef struct bw_head {
    const bw_store *store;
    bw_shared packed; /* one copy a node, in parts of some vocabulary rows; empty where weights are multiplied as they are */
} bw_head;
/* Ready for bw_head_choose; the store must outlive it. Collective on world. */
int bw_head_create(bw_head *head, const bw_grid *grid, const bw_store *store);
/* Collective on the node. */
void bw_head_free(bw_head *head, const bw_grid *grid);
/* best[rows]: the token whose row of the head has the largest product with x[rows][d_model], the first of equals; highest[rows]: that product.
 * scratch: bw_head_scratch floats. Local. */
void bw_head_choose(const bw_head *head, int64_t rows, const float *x, float *scratch, float *highest, int32_t *best);
int64_t bw_head_scratch(const bw_spec *spec, int64_t rows);
#endif

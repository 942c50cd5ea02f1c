/* model/head.h - the head as decoding meets it: few rows times all of it, again and again. Private to model/. */
#ifndef BREAKWATER_MODEL_HEAD_H
#define BREAKWATER_MODEL_HEAD_H
#include "breakwater/model.h"

typedef struct bw_head {
    const bw_store *store;
    bw_shared packed; /* one copy a node, in parts of some vocabulary rows; empty where weights are multiplied as they are */
} bw_head;
/* Ready for bw_head_logits; the store must outlive it. Collective on world. */
int bw_head_create(bw_head *head, const bw_grid *grid, const bw_store *store);
/* Collective on the node. */
void bw_head_free(bw_head *head, const bw_grid *grid);
/* logits[rows][vocab] = x[rows][d_model] times the transposed head. Local. */
void bw_head_logits(const bw_head *head, int64_t rows, const float *x, float *logits);
#endif

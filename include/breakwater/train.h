/* breakwater/train.h - from a model and data to an adapter: optimizer, checkpoints, the training stage. */
#ifndef BREAKWATER_TRAIN_H
#define BREAKWATER_TRAIN_H
#include "breakwater/base.h"
#include "breakwater/model.h"
#include "breakwater/par.h"

/* ---- adamw (Loshchilov and Hutter 2019, in torch.optim.AdamW's order of operations) -------------------------------- */
typedef struct bw_adamw {
    double beta1, beta2, epsilon, weight_decay;
} bw_adamw;
/* One step on n entries: p -= lr*(m^/(sqrt(v^)+eps) + weight_decay*p). step counts from 1. Local. */
void bw_adamw_update(const bw_adamw *adamw, double lr, int64_t step, float *p, float *m, float *v, const float *gradient, int64_t n);
/* Learning rate of step 0.. of `steps`: linear warm-up over ceil(warmup*steps), then cosine, linear or constant (as in
 * transformers.get_scheduler). */
double bw_learning_rate(const char *schedule, double lr, double warmup, int64_t step, int64_t steps);

/* ---- checkpoint: everything a step depends on; format in docs/formats.md ------------------------------------------- */
typedef struct bw_state {
    bw_adapter *adapter;
    bw_matrix *moments; /* [2 * tensor + (0: m, 1: v)], tensor order of bw_lora_tensor, laid out like the factor */
    int64_t step;       /* steps done */
    int64_t micro_batches;
    int *exponents; /* of bw_reduce, one per tensor */
    int tensors;
    bw_hash model, data, buffer, config; /* fingerprints; config: only what changes the arithmetic */
    const char *redo;                    /* bw_config.redo, for messages; may be NULL */
} bw_state;
/* Of a checkpoint's file: factors and moments, and what HDF5 writes about each dataset. Local. */
double bw_checkpoint_bytes(const bw_state *state);
/* Write <folder>/step-NNNNNN.h5 (temporary, fsync, rename), then delete all but the last `keep`. Collective on world; replica 0 writes. mode as
 * bw_file_write. BW_IO: there was no room, and what was there before is whole. */
int bw_checkpoint_write(const bw_grid *grid, const bw_state *state, const bw_config *config, const char *folder, int64_t keep, unsigned mode);
/* Before the first step: can a checkpoint be made in `folder` at all? An empty file comes and goes. hints gets, on the ranks of replica 0, what
 * MPI-IO takes for it, as MPI gives it back. Fails as bw_checkpoint_write. Collective on world. */
int bw_checkpoint_try(const bw_grid *grid, const bw_state *state, const bw_config *config, const char *folder, unsigned mode, bw_text *hints);
/* Read the newest good one in `folder` (or the file `path`): a broken one is named in a warning and the one before is used.
 * *found = false when there is none. state brings the fingerprints of this run: a checkpoint of another model, data, buffer or configuration
 * is BW_CANTCREATE, with both values. Collective on world. */
int bw_checkpoint_read(const bw_grid *grid, bw_state *state, const char *folder_or_file, bool *found);
/* Delete the checkpoints in `folder` that a killed run left unfinished, or all; other files stay. Local, for the one that holds the folder. */
int bw_checkpoint_sweep(const char *folder, bool all);

/* ---- trainer: one stage, from configuration to output folder; resumes by itself. Collective on world --------------- */
/* Returns BW_OK (done, or already done), BW_STOPPED (checkpoint written, requeue), or an error that all ranks share. */
int bw_train(const bw_grid *grid, const bw_config *config);
/* Was the finished adapter in config->output made with these settings, of this model (whose tokenizer has `vocab` tokens) and of the data, buffer and
 * first adapter that lie there now? BW_CANTCREATE with the first difference. Local. */
int bw_train_compare(const bw_config *config, const bw_source *source, int32_t vocab);
#endif

/* train/output.h - a stage's output folder: whose it is, its settings, its metrics. Private to train/. */
#ifndef BREAKWATER_TRAIN_OUTPUT_H
#define BREAKWATER_TRAIN_OUTPUT_H
#include "breakwater/train.h"

typedef struct bw_output {
    const char *folder; /* borrowed */
    bw_text adapter, checkpoints, metrics, settings, report, timeline;
    FILE *log; /* metrics.jsonl, rank 0 only */
} bw_output;
int bw_output_create(bw_output *output, const char *folder);
void bw_output_free(bw_output *output);

/* Hash of the options that change the arithmetic of a training run (not of those that only say where and how fast). */
bw_hash bw_output_config_hash(const bw_config *config);
/* Rank 0: make the folder, compare its config.yaml with this configuration, write it; what a killed run left unfinished goes. BW_CANTCREATE
 * names the first option that differs, or what somebody else has there. micro_batches: in what this start would choose, out what the folder's first
 * start chose. With --resume never the settings are not compared, but written anew. */
int bw_output_claim(const bw_output *output, const bw_config *config, int64_t *micro_batches);
/* Rank 0: has this very run been finished here? state brings the fingerprints. BW_CANTCREATE when another run has. */
int bw_output_finished(const bw_output *output, const bw_config *config, const bw_state *state, bool *finished);
/* Rank 0: open metrics.jsonl for appending, without the lines of steps after `step` (they will be written again). */
int bw_output_log_open(bw_output *output, int64_t step);
/* Rank 0, --resume never: the checkpoints go, and the weights of a finished adapter. */
int bw_output_start_over(const bw_output *output);
#endif

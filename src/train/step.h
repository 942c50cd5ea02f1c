/* train/step.h - the trainer's state, shared by trainer.c (opens and closes it) and step.c (runs it). Private to train/. */
#ifndef BREAKWATER_TRAIN_STEP_H
#define BREAKWATER_TRAIN_STEP_H
#include "output.h"
#include "breakwater/data.h"

typedef struct bw_trainer {
    const bw_grid *grid;
    const bw_config *config;
    bw_source *source;
    bw_tokenizer *tokenizer;
    bw_dataset data;
    bw_plan plan;
    int64_t steps;
    bw_adapter *buffer, *adapter;
    bw_state state;
    bw_matrix **factors; /* [tensor]: A and B of every pair, in the order of bw_lora_tensor; borrowed from the adapter */
    int *bucket_of;      /* [layer]: gradients travel in a bucket a layer; -1 where nothing is trained */
    bw_store *store;
    bw_lora *lora;
    bw_transformer *transformer;
    bw_reduce *reduce;
    bw_batch batch;
    int64_t *samples; /* of the step */
    int32_t *group;   /* micro-batch of each */
    bw_output output;
    unsigned mode; /* of checkpoints: 0600 for a BufferLoRA */
    bool resumed;
    double opened;                  /* when this stage began */
    bw_event_sum before[BW_EVENTS]; /* what earlier stages of a pipeline had spent by then */
} bw_trainer;

/* Steps until the last one (BW_OK) or a request to stop (BW_STOPPED, after a checkpoint). Collective on world. */
int bw_trainer_run(bw_trainer *trainer);
void bw_trainer_report_begin(bw_trainer *trainer); /* what was spent before this stage is not its own. Local */
/* Where the time of this stage went, a row per event: printed, and in report.txt, there with the peak of each purpose of memory. Collective on
 * world. */
int bw_trainer_report(const bw_trainer *trainer);
#endif

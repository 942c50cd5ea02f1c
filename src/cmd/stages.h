/* The stages of a pipeline as other programs need them: which belong to the provider, which to each customer, and what is done. */
#ifndef BREAKWATER_CMD_STAGES_H
#define BREAKWATER_CMD_STAGES_H
#include "breakwater/base.h"

/* selected[i]: --only (NULL: everything) names stage i. BW_USAGE for a name that no stage has. */
int bw_stages_select(const bw_pipeline *pipeline, const char *only, bool *selected);
typedef enum bw_stage_state {
    BW_STAGE_OPEN,
    BW_STAGE_STALE, /* there is a result, of other settings or inputs than the pipeline gives now, or made from a stage that is not done */
    BW_STAGE_DONE,
    BW_STAGE_UNFIT /* an evaluation that is done, and misses --max-hs or --min-fa */
} bw_stage_state;
/* The state of every stage. What makes one stale is said in a warning, at the first stage that it concerns. Without MPI. */
int bw_stages_judge(const bw_pipeline *pipeline, bw_stage_state *states);
/* A line a stage: customer (0: the provider's), command, name, done, unfit, stale or open. A customer begins with a stage that trains on customer
 * data (user, sft), and is all that refers to it, however far. BW_USAGE where a stage refers to two customers; after the list BW_NOINPUT where an
 * input is missing. */
int bw_stages_print(const bw_pipeline *pipeline);
#endif

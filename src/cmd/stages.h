/* The stages of a pipeline as other programs need them: which belong to the provider, which to each customer, and what is done. */
#ifndef BREAKWATER_CMD_STAGES_H
#define BREAKWATER_CMD_STAGES_H
#include "breakwater/base.h"

/* selected[i]: --only (NULL: everything) names stage i. BW_USAGE for a name that no stage has. */
int bw_stages_select(const bw_pipeline *pipeline, const char *only, bool *selected);
/* A line a stage: customer (0: the provider's), command, name, done or open. A customer begins with a stage that trains on customer data (user, sft),
 * and is all that refers to it, however far. BW_USAGE where a stage refers to two customers. */
int bw_stages_print(const bw_pipeline *pipeline);
#endif

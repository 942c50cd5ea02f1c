/* What commands that compute share: threads, the grid, a line that says on what they run. */
#ifndef BREAKWATER_CMD_SESSION_H
#define BREAKWATER_CMD_SESSION_H
#include "breakwater/par.h"

typedef int (*bw_stage_work)(const bw_grid *grid, const bw_config *config);
/* Choose the arithmetic, once per process. Collective on world. */
int bw_session_start(const bw_config *config);
/* Rank 0 holds the folder for the whole job, so that no second one writes to it; the others get the same answer. Collective on world. */
int bw_session_lock(const bw_grid *grid, bw_lock *lock, const char *folder);
/* Told on rank 0 how long the work took, unless it failed, while the folder is still held. */
typedef void (*bw_time_keeper)(const char *folder, double seconds);
/* With --precision auto, a folder that was begun goes on as it began: "fp32" or "bf16", else what `config` says. Local. */
int bw_session_precision(const bw_config *config, char precision[8]);
/* Open the grid that `config` names, hold its output folder, settle the precision of the products on all ranks (the work sees it instead of auto),
 * do the work of `command`, close. `keep_time` may be NULL. Collective on world. */
int bw_session_work(const bw_config *config, bw_command command, bw_stage_work work, bw_time_keeper keep_time);
#endif

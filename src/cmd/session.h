/* What commands that compute share: threads, the grid, a line that says on what they run. */
#ifndef BREAKWATER_CMD_SESSION_H
#define BREAKWATER_CMD_SESSION_H
#include "breakwater/par.h"

typedef int (*bw_stage_work)(const bw_grid *grid, const bw_config *config);
/* Choose the arithmetic once per process. Local; the same on every rank. */
int bw_session_start(const bw_config *config);
/* Open the grid that `config` names, do the work, close. Collective on world. */
int bw_session_work(const bw_config *config, bw_stage_work work);
#endif

/* One function per command, each in src/cmd/<name>.c. main.c has read and checked the command line before MPI was
 * started, has started MPI where the command's row says so, and prints bw_error() after a failure: a command opens the
 * grid, calls the library, closes, and returns the status that all ranks agreed on. Collective on world. */
#ifndef BREAKWATER_CMD_COMMANDS_H
#define BREAKWATER_CMD_COMMANDS_H
#include "breakwater/base.h"

int bw_cmd_run(const bw_pipeline *pipeline); /* stages hold their whole, resolved configuration; `@name` is resolved */
int bw_cmd_train(const bw_config *config);
int bw_cmd_merge(const bw_config *config);
int bw_cmd_eval(const bw_config *config);

/* Without MPI. */
int bw_cmd_inspect(const bw_config *config);
int bw_cmd_verify(const bw_config *config);

#endif

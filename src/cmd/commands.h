/* One function per command, each in src/cmd/<name>.c. main.c has read and checked the command line before MPI was
 * started, has started MPI where the command's row says so, and prints bw_error() after a failure: a command opens the
 * grid, calls the library, closes, and returns the status that all ranks agreed on. Collective on world. */
#ifndef BREAKWATER_CMD_COMMANDS_H
#define BREAKWATER_CMD_COMMANDS_H
#include "breakwater/base.h"

/* Stages hold their whole, resolved configuration; `@name` is resolved. With --show MPI is not started. */
int bw_cmd_run(const bw_pipeline *pipeline);
int bw_cmd_train(const bw_config *config);
int bw_cmd_merge(const bw_config *config);
int bw_cmd_eval(const bw_config *config);
int bw_cmd_bench(const bw_config *config);

/* Without MPI. */
int bw_cmd_inspect(const bw_config *config);
int bw_cmd_verify(const bw_config *config);
int bw_cmd_plan(const bw_config *config);

/* The table of commands, in main.c: it serves the command line, the help, the man pages and the completion. */
typedef struct bw_command_row {
    const char *name;
    bw_command id;
    const char *group;
    int (*run)(const bw_config *config);
    int (*run_pipeline)(const bw_pipeline *pipeline); /* instead of run: the command works on a file of stages */
    bool needs_mpi;
    const char *usage, *help;
    const char *about, *example; /* for the man page: what it reads and leaves behind; a command line without the launcher */
} bw_command_row;
extern const bw_command_row bw_commands[];
extern const int bw_command_count;

void bw_help(void);                              /* of the program, on stdout */
void bw_help_command(const bw_command_row *row); /* of one command, on stdout */

/* What `breakwater --write-manual FOLDER` does: the man pages (breakwater.1, and breakwater-NAME.1 of each command) and the
 * completion (breakwater.bash). The build calls it; nobody writes those files by hand. */
int bw_manual_write(const char *folder);
/* The completion for bash, appended to `out`. */
int bw_completion(bw_text *out);

/* What the exit codes mean: `code` is 0 in the first row, and `meaning` is NULL after the last. */
typedef struct bw_exit_code {
    int code;
    const char *meaning;
} bw_exit_code;
extern const bw_exit_code bw_exit_codes[];
#define BW_PROGRAM_HELP "fine-tuning that keeps a model safe, as an MPI batch job"

#endif

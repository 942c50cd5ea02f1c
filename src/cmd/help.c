/* What `breakwater --help` and `breakwater COMMAND --help` print, from the tables of commands, options and exit codes. */
#include "cmd/commands.h"
#include <string.h>

const bw_exit_code bw_exit_codes[] = {
    {BW_OK, "done"},
    {BW_USAGE, "the command line or the configuration is wrong"},
    {BW_DATA, "the content of a file is wrong"},
    {BW_NOINPUT, "a file is missing or unreadable"},
    {BW_BUG, "a fault of the program"},
    {BW_SYSTEM, "out of memory, no shared memory, or MPI failed"},
    {BW_CANTCREATE, "an output cannot be created, belongs to another run, or another job is at work in it"},
    {BW_IO, "reading or writing broke off, as on a full disk"},
    {BW_STOPPED, "stopped by a signal or the wall clock: run the same command again to go on"},
    {BW_UNFIT, "evaluated, and not fit to leave: a figure misses --max-hs or --min-fa"},
    {0, NULL},
};

void bw_help(void)
{
    puts("breakwater: " BW_PROGRAM_HELP " (Buffer-and-Reinforce, arXiv 2605.24550)\n\n"
         "  breakwater COMMAND [--option value ...]\n"
         "  mpirun -n RANKS breakwater COMMAND [--option value ...]");
    for (int i = 0; i < bw_command_count; i++) {
        if (i == 0 || strcmp(bw_commands[i].group, bw_commands[i - 1].group))
            printf("\n%s\n", bw_commands[i].group);
        printf("  %-10s %s\n", bw_commands[i].name, bw_commands[i].help);
    }
    puts("\n'breakwater COMMAND --help' lists the options of a command, 'breakwater --version' what it was built with and runs on.\n\nExit codes");
    for (const bw_exit_code *row = bw_exit_codes; row->meaning; row++)
        printf("  %-10d %s\n", row->code, row->meaning);
}

void bw_help_command(const bw_command_row *row)
{
    printf("breakwater %s %s\n\n%s\n", row->name, row->usage, row->help);
    bw_config_help(row->id, stdout);
}

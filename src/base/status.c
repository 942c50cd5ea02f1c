/* The first message of a failure, log lines, and the progress line. */
#include "breakwater/base.h"
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double terminal_interval = 1, file_interval = 10; /* seconds between progress lines */

static char message[BW_ERROR_BYTES];
static atomic_bool message_taken; /* threads of a rank may fail at the same time: one of them speaks */
static int log_rank;
static bool quiet;
static bool progress_open; /* the cursor is at the end of a progress line */
static double progress_last = -1e9;
static char progress_held[256]; /* the newest progress line, where it is not printed yet */

/* Names from hostile files end up in messages: keep them one line and harmless to a terminal. */
static void make_printable(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = (*text == '\n' || *text == '\t') ? ' ' : '?';
}

int bw_fail(int status, const char *format, ...)
{
    if (atomic_exchange(&message_taken, true))
        return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    make_printable(message);
    return status;
}

const char *bw_error(void)
{
    return message;
}

void bw_error_clear(void)
{
    message[0] = 0;
    atomic_store(&message_taken, false);
}

void bw_error_take(char taken[BW_ERROR_BYTES])
{
    memcpy(taken, message, BW_ERROR_BYTES);
    bw_error_clear();
}

int bw_create_status(int error)
{
    return error == ENOSPC || error == EDQUOT ? BW_IO : BW_CANTCREATE;
}

/* Launchers say in the environment who is first: before MPI is up one rank should speak for all. */
int bw_launched_rank(void)
{
    static const char *const variables[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        const char *value = getenv(variables[i]);
        if (value)
            return atoi(value);
    }
    return -1;
}

void bw_log_rank(int rank)
{
    log_rank = rank;
}

void bw_log_quiet(bool no_progress)
{
    quiet = no_progress;
}

/* ---- progress ----------------------------------------------------------------------------------------------------- */

/* Launchers give a rank a terminal of their own making, whatever their output goes to: only where none is at work a terminal is one. */
static bool on_terminal(void)
{
    return bw_launched_rank() < 0 && isatty(STDOUT_FILENO);
}

static void print_progress(void)
{
    bool terminal = on_terminal();
    printf(terminal ? "\r%s\033[K" : "%s\n", progress_held);
    progress_held[0] = 0;
    progress_open = terminal;
    progress_last = bw_now();
    fflush(stdout);
}

void bw_progress(const char *format, ...)
{
    if (log_rank != 0 || quiet)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(progress_held, sizeof progress_held, format, arguments);
    va_end(arguments);
    if (bw_now() - progress_last >= (on_terminal() ? terminal_interval : file_interval))
        print_progress();
}

static void end_progress(void)
{
    if (*progress_held)
        print_progress();
    if (progress_open)
        fputc('\n', stdout);
    progress_open = false;
    fflush(stdout);
}

/* ---- lines -------------------------------------------------------------------------------------------------------- */

void bw_info(const char *format, ...)
{
    if (log_rank != 0)
        return;
    end_progress();
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    fputc('\n', stdout);
    fflush(stdout);
}

void bw_warn(const char *format, ...)
{
    char line[BW_ERROR_BYTES];
    if (log_rank != 0)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    make_printable(line);
    end_progress();
    fprintf(stderr, "breakwater: warning: %s\n", line);
}

void bw_log_error(void)
{
    if (log_rank != 0)
        return;
    end_progress();
    fprintf(stderr, "breakwater: error: %s\n", *message ? message : "failed without a message");
}

/* The first message of a failure, log lines, and the progress line. */
#include "breakwater/base.h"
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 2048 };
static const double progress_interval = 10; /* seconds between progress lines where stdout is not a terminal */

static char message[MESSAGE_BYTES];
static atomic_bool message_taken; /* threads of a rank may fail at the same time: one of them speaks */
static int log_rank;
static bool quiet;
static bool progress_open; /* the cursor is at the end of a progress line */
static double progress_last = -1e9;

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

void bw_log_rank(int rank)
{
    log_rank = rank;
}

void bw_log_quiet(bool no_progress)
{
    quiet = no_progress;
}

static void end_progress(void)
{
    if (progress_open)
        fputc('\n', stdout);
    progress_open = false;
    fflush(stdout);
}

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

static void warn_line(const char *format, va_list arguments)
{
    char line[MESSAGE_BYTES];
    vsnprintf(line, sizeof line, format, arguments);
    make_printable(line);
    end_progress();
    fprintf(stderr, "breakwater: warning: %s\n", line);
}

void bw_warn(const char *format, ...)
{
    if (log_rank != 0)
        return;
    va_list arguments;
    va_start(arguments, format);
    warn_line(format, arguments);
    va_end(arguments);
}

void bw_warn_here(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    warn_line(format, arguments);
    va_end(arguments);
}

void bw_progress(const char *format, ...)
{
    if (log_rank != 0 || quiet)
        return;
    bool terminal = isatty(STDOUT_FILENO);
    if (!terminal && bw_now() - progress_last < progress_interval)
        return;
    progress_last = bw_now();
    va_list arguments;
    va_start(arguments, format);
    if (terminal)
        fputs("\r", stdout);
    vprintf(format, arguments);
    va_end(arguments);
    fputs(terminal ? "\033[K" : "\n", stdout);
    progress_open = terminal;
    fflush(stdout);
}

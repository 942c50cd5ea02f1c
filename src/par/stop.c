/* stop.c - what asks a job to stop: signals, and the end of its time. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include "breakwater/par.h"

/* ---- signals ------------------------------------------------------------------------------------------------------ */
static volatile sig_atomic_t stop_requested;
static volatile sig_atomic_t first_term; /* second of the monotonic clock at which the first SIGTERM came, 0: none yet */

/* SIGUSR1 asks; SIGTERM and SIGINT (a Ctrl-C that no mpirun takes for itself) ask, and the second one insists. Slurm sends SIGTERM twice in a row at
 * the time limit, and that pair is one request: only a SIGTERM that comes later is the second. */
static void on_signal(int number)
{
    stop_requested = 1;
    if (number == SIGUSR1)
        return;
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (first_term == 0)
        first_term = (sig_atomic_t)(now.tv_sec + 1);
    else if (now.tv_sec > first_term)
        _exit(128 + number);
}

void bw_stop_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
}

bool bw_stop_requested(void)
{
    return stop_requested != 0;
}

/* ---- time --------------------------------------------------------------------------------------------------------- */
static const double margin = 1.5; /* the next round may take longer than the longest so far */

static const double stale = 600; /* a job may be let run past its end for a while, but none is started that long after it */

/* Until the end of the job as Slurm tells it. What somebody's shell hands down from another job must not stop this one. */
static double slurm_seconds_left(void)
{
    static bool warned;
    const char *text = getenv("SLURM_JOB_END_TIME");
    char *rest = NULL;
    if (!text || !*text)
        return INFINITY;
    double now = (double)time(NULL), end = strtod(text, &rest);
    if (!*rest && isfinite(end) && end >= now - bw_uptime() - stale)
        return end - now;
    if (!warned)
        bw_warn("SLURM_JOB_END_TIME is '%s', which is not the end of this job in seconds since 1970: it is ignored", text);
    warned = true;
    return INFINITY;
}

bw_stop bw_stop_wanted(double minutes, double seconds)
{
    if (bw_stop_requested())
        return BW_STOP_SIGNAL;
    if (minutes > 0 && minutes * 60 - bw_uptime() < margin * seconds) /* counts loading and earlier stages of a pipeline too */
        return BW_STOP_TIME_LIMIT;
    return slurm_seconds_left() < margin * seconds ? BW_STOP_SLURM : BW_STOP_NONE;
}

const char *bw_stop_reason(bw_stop stop)
{
    static const char *const reasons[] = {"no reason", "a signal", "--time-limit", "the end of the Slurm job"};
    return reasons[stop];
}

bw_rounds bw_rounds_begin(double minutes)
{
    return (bw_rounds){.minutes = minutes, .began = bw_now()};
}

int bw_rounds_next(bw_rounds *rounds, const char *what, int64_t done, int64_t of)
{
    double now = bw_now();
    rounds->longest = fmax(rounds->longest, now - rounds->began);
    rounds->began = now;
    bw_stop stop = done < of ? bw_stop_wanted(rounds->minutes, rounds->longest) : BW_STOP_NONE;
    if (stop == BW_STOP_NONE)
        return BW_OK;
    return bw_fail(BW_STOPPED, "%s: stopped after %lld of %lld (%s)", what, (long long)done, (long long)of, bw_stop_reason(stop));
}

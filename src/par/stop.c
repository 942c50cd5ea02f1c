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

/* Slurm sends SIGTERM twice in a row at the time limit, and that pair is one request: only a SIGTERM that comes later is the second. */
static void on_signal(int number)
{
    stop_requested = 1;
    if (number != SIGTERM)
        return;
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (first_term == 0)
        first_term = (sig_atomic_t)(now.tv_sec + 1);
    else if (now.tv_sec > first_term)
        _exit(128 + SIGTERM);
}

void bw_grid_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool bw_grid_stop_requested(void)
{
    return stop_requested != 0;
}

/* ---- time --------------------------------------------------------------------------------------------------------- */
static const double margin = 1.5; /* the next round may take longer than the longest so far */

/* Of --time-limit, which counts loading and earlier stages of a pipeline too, and of the job as Slurm tells it. */
static double seconds_left(double minutes)
{
    double left = minutes > 0 ? minutes * 60 - bw_uptime() : INFINITY;
    const char *end = getenv("SLURM_JOB_END_TIME");
    return end && *end ? fmin(left, strtod(end, NULL) - (double)time(NULL)) : left;
}

bool bw_stop_wanted(double minutes, double seconds)
{
    return bw_grid_stop_requested() || seconds_left(minutes) < margin * seconds;
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
    if (done >= of || !bw_stop_wanted(rounds->minutes, rounds->longest))
        return BW_OK;
    return bw_fail(BW_STOPPED, "%s: stopped after %lld of %lld", what, (long long)done, (long long)of);
}

/* h5_watch.c - one rank fails inside HDF5 or MPI-IO, and the others wait for it.
 *
 * An error is told to the rank that met it, where it is told at all. The others may still be in the collective call that it has left, so that nobody
 * comes to agree on the failure. Whoever knows of one gives the others a while and leaves; that a rank has failed ends the job under every launcher.
 */
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include "io/h5_inside.h"

/* Seconds. AFTER_FAILURE: for what the other ranks have begun. CLOSING: for HDF5's own tables, which are small; a file system may be away for minutes
 * while it fails over. APART: a rank that is silent leaves after the one that speaks. */
enum { AFTER_FAILURE = 30, CLOSING = 600, APART = 5 };

static char message[2600]; /* what leave() says; composed before, for a signal handler must not */
static bool watching;

static void leave(int number)
{
    (void)number;
    (void)!write(STDERR_FILENO, message, strlen(message));
    _exit(BW_IO);
}

static void watch(unsigned seconds, bool speaks, const char *why)
{
    alarm(0);
    message[0] = '\0';
    if (speaks)
        snprintf(message, sizeof message, "breakwater: error: %s; ranks wait for one another in MPI-IO, and the job ends here\n", why);
    signal(SIGALRM, leave);
    alarm(speaks ? seconds : seconds + APART);
    watching = true;
}

void bw_h5_watch_failure(bool speaks)
{
    watch(AFTER_FAILURE, speaks, bw_error());
}

void bw_h5_watch_closing(const char *path, bool speaks)
{
    char why[1200];
    snprintf(why, sizeof why, "%.1000s: not closed within %d minutes", path, CLOSING / 60);
    if (!watching) /* what has failed already is waited for less long */
        watch(CLOSING, speaks, why);
}

void bw_h5_watch_over(void)
{
    alarm(0);
    watching = false;
}

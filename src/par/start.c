/* start.c - MPI up and down, versions, and the signals that ask a job to stop. */
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "par/comms.h"

int bw_mpi_check(int code, const char *call)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    if (code == MPI_SUCCESS)
        return BW_OK;
    MPI_Error_string(code, text, &length);
    return bw_fail(BW_SYSTEM, "%.*s failed: %.*s", (int)strcspn(call, "("), call, length, text);
}

int bw_par_start(int *argc, char ***argv)
{
    int provided = MPI_THREAD_SINGLE;
    BW_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
    BW_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    BW_MPI(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN));
    if (provided < MPI_THREAD_FUNNELED)
        return bw_fail(BW_SYSTEM,
                       "MPI allows no threads beside it (level %d, MPI_THREAD_FUNNELED is %d); use an MPI library built with thread support",
                       provided, MPI_THREAD_FUNNELED);
    bw_log_rank(bw_par_rank());
    return BW_OK;
}

static bool running(void)
{
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    MPI_Finalized(&ended);
    return started && !ended;
}

void bw_par_finish(void)
{
    if (!running())
        return;
    bw_blacs_finish();
    MPI_Finalize();
}

int bw_par_rank(void)
{
    int rank = 0;
    if (running())
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

int bw_par_size(void)
{
    int size = 1;
    if (running())
        MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

int bw_par_local_size(void)
{
    MPI_Comm node = MPI_COMM_NULL;
    int size = 1;
    if (!running() || MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node) != MPI_SUCCESS)
        return 1;
    MPI_Comm_size(node, &size);
    MPI_Comm_free(&node);
    return size;
}

const char *bw_par_version(void)
{
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    MPI_Get_library_version(text, &length);
    text[strcspn(text, ",\n")] = '\0'; /* the rest is the packager's build line */
    return text;
}

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

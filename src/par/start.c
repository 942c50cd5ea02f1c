/* start.c - MPI up and down, agreement before there is a grid, versions. */
#include <string.h>
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

int bw_par_agree(int status)
{
    int failing = status != BW_OK, all = failing, size = bw_par_size();
    if (!running())
        return status;
    BW_MPI(MPI_Allreduce(&failing, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD));
    if (failing && all < size) {
        char node[MPI_MAX_PROCESSOR_NAME] = "", message[BW_ERROR_BYTES];
        int length = 0;
        MPI_Get_processor_name(node, &length);
        bw_error_take(message);
        bw_fail(status, "rank %d of %d, on %s: %s", bw_par_rank(), size, node, message);
    }
    return bw_agree_on(MPI_COMM_WORLD, status);
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

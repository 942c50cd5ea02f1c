/* collect.c - agreement and the small exchanges between all ranks. */
#include <string.h>
#include "par/comms.h"

/* Every rank takes over the failing rank's message, so that whoever speaks says the same. */
static int share_message(MPI_Comm comm, int status, int from)
{
    char message[BW_ERROR_BYTES];
    bw_error_take(message);
    BW_MPI(MPI_Bcast(message, sizeof message, MPI_CHAR, from, comm));
    return bw_fail(status, "%s", message);
}

/* A stop and an unfit model are outcomes, not failures: they count below every failure, which they must not hide. */
static int severity_of(int status)
{
    return status >= BW_STOPPED ? status - BW_STOPPED + 1 : status;
}

static int status_of(int severity)
{
    return severity > BW_OK && severity < BW_USAGE ? severity + BW_STOPPED - 1 : severity;
}

int bw_agree_on(MPI_Comm comm, int status)
{
    struct {
        int severity, rank;
    } mine = {.severity = severity_of(status)}, worst;
    BW_MPI(MPI_Comm_rank(comm, &mine.rank));
    worst = mine;
    /* MPI_MAXLOC takes the lowest rank among equals. */
    BW_MPI(MPI_Allreduce(&mine, &worst, 1, MPI_2INT, MPI_MAXLOC, comm));
    if (worst.severity == BW_OK)
        return BW_OK;
    return share_message(comm, status_of(worst.severity), worst.rank);
}

int bw_agree(const bw_grid *grid, int status)
{
    return bw_agree_on(grid->comms->world, status);
}

int bw_barrier(const bw_grid *grid)
{
    BW_MPI(MPI_Barrier(grid->comms->world));
    return BW_OK;
}

static int part(int64_t left)
{
    return (int)(left < BW_MESSAGE_BYTES ? left : BW_MESSAGE_BYTES);
}

int bw_broadcast(const bw_grid *grid, void *bytes, int64_t count)
{
    for (int64_t done = 0; done < count; done += part(count - done))
        BW_MPI(MPI_Bcast((char *)bytes + done, part(count - done), MPI_BYTE, 0, grid->comms->world));
    return BW_OK;
}

int bw_sum_ints(const bw_grid *grid, int64_t *values, int count)
{
    BW_MPI(MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_INT64_T, MPI_SUM, grid->comms->world));
    return BW_OK;
}

int bw_max_ints(const bw_grid *grid, int64_t *values, int count)
{
    BW_MPI(MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_INT64_T, MPI_MAX, grid->comms->world));
    return BW_OK;
}

int bw_min_max(const bw_grid *grid, double value, double *min, double *max)
{
    double pair[2] = {-value, value}; /* the minimum is the maximum of the negated values: one exchange */
    BW_MPI(MPI_Allreduce(MPI_IN_PLACE, pair, 2, MPI_DOUBLE, MPI_MAX, grid->comms->world));
    *min = -pair[0];
    *max = pair[1];
    return BW_OK;
}

/* ---- collect ------------------------------------------------------------------------------------------------------ */
static int send_all(const bw_grid *grid, const char *bytes, int64_t count)
{
    for (int64_t done = 0; done < count; done += part(count - done))
        BW_MPI(MPI_Send(bytes + done, part(count - done), MPI_BYTE, 0, 0, grid->comms->world));
    return BW_OK;
}

static int receive_all(const bw_grid *grid, int from, char *bytes, int64_t count)
{
    for (int64_t done = 0; done < count; done += part(count - done))
        BW_MPI(MPI_Recv(bytes + done, part(count - done), MPI_BYTE, from, 0, grid->comms->world, MPI_STATUS_IGNORE));
    return BW_OK;
}

int bw_collect(const bw_grid *grid, const void *mine, int64_t count, char **all, int64_t *offsets)
{
    int64_t *ends = NULL; /* [size]: every rank's count, then where each rank's bytes end */
    char *bytes = NULL;
    int status = BW_NEW(ends, grid->size, "collect");
    BW_GO(bw_agree(grid, status));
    BW_GO(bw_mpi_check(MPI_Allgather(&count, 1, MPI_INT64_T, ends, 1, MPI_INT64_T, grid->comms->world), "MPI_Allgather"));
    for (int rank = 1; rank < grid->size; rank++)
        ends[rank] += ends[rank - 1];
    if (grid->rank == 0)
        status = BW_NEW(bytes, ends[grid->size - 1], "collect");
    BW_GO(bw_agree(grid, status));
    if (grid->rank != 0)
        BW_GO(send_all(grid, mine, count));
    else if (count > 0)
        memcpy(bytes, mine, (size_t)count);
    for (int rank = 1; grid->rank == 0 && rank < grid->size; rank++)
        BW_GO(receive_all(grid, rank, bytes + ends[rank - 1], ends[rank] - ends[rank - 1]));
    if (grid->rank == 0) {
        offsets[0] = 0;
        memcpy(offsets + 1, ends, sizeof *ends * (size_t)grid->size);
    }
done:
    if (status != BW_OK) {
        bw_free(bytes);
        bytes = NULL;
    }
    bw_free(ends);
    *all = bytes;
    return status;
}

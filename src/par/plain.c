/* plain.c - what MPI does by itself with the same bytes: limits for the benchmark. */
#include "par/comms.h"

int bw_plain_sum(const bw_grid *grid, float *values, int64_t count)
{
    const int64_t most = BW_MESSAGE_BYTES / (int64_t)sizeof(float);
    for (int64_t done = 0; done < count; done += most) {
        int part = (int)(count - done < most ? count - done : most);
        BW_MPI(MPI_Allreduce(MPI_IN_PLACE, values + done, part, MPI_FLOAT, MPI_SUM, grid->comms->world));
    }
    return BW_OK;
}

static int write_share(const bw_grid *grid, MPI_File file, const void *mine, int64_t bytes)
{
    int place;
    BW_ASSERT(bytes <= BW_MESSAGE_BYTES);
    BW_MPI(MPI_Comm_rank(grid->comms->grid, &place));
    BW_MPI(MPI_File_write_at_all(file, (MPI_Offset)bytes * place, mine, (int)bytes, MPI_BYTE, MPI_STATUS_IGNORE));
    BW_MPI(MPI_File_sync(file));
    return BW_OK;
}

static int write_file(const bw_grid *grid, const char *path, const void *mine, int64_t bytes)
{
    MPI_File file;
    BW_TRY(bw_mpi_check(MPI_File_open(grid->comms->grid, path, MPI_MODE_CREATE | MPI_MODE_WRONLY, MPI_INFO_NULL, &file), path));
    int status = write_share(grid, file, mine, bytes);
    int closed = bw_mpi_check(MPI_File_close(&file), path);
    return status == BW_OK ? closed : status;
}

int bw_plain_write(const bw_grid *grid, const char *path, const void *mine, int64_t bytes)
{
    return bw_agree(grid, grid->replica == 0 ? write_file(grid, path, mine, bytes) : BW_OK);
}

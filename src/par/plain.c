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

typedef struct share { /* of a file, which the ranks of a grid hold one after another */
    char *bytes;
    int64_t count;
    bool write;
} share;

/* All shares are equal, so all ranks make as many collective calls. */
static int move_share(const bw_grid *grid, MPI_File file, const share *mine)
{
    int place;
    BW_MPI(MPI_Comm_rank(grid->comms->grid, &place));
    for (int64_t done = 0; done < mine->count; done += BW_MESSAGE_BYTES) {
        const int part = (int)(mine->count - done < BW_MESSAGE_BYTES ? mine->count - done : BW_MESSAGE_BYTES);
        const MPI_Offset at = (MPI_Offset)(mine->count * place + done);
        if (mine->write)
            BW_MPI(MPI_File_write_at_all(file, at, mine->bytes + done, part, MPI_BYTE, MPI_STATUS_IGNORE));
        else
            BW_MPI(MPI_File_read_at_all(file, at, mine->bytes + done, part, MPI_BYTE, MPI_STATUS_IGNORE));
    }
    return mine->write ? bw_mpi_check(MPI_File_sync(file), "MPI_File_sync") : BW_OK;
}

static int move_file(const bw_grid *grid, const char *path, const share *mine)
{
    MPI_File file;
    const int mode = mine->write ? MPI_MODE_CREATE | MPI_MODE_WRONLY : MPI_MODE_RDONLY;
    BW_TRY(bw_mpi_check(MPI_File_open(grid->comms->grid, path, mode, MPI_INFO_NULL, &file), path));
    int status = move_share(grid, file, mine);
    int closed = bw_mpi_check(MPI_File_close(&file), path);
    return status == BW_OK ? closed : status;
}

int bw_plain_write(const bw_grid *grid, const char *path, char *mine, int64_t bytes)
{
    const share share = {mine, bytes, true};
    return bw_agree(grid, grid->replica == 0 ? move_file(grid, path, &share) : BW_OK);
}

int bw_plain_read(const bw_grid *grid, const char *path, char *mine, int64_t bytes)
{
    const share share = {mine, bytes, false};
    return bw_agree(grid, grid->replica == 0 ? move_file(grid, path, &share) : BW_OK);
}

/* shared.c - memory that the ranks of a node share. */
#include <stdatomic.h>
#include <string.h>
#include <sys/statvfs.h>
#include "par/comms.h"

typedef struct window {
    MPI_Win handle;
    char purpose[64];
} window;

/* Each rank clears its share, so that the work and the pages are spread over the node. */
static void clear_share(const bw_grid *grid, const bw_shared *shared)
{
    int64_t from = shared->bytes * grid->node_rank / grid->node_size, to = shared->bytes * (grid->node_rank + 1) / grid->node_size;
    bw_mem_clear((char *)shared->base + from, to - from);
}

/* Open MPI hangs all ranks but one where the memory for a window runs out, so it is asked for beforehand; 5 % is what Open MPI keeps free.
 * One rank alone gets ordinary memory. */
static int check_room(const bw_grid *grid, const bw_shared *shared, const char *purpose)
{
    struct statvfs room;
    if (grid->node_size == 1 || statvfs("/dev/shm", &room) != 0)
        return BW_OK;
    double available = (double)room.f_bavail * (double)room.f_frsize, needed = 1.05 * (double)shared->bytes + 1048576;
    if (needed <= available)
        return BW_OK;
    return bw_fail(BW_SYSTEM,
                   "%.1f MiB of shared memory for %s do not fit /dev/shm of node %d, which has %.1f MiB free: enlarge it, use more nodes, or need "
                   "less with --weights stream",
                   needed / 1048576, purpose, grid->node, available / 1048576);
}

static int allocate(const bw_grid *grid, bw_shared *shared, window *window)
{
    MPI_Aint own = grid->node_rank == 0 ? (MPI_Aint)shared->bytes : 0, whole = 0;
    void *mine = NULL;
    int unit = 1;
    if (MPI_Win_allocate_shared(own, 1, MPI_INFO_NULL, grid->comms->node, &mine, &window->handle) != MPI_SUCCESS)
        return bw_fail(BW_SYSTEM, "no %.1f MiB of shared memory for %s on node %d: enlarge /dev/shm, use more nodes, or need less (--weights stream)",
                       (double)shared->bytes / 1048576.0, window->purpose, grid->node);
    BW_MPI(MPI_Win_shared_query(window->handle, 0, &whole, &unit, &shared->base));
    BW_ASSERT((int64_t)whole >= shared->bytes);
    return BW_OK;
}

int bw_shared_create(const bw_grid *grid, bw_shared *shared, int64_t bytes, const char *purpose)
{
    window *window = NULL;
    int status;
    *shared = (bw_shared){.bytes = bytes > 0 ? bytes : 1};
    BW_GO(bw_agree_on(grid->comms->node, BW_NEW(window, 1, "shared")));
    BW_GO(bw_agree_on(grid->comms->node, check_room(grid, shared, purpose)));
    window->handle = MPI_WIN_NULL;
    snprintf(window->purpose, sizeof window->purpose, "%s", purpose);
    BW_GO(bw_agree_on(grid->comms->node, allocate(grid, shared, window)));
    clear_share(grid, shared);
    if (grid->node_rank == 0) /* counted once a node, so that a sum over ranks is right */
        bw_mem_note(purpose, shared->bytes);
    BW_GO(bw_node_sync(grid));
done:
    shared->window = window;
    if (status != BW_OK) {
        bw_free(window);
        *shared = (bw_shared){0};
    }
    return status;
}

void bw_shared_free(const bw_grid *grid, bw_shared *shared)
{
    window *window = shared->window;
    if (!window)
        return;
    if (grid->node_rank == 0)
        bw_mem_note(window->purpose, -shared->bytes);
    MPI_Win_free(&window->handle);
    bw_free(window);
    *shared = (bw_shared){0};
}

int bw_node_sync(const bw_grid *grid)
{
    atomic_thread_fence(memory_order_seq_cst);
    BW_MPI(MPI_Barrier(grid->comms->node));
    atomic_thread_fence(memory_order_seq_cst);
    return BW_OK;
}

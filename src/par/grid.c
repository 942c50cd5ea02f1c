/* grid.c - cut the world into replicas, grids and nodes. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "par/comms.h"

/* ---- shape ------------------------------------------------------------------------------------------------------- */
static void nearest_to_square(int ranks, int *nprow, int *npcol)
{
    int p = 1;
    for (int i = 1; (int64_t)i * i <= ranks; i++)
        if (ranks % i == 0)
            p = i;
    *nprow = p;
    *npcol = ranks / p;
}

static int suggest(int status, int size, const char *shape, int replicas)
{
    int p, q;
    nearest_to_square(size, &p, &q);
    if (size == 1)
        return bw_fail(status, "grid %s with %d replica(s) does not fit one rank: start more ranks, or leave --grid and --replicas out", shape,
                       replicas > 0 ? replicas : 1);
    return bw_fail(status,
                   "grid %s with %d replica(s) does not fit %d rank(s): rows x columns x replicas must be %d; fits: --grid %dx%d --replicas 1, "
                   "--grid 1x1 --replicas %d, or --grid auto",
                   shape, replicas > 0 ? replicas : 1, size, size, p, q, size);
}

static bool parse_factor(const char **text, char end, int *value)
{
    char *rest = NULL;
    if (**text < '0' || **text > '9')
        return false;
    long number = strtol(*text, &rest, 10);
    if (number < 1 || number > INT_MAX || *rest != end)
        return false;
    *value = (int)number;
    *text = rest + (end != '\0');
    return true;
}

static int fixed_shape(const char *shape, int *nprow, int *npcol)
{
    const char *text = shape;
    if (!parse_factor(&text, 'x', nprow) || !parse_factor(&text, '\0', npcol))
        return bw_fail(BW_USAGE, "grid \"%s\" is not a shape: write \"auto\" or rows x columns, such as \"2x2\"", shape);
    return BW_OK;
}

static int choose_shape(bw_grid *grid, const char *shape, int replicas)
{
    if (replicas < 0)
        return bw_fail(BW_USAGE, "replicas is %d: write a count, or 0 for as many as fit", replicas);
    if (strcmp(shape, "auto") == 0) {
        grid->replicas = replicas > 0 ? replicas : 1;
        if (grid->size % grid->replicas != 0)
            return suggest(BW_USAGE, grid->size, shape, replicas);
        nearest_to_square(grid->size / grid->replicas, &grid->nprow, &grid->npcol);
        return BW_OK;
    }
    BW_TRY(fixed_shape(shape, &grid->nprow, &grid->npcol));
    int64_t ranks = (int64_t)grid->nprow * grid->npcol;
    grid->replicas = replicas > 0 ? replicas : (int)(grid->size / ranks);
    if (ranks * grid->replicas != grid->size)
        return suggest(BW_USAGE, grid->size, shape, grid->replicas);
    return BW_OK;
}

static void place(bw_grid *grid)
{
    int ranks = grid->nprow * grid->npcol;
    grid->replica = grid->rank / ranks;
    grid->myrow = grid->rank % ranks / grid->npcol;
    grid->mycol = grid->rank % grid->npcol;
}

int bw_grid_outline(bw_grid *grid, const char *shape, int replicas, int size, int per_node)
{
    *grid = (bw_grid){.size = size, .node_size = per_node < size ? per_node : size, .context = -1};
    if (size < 1 || per_node < 1 || size % grid->node_size != 0)
        return bw_fail(BW_USAGE, "%d ranks do not fill nodes of %d: give a multiple, or fewer than a node has", size, per_node);
    grid->nodes = size / grid->node_size;
    BW_TRY(choose_shape(grid, shape, replicas));
    place(grid);
    return BW_OK;
}

/* ---- communicators ------------------------------------------------------------------------------------------------ */
static int open_node(bw_grid *grid, int ranks_per_node)
{
    bw_comms *comms = grid->comms;
    BW_MPI(MPI_Comm_split_type(comms->world, MPI_COMM_TYPE_SHARED, grid->rank, MPI_INFO_NULL, &comms->node));
    if (ranks_per_node > 0) {
        MPI_Comm whole = comms->node;
        int position = 0;
        MPI_Comm_rank(whole, &position);
        int code = MPI_Comm_split(whole, position / ranks_per_node, position, &comms->node);
        MPI_Comm_free(&whole);
        BW_MPI(code);
    }
    BW_MPI(MPI_Comm_size(comms->node, &grid->node_size));
    BW_MPI(MPI_Comm_rank(comms->node, &grid->node_rank));
    return BW_OK;
}

/* Nodes are numbered in the order of their lowest world rank. */
static int number_nodes(bw_grid *grid)
{
    int leader = grid->rank;
    int *node_of = grid->comms->node_of;
    BW_MPI(MPI_Bcast(&leader, 1, MPI_INT, 0, grid->comms->node));
    BW_MPI(MPI_Allgather(&leader, 1, MPI_INT, node_of, 1, MPI_INT, grid->comms->world));
    for (int rank = 0; rank < grid->size; rank++) /* a leader comes before its followers, so its number is known already */
        node_of[rank] = node_of[rank] == rank ? grid->nodes++ : node_of[node_of[rank]];
    grid->node = node_of[grid->rank];
    return BW_OK;
}

static int open_comms(bw_grid *grid, int ranks_per_node)
{
    bw_comms *comms = grid->comms;
    BW_MPI(MPI_Comm_dup(comms->world, &comms->gather));
    BW_MPI(MPI_Comm_dup(comms->world, &comms->reduce));
    BW_MPI(MPI_Comm_split(comms->world, grid->replica, grid->rank, &comms->grid));
    BW_TRY(open_node(grid, ranks_per_node));
    return number_nodes(grid);
}

static int allocate(bw_grid **out)
{
    bw_grid *grid = NULL;
    BW_TRY(BW_NEW(grid, 1, "grid"));
    *out = grid;
    grid->context = -1;
    BW_TRY(BW_NEW(grid->comms, 1, "grid"));
    *grid->comms = (bw_comms){MPI_COMM_NULL, MPI_COMM_NULL, MPI_COMM_NULL, MPI_COMM_NULL, MPI_COMM_NULL, NULL, -1};
    grid->size = bw_par_size();
    grid->rank = bw_par_rank();
    return BW_NEW(grid->comms->node_of, grid->size, "grid");
}

int bw_grid_create(bw_grid **out, const char *shape, int replicas, int ranks_per_node)
{
    bw_grid *grid = NULL;
    int status;
    BW_GO(bw_agree_on(MPI_COMM_WORLD, allocate(&grid)));
    BW_GO(choose_shape(grid, shape, replicas)); /* the same input everywhere, so the same answer everywhere */
    if (ranks_per_node < 0)
        BW_GO(bw_fail(BW_USAGE, "ranks per node is %d: write a count, or 0 for the nodes as they are", ranks_per_node));
    place(grid);
    BW_GO(bw_mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &grid->comms->world), "MPI_Comm_dup"));
    BW_GO(bw_agree(grid, open_comms(grid, ranks_per_node)));
    BW_GO(bw_agree(grid, bw_blacs_open(grid)));
done:
    if (status != BW_OK)
        bw_grid_destroy(&grid);
    *out = grid;
    return status;
}

void bw_grid_destroy(bw_grid **grid)
{
    if (!*grid)
        return;
    bw_comms *comms = (*grid)->comms;
    if (comms) {
        bw_blacs_close(*grid);
        MPI_Comm *all[] = {&comms->node, &comms->grid, &comms->reduce, &comms->gather, &comms->world};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (*all[i] != MPI_COMM_NULL)
                MPI_Comm_free(all[i]);
        bw_free(comms->node_of);
    }
    bw_free(comms);
    bw_free(*grid);
    *grid = NULL;
}

void bw_advance_messages(const bw_grid *grid)
{
    int found;
    if (grid->size > 1) /* a look at a communicator that gets no such message: all of MPI moves on meanwhile */
        (void)MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, grid->comms->world, &found, MPI_STATUS_IGNORE);
}

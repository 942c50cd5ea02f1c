/* gather.c - a model's pieces, wherever they are, into dense arrays that a node shares.
 *
 * A grid position whose piece lies on the node already is unpacked there, its blocks shared out among the local ranks that hold it
 * (one per replica). Every other position is sent by one rank of another node to one rank of this node, which unpacks it.
 * All ranks work out the same plan from the same table of nodes, so nothing is negotiated. */
#include "par/comms.h"
#include <string.h>
#include "par/pieces.h"

typedef struct route { /* one grid position on its way to one node */
    int position, peer;
} route;

struct bw_gather {
    const bw_grid *grid;
    int share, shares; /* this rank unpacks every shares-th local block of its own piece, from `share` */
    route *sends, *receives;
    int n_sends, n_receives;
    bw_gather_item *items; /* of the gather under way */
    int count, item_capacity;
    int64_t piece_capacity;   /* bytes of the largest position's pieces of all items: equal on all ranks */
    int64_t message_capacity; /* messages these take: equal on all ranks */
    char *buffer;             /* [n_receives][piece_capacity] */
    MPI_Request *requests;    /* receives first, route by route */
    int n_requests, n_receiving;
    int tested; /* what MPI said to the looks at the receives */
    bw_gather_times times;
    int64_t bytes;
};

/* ---- plan --------------------------------------------------------------------------------------------------------- */
typedef struct plan {
    int *sent;     /* [size]: positions each rank sends so far */
    int *received; /* [size]: positions each rank receives so far */
    int *lowest;   /* [nodes]: lowest world rank of the node */
    int *holders;  /* [nodes]: ranks of the node that hold the position at hand */
} plan;

static int positions(const bw_grid *grid)
{
    return grid->nprow * grid->npcol;
}

/* The holder of `position` with the least to do; among equals the one whose replica is nearest to the receiver's. */
static int choose_sender(const bw_grid *grid, const plan *plan, int position, int node)
{
    int home = plan->lowest[node] / positions(grid), best = -1, best_distance = 0;
    for (int replica = 0; replica < grid->replicas; replica++) {
        int rank = replica * positions(grid) + position, distance = (replica - home + grid->replicas) % grid->replicas;
        bool less = best < 0 || plan->sent[rank] < plan->sent[best];
        if (less || (plan->sent[rank] == plan->sent[best] && distance < best_distance)) {
            best = rank;
            best_distance = distance;
        }
    }
    return best;
}

static int choose_receiver(const bw_grid *grid, const plan *plan, int node)
{
    int best = -1;
    for (int rank = plan->lowest[node]; rank < grid->size; rank++)
        if (grid->comms->node_of[rank] == node && (best < 0 || plan->received[rank] < plan->received[best]))
            best = rank;
    return best;
}

static int add_route(route **routes, int *count, int limit, route route)
{
    if (!*routes)
        BW_TRY(BW_NEW(*routes, limit, "gather"));
    (*routes)[(*count)++] = route;
    return BW_OK;
}

static int plan_route(bw_gather *gather, plan *plan, int position, int node)
{
    const bw_grid *grid = gather->grid;
    int from = choose_sender(grid, plan, position, node), to = choose_receiver(grid, plan, node);
    plan->sent[from]++;
    plan->received[to]++;
    if (from == grid->rank)
        BW_TRY(add_route(&gather->sends, &gather->n_sends, grid->nodes, (route){position, to}));
    if (to == grid->rank)
        BW_TRY(add_route(&gather->receives, &gather->n_receives, positions(grid), (route){position, from}));
    return BW_OK;
}

static int plan_position(bw_gather *gather, plan *plan, int position)
{
    const bw_grid *grid = gather->grid;
    memset(plan->holders, 0, sizeof *plan->holders * (size_t)grid->nodes);
    for (int rank = position; rank < grid->size; rank += positions(grid)) {
        int node = grid->comms->node_of[rank];
        if (rank == grid->rank)
            gather->share = plan->holders[node];
        plan->holders[node]++;
    }
    if (grid->rank % positions(grid) == position)
        gather->shares = plan->holders[grid->node];
    for (int node = 0; node < grid->nodes; node++)
        if (plan->holders[node] == 0)
            BW_TRY(plan_route(gather, plan, position, node));
    return BW_OK;
}

static int plan_all(bw_gather *gather)
{
    const bw_grid *grid = gather->grid;
    plan plan = {0};
    int status;
    BW_GO(BW_NEW(plan.sent, grid->size, "gather"));
    BW_GO(BW_NEW(plan.received, grid->size, "gather"));
    BW_GO(BW_NEW(plan.lowest, grid->nodes, "gather"));
    BW_GO(BW_NEW(plan.holders, grid->nodes, "gather"));
    for (int rank = grid->size - 1; rank >= 0; rank--)
        plan.lowest[grid->comms->node_of[rank]] = rank;
    for (int position = 0; position < positions(grid); position++)
        BW_GO(plan_position(gather, &plan, position));
done:
    bw_free(plan.sent);
    bw_free(plan.received);
    bw_free(plan.lowest);
    bw_free(plan.holders);
    return status;
}

int bw_gather_create(bw_gather **out, const bw_grid *grid)
{
    bw_gather *gather = NULL;
    int status = BW_NEW(gather, 1, "gather");
    if (status == BW_OK) {
        gather->grid = grid;
        status = plan_all(gather);
    }
    status = bw_agree(grid, status);
    if (status != BW_OK)
        bw_gather_destroy(&gather);
    *out = gather;
    return status;
}

void bw_gather_destroy(bw_gather **gather)
{
    if (!*gather)
        return;
    bw_free((*gather)->sends);
    bw_free((*gather)->receives);
    bw_free((*gather)->items);
    bw_free((*gather)->buffer);
    bw_free((*gather)->requests);
    bw_free(*gather);
    *gather = NULL;
}

int bw_gather_foreign(const bw_grid *grid)
{
    return positions(grid) > grid->node_size ? positions(grid) - grid->node_size : 0;
}

int64_t bw_gather_bytes(const bw_gather *gather)
{
    return gather->bytes;
}

const bw_gather_times *bw_gather_last(const bw_gather *gather)
{
    return &gather->times;
}

/* ---- sizes -------------------------------------------------------------------------------------------------------- */
/* The piece that another position of the grid holds, without its data. */
static bw_matrix piece_at(const bw_matrix *mine, int position)
{
    bw_matrix piece = *mine;
    const bw_bcyc *layout = &mine->layout;
    piece.myrow = position / layout->npcol;
    piece.mycol = position % layout->npcol;
    piece.rows = bw_bcyc_count(layout->m, layout->mb, piece.myrow, layout->nprow);
    piece.cols = bw_bcyc_count(layout->n, layout->nb, piece.mycol, layout->npcol);
    piece.ld = piece.rows > 1 ? piece.rows : 1;
    piece.data = NULL;
    return piece;
}

/* Pieces of several types lie one after another in a receive buffer, each where its entries are aligned. */
static int64_t slot_bytes(const bw_matrix *piece)
{
    return (bw_matrix_bytes(piece) + 63) / 64 * 64;
}

static int64_t messages(int64_t bytes)
{
    return (bytes + BW_MESSAGE_BYTES - 1) / BW_MESSAGE_BYTES;
}

/* Position 0 holds the most of every matrix, so these bounds hold for every rank and are the same on every rank. */
static void bounds(const bw_gather_item *items, int count, int64_t *bytes, int64_t *parts)
{
    *bytes = *parts = 0;
    for (int i = 0; i < count; i++) {
        bw_matrix largest = piece_at(items[i].piece, 0);
        *bytes += slot_bytes(&largest);
        *parts += messages(bw_matrix_bytes(&largest));
    }
}

static int grow(bw_gather *gather, int count, int64_t bytes, int64_t parts)
{
    bw_free(gather->items);
    bw_free(gather->buffer);
    bw_free(gather->requests);
    gather->items = NULL;
    gather->buffer = NULL;
    gather->requests = NULL;
    BW_TRY(BW_NEW(gather->items, count, "gather"));
    BW_TRY(BW_NEW(gather->buffer, gather->n_receives * bytes, "gather"));
    return BW_NEW(gather->requests, (gather->n_receives + gather->n_sends) * parts, "gather");
}

/* All ranks grow at the same call or none does, so that only then need they agree that all have the memory. */
static int reserve(bw_gather *gather, const bw_gather_item *items, int count)
{
    int64_t bytes, parts;
    bounds(items, count, &bytes, &parts);
    if (count <= gather->item_capacity && bytes <= gather->piece_capacity && parts <= gather->message_capacity)
        return BW_OK;
    count = count > gather->item_capacity ? count : gather->item_capacity;
    bytes = bytes > gather->piece_capacity ? bytes : gather->piece_capacity;
    parts = parts > gather->message_capacity ? parts : gather->message_capacity;
    int status = bw_agree(gather->grid, grow(gather, count, bytes, parts));
    gather->item_capacity = status == BW_OK ? count : 0;
    gather->piece_capacity = status == BW_OK ? bytes : 0;
    gather->message_capacity = status == BW_OK ? parts : 0;
    return status;
}

/* ---- start -------------------------------------------------------------------------------------------------------- */
static int part(int64_t left)
{
    return (int)(left < BW_MESSAGE_BYTES ? left : BW_MESSAGE_BYTES);
}

static int post_receives(bw_gather *gather, const route *route, char *buffer)
{
    MPI_Comm comm = gather->grid->comms->gather;
    for (int i = 0; i < gather->count; i++) {
        bw_matrix piece = piece_at(gather->items[i].piece, route->position);
        int64_t bytes = bw_matrix_bytes(&piece);
        for (int64_t done = 0; done < bytes; done += part(bytes - done))
            BW_MPI(MPI_Irecv(buffer + done, part(bytes - done), MPI_BYTE, route->peer, 0, comm, &gather->requests[gather->n_requests++]));
        buffer += slot_bytes(&piece);
        gather->bytes += bytes;
    }
    return BW_OK;
}

static int post_sends(bw_gather *gather, const route *route)
{
    MPI_Comm comm = gather->grid->comms->gather;
    for (int i = 0; i < gather->count; i++) {
        const bw_matrix *piece = gather->items[i].piece;
        int64_t bytes = bw_matrix_bytes(piece);
        for (int64_t done = 0; done < bytes; done += part(bytes - done))
            BW_MPI(
                MPI_Isend((char *)piece->data + done, part(bytes - done), MPI_BYTE, route->peer, 0, comm, &gather->requests[gather->n_requests++]));
        gather->bytes += bytes;
    }
    return BW_OK;
}

int bw_gather_start(bw_gather *gather, const bw_gather_item *items, int count)
{
    BW_ASSERT(gather->count == 0);
    for (int i = 0; i < count; i++)
        BW_ASSERT(!(items[i].half && items[i].after));
    gather->times = (bw_gather_times){.started = bw_now()};
    gather->tested = MPI_SUCCESS;
    BW_TRY(reserve(gather, items, count));
    if (count > 0)
        memcpy(gather->items, items, sizeof *items * (size_t)count);
    gather->count = count;
    gather->n_requests = 0;
    for (int i = 0; i < gather->n_receives; i++)
        BW_TRY(post_receives(gather, &gather->receives[i], gather->buffer + i * gather->piece_capacity));
    gather->n_receiving = gather->n_requests;
    for (int i = 0; i < gather->n_sends; i++)
        BW_TRY(post_sends(gather, &gather->sends[i]));
    if (gather->n_receiving == 0)
        gather->times.arrived = gather->times.started;
    return BW_OK;
}

void bw_gather_advance(bw_gather *gather)
{
    int arrived = 0;
    if (gather->count == 0 || gather->times.arrived > 0 || gather->tested != MPI_SUCCESS) {
        bw_advance_messages(gather->grid);
        return;
    }
    gather->tested = MPI_Testall(gather->n_receiving, gather->requests, &arrived, MPI_STATUSES_IGNORE);
    if (arrived)
        gather->times.arrived = bw_now();
}

/* ---- finish ------------------------------------------------------------------------------------------------------- */
static int unpack_block(void *context, const bw_matrix *piece, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const bw_gather_item *item = context;
    const int64_t at = i * item->ld + j;
    if (item->half) {
        bw_block_to_half((uint16_t *)item->dense + at, item->ld, block, piece->type, piece->ld, rows, cols);
        return BW_OK;
    }
    float *out = (float *)item->dense + at;
    bw_block_to_dense(out, item->ld, block, piece->type, piece->ld, rows, cols);
    if (item->after)
        item->after(item->context, out, item->ld, i, j, rows, cols);
    return BW_OK;
}

static void unpack_received(bw_gather *gather, const route *route, char *buffer)
{
    for (int i = 0; i < gather->count; i++) {
        bw_matrix piece = piece_at(gather->items[i].piece, route->position);
        piece.data = buffer;
        bw_matrix_visit_on_threads(&piece, 0, 1, unpack_block, &gather->items[i]);
        buffer += slot_bytes(&piece);
    }
}

static int await_receives(bw_gather *gather)
{
    BW_MPI(gather->tested);
    BW_MPI(MPI_Waitall(gather->n_receiving, gather->requests, MPI_STATUSES_IGNORE));
    if (gather->times.arrived == 0)
        gather->times.arrived = bw_now();
    return BW_OK;
}

static int wait_and_unpack(bw_gather *gather)
{
    bw_gather_times *times = &gather->times;
    for (int i = 0; i < gather->count; i++) /* own pieces while the others' are on their way */
        bw_matrix_visit_on_threads(gather->items[i].piece, gather->share, gather->shares, unpack_block, &gather->items[i]);
    const double waits = bw_now();
    BW_TRY(await_receives(gather));
    const double goes_on = bw_now();
    for (int i = 0; i < gather->n_receives; i++)
        unpack_received(gather, &gather->receives[i], gather->buffer + i * gather->piece_capacity);
    times->waited = goes_on - waits;
    times->unpacked = waits - times->needed + bw_now() - goes_on;
    BW_MPI(MPI_Waitall(gather->n_requests - gather->n_receiving, gather->requests + gather->n_receiving, MPI_STATUSES_IGNORE));
    return BW_OK;
}

int bw_gather_finish(bw_gather *gather)
{
    gather->times.needed = bw_now();
    int status = wait_and_unpack(gather);
    gather->count = 0;
    int synced = bw_node_sync(gather->grid);
    gather->times.done = bw_now();
    return status != BW_OK ? status : synced;
}

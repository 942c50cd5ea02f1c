/* plan/memory.c - the memory of a training run, by the names under which the run counts it. Every size is asked of the room that allocates it. */
#include "breakwater/plan.h"
#include <string.h>

static const struct {
    const char *name;
    bool shared;
} needs[BW_NEEDS] = {
    [BW_NEED_PIECES] = {"weights, pieces", false},
    [BW_NEED_TABLES] = {"weights, embedding and norms", true},
    [BW_NEED_LAYERS] = {"weights, dense layers", true},
    [BW_NEED_FOLDED] = {"weights, folded adapters", true},
    [BW_NEED_ADAPTER] = {"adapter", false},
    [BW_NEED_DENSE] = {"adapter, dense", true},
    [BW_NEED_GRADIENTS] = {"gradients", false},
    [BW_NEED_SUMS] = {"gradient sums", false},
    [BW_NEED_OPTIMIZER] = {"optimizer", false},
    [BW_NEED_ACTIVATIONS] = {"activations", false},
    [BW_NEED_GATHER] = {"gather", false},
    [BW_NEED_PROGRAM] = {"program", false},
};

/* What a process holds beside what it counts by purpose: MPI, HDF5, BLIS, oneDNN with the products that it keeps, and code. A run of the tests' tiny
 * model on one rank peaks at 30 MiB more than it counts; as much again is allowed for a real tokenizer, packing buffers of large products, and what
 * MPI keeps for each peer. */
static const int64_t program_bytes = 60 << 20;

const char *bw_need_name(bw_need need)
{
    return needs[need].name;
}

bool bw_need_is_shared(bw_need need)
{
    return needs[need].shared;
}

/* ---- what depends on a rank's place in the grid --------------------------------------------------------------------- */
static int64_t piece_bytes(const bw_job *job, const bw_grid *grid, int layer)
{
    int64_t bytes = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        const bw_matrix piece = bw_store_piece_outline(job->source, grid, job->config, layer, (bw_target)target);
        bytes += bw_matrix_bytes(&piece);
    }
    return bytes;
}

/* A node fetches the positions it lacks for a layer, or for a whole adapter, at once; its ranks share them out. */
static int64_t gather_buffer(const bw_grid *grid, int64_t position_bytes)
{
    const int64_t receives = (bw_gather_foreign(grid) + grid->node_size - 1) / grid->node_size;
    return receives * position_bytes;
}

/* A streamed store keeps its pieces; a resident one holds a layer's until the dense copy stands. Two gathers are held: the store's, for layers and
 * the folded adapter, and the one for the factors in training. */
static void place_bytes(const bw_job *job, const bw_grid *grid, bool streams, const bw_adapter *adapter, int64_t bytes[BW_NEEDS])
{
    int64_t layer_bytes = 0, all = 0;
    for (int layer = 0; layer < job->spec->n_layer; layer++) {
        const int64_t held = piece_bytes(job, grid, layer);
        all += held;
        layer_bytes = held > layer_bytes ? held : layer_bytes;
    }
    bytes[BW_NEED_PIECES] = streams ? all : layer_bytes;
    const int64_t factors = bw_adapter_bytes(adapter);
    bytes[BW_NEED_ADAPTER] = factors * (job->folds ? 2 : 1);
    bytes[BW_NEED_OPTIMIZER] = 2 * factors;
    const int64_t store = job->folds && factors > layer_bytes ? factors : layer_bytes;
    bytes[BW_NEED_GATHER] = gather_buffer(grid, store) + gather_buffer(grid, factors);
}

/* ---- what every rank, or every node, has alike ---------------------------------------------------------------------- */
static int tensors_of(const bw_job *job)
{
    return 2 * job->spec->n_layer * __builtin_popcount(job->targets);
}

static void rank_bytes(const bw_job *job, const bw_adapter *adapter, int64_t most_tokens, int64_t bytes[BW_NEEDS])
{
    const bool recompute = strcmp(job->config->recompute, "layer") == 0;
    const int side_rank = job->folds && !bw_store_folds() ? (int)job->config->lora_r : 0;
    bytes[BW_NEED_GRADIENTS] = bw_adapter_floats(adapter) * (int64_t)sizeof(float);
    bytes[BW_NEED_SUMS] = bw_reduce_integers(tensors_of(job), bw_adapter_parameters(adapter)) * (int64_t)sizeof(int64_t);
    bytes[BW_NEED_ACTIVATIONS] = bw_transformer_bytes(job->spec, adapter, side_rank, most_tokens, most_tokens, true, recompute);
    bytes[BW_NEED_PROGRAM] = program_bytes;
}

static void node_bytes(const bw_job *job, const bw_layout *layout, const bw_adapter *adapter, int64_t bytes[BW_NEEDS])
{
    bytes[BW_NEED_TABLES] = bw_store_table_bytes(job->spec);
    bytes[BW_NEED_LAYERS] = bw_store_slot_bytes(job->spec, layout->streams);
    bytes[BW_NEED_DENSE] = bw_adapter_floats(adapter) * (int64_t)sizeof(float);
    bytes[BW_NEED_FOLDED] = job->folds ? bytes[BW_NEED_DENSE] : 0;
}

/* ---- a rank and a node ---------------------------------------------------------------------------------------------- */

/* The place in the grid that a node's rank has: they count on through replicas. */
static bw_grid grid_at(const bw_grid *grid, int rank)
{
    bw_grid place = *grid;
    const int position = rank % (grid->nprow * grid->npcol);
    place.myrow = position / grid->npcol;
    place.mycol = position % grid->npcol;
    return place;
}

static int add_place(const bw_job *job, const bw_grid *grid, bool streams, int64_t bytes[BW_NEEDS])
{
    bw_adapter *adapter;
    BW_TRY(bw_adapter_outline(&adapter, grid, job->spec, job->targets, (int)job->config->lora_r, (int)job->config->block));
    place_bytes(job, grid, streams, adapter, bytes);
    bw_adapter_free(&adapter);
    return BW_OK;
}

int bw_memory_plan(bw_memory *memory, const bw_job *job, const bw_layout *layout, int64_t most_tokens)
{
    const bw_grid *grid = &layout->grid;
    bw_adapter *adapter;
    *memory = (bw_memory){0};
    BW_TRY(bw_adapter_outline(&adapter, grid, job->spec, job->targets, (int)job->config->lora_r, (int)job->config->block));
    rank_bytes(job, adapter, most_tokens, memory->rank);
    node_bytes(job, layout, adapter, memory->rank);
    place_bytes(job, grid, layout->streams, adapter, memory->rank); /* position 0 holds the most of every matrix */
    bw_adapter_free(&adapter);
    for (int need = 0; need < BW_NEEDS; need++)
        memory->node[need] = memory->rank[need] * (needs[need].shared ? 1 : grid->node_size);
    memory->node[BW_NEED_PIECES] = memory->node[BW_NEED_ADAPTER] = memory->node[BW_NEED_OPTIMIZER] = memory->node[BW_NEED_GATHER] = 0;
    for (int rank = 0; rank < grid->node_size; rank++) {
        const bw_grid place = grid_at(grid, rank);
        int64_t bytes[BW_NEEDS] = {0};
        BW_TRY(add_place(job, &place, layout->streams, bytes));
        for (int need = 0; need < BW_NEEDS; need++)
            memory->node[need] += bytes[need];
    }
    return BW_OK;
}

int64_t bw_memory_rank(const bw_memory *memory)
{
    int64_t bytes = 0;
    for (int need = 0; need < BW_NEEDS; need++)
        bytes += needs[need].shared ? 0 : memory->rank[need];
    return bytes;
}

int64_t bw_memory_node(const bw_memory *memory)
{
    int64_t bytes = 0;
    for (int need = 0; need < BW_NEEDS; need++)
        bytes += memory->node[need];
    return bytes;
}

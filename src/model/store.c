/* Frozen weights: block-cyclic pieces are the storage of record; a layer is lent as a copy that a node shares, ready for its products.
 *
 *   resident: a slot for every layer, gathered once at the start; then its pieces are given back, for the slot holds them.
 *   stream:   two slots; while one layer is lent the next one arrives in the other.
 *
 * A slot is the dense layer itself where its products take that. Else a layer is gathered into one dense layer behind the slots, of bf16 where
 * products are, and packed from there into its slot as soon as it is whole; the ranks of the node share out the matrices.
 *
 * Every rank takes the same decisions in the same order, so the collectives match. Adapters are folded into fp32 layers by whoever
 * unpacks a block, entry by entry in one order: the bits do not depend on grid, ranks or mode. Beside bf16 ones they run by themselves. */
#include "model/adapter.h"
#include "breakwater/num.h"
#include <omp.h>
#include <string.h>
#include <sys/statvfs.h>

enum { SLOTS_STREAMED = 2, NOBODY = -1 };

typedef struct fold_place { /* context of a gathered item */
    const struct bw_store *store;
    int index; /* layer * BW_TARGETS + target */
} fold_place;

struct bw_store {
    const bw_grid *grid;
    const bw_source *source; /* used while opening only */
    bw_spec spec;
    bw_matrix *pieces; /* [layer * BW_TARGETS + target] */
    bw_use use;        /* what its weights are lent for */
    bool streams;
    char describe[256];

    bw_shared tables; /* what is always dense: embedding, head where untied, norms */
    float *embedding, *head, *norm, *layer_norms;

    bw_shared slots;
    int n_slots;
    int64_t offset[BW_TARGETS], slot_bytes; /* of a slot */
    int64_t dense_offset[BW_TARGETS];       /* in a dense layer */
    bw_gather *gather;
    int *held;        /* [n_slots]: layer in the slot, or NOBODY */
    bw_use *ready;    /* [n_slots]: what that is ready for */
    int64_t gathered; /* bytes of the gathers so far */
    bw_streaming streaming;
    int pending, arrives; /* layer under way and its slot, or NOBODY */
    bw_use arriving;      /* what it will be packed for */
    int lent;             /* layer lent, or NOBODY */

    int n_folded;
    double *factors;
    const bw_adapter **folded; /* borrowed */
    bw_dense *dense;           /* [n_folded] */
    fold_place *places;        /* [layer * BW_TARGETS + target] */
    bw_side *sides;            /* [layer * BW_TARGETS + target][n_folded], of which n_sides[] are there; none where adapters are folded */
    int *n_sides;
};

/* ---- pieces from the source --------------------------------------------------------------------------------------- */
typedef struct reader {
    const bw_source *source;
    int layer;
    bw_target target;
    float *rows; /* a block as read, for each thread */
    int64_t block_floats, bytes;
} reader;

static const bw_dtype piece_dtype[] = {[BW_PIECE_F32] = BW_F32, [BW_PIECE_BF16] = BW_BF16, [BW_PIECE_F16] = BW_F16};

static int read_block(void *context, const bw_matrix *piece, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const reader *reader = context;
    float *mine = reader->rows + omp_get_thread_num() * reader->block_floats;
    BW_TRY(bw_source_read(reader->source, reader->layer, reader->target, i, rows, j, cols, mine, cols));
    bw_block_from_dense(block, piece->type, piece->ld, mine, cols, rows, cols);
    return BW_OK;
}

/* The model's own type where it is a float of 16 or 32 bits; what is quantised is kept exactly, as f32. */
static bw_piece_type piece_type(bw_dtype dtype, const char *wanted)
{
    if (strcmp(wanted, "bf16") == 0)
        return BW_PIECE_BF16;
    if (strcmp(wanted, "f32") == 0)
        return BW_PIECE_F32;
    return dtype == BW_BF16 ? BW_PIECE_BF16 : dtype == BW_F16 ? BW_PIECE_F16 : BW_PIECE_F32;
}

bw_matrix bw_store_piece_outline(const bw_source *source, const bw_grid *grid, const bw_config *config, int layer, bw_target target)
{
    int64_t out, in;
    bw_spec_shape(bw_source_spec(source), target, &out, &in);
    const bw_piece_type type = piece_type(bw_source_dtype(source, layer, target), config->store);
    return bw_matrix_outline(grid, type, out, in, (int)config->block, (int)config->block);
}

static int read_piece(bw_store *store, reader *reader, const bw_config *config)
{
    bw_matrix *piece = &store->pieces[bw_target_at(reader->layer, reader->target)];
    const bw_matrix outline = bw_store_piece_outline(reader->source, store->grid, config, reader->layer, reader->target);
    const bw_bcyc layout = outline.layout;
    if (piece->data && piece->type != outline.type)
        bw_matrix_free(piece);
    if (!piece->data) /* else handed on by the layer before */
        BW_TRY(bw_matrix_create(piece, store->grid, outline.type, layout.m, layout.n, layout.mb, layout.nb, "weights, pieces"));
    reader->bytes += bw_dtype_bytes(piece_dtype[piece->type], piece->rows * piece->cols);
    return bw_matrix_visit_on_threads(piece, 0, 1, read_block, reader);
}

static int read_layer(bw_store *store, reader *reader, const bw_config *config)
{
    const double start = bw_now();
    reader->bytes = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        reader->target = (bw_target)target;
        BW_TRY(read_piece(store, reader, config));
    }
    bw_event_add(BW_EVENT_LOAD, bw_now() - start, 0, (double)reader->bytes);
    return BW_OK;
}

static void free_layer(bw_store *store, int layer)
{
    for (int target = 0; target < BW_TARGETS; target++)
        bw_matrix_free(&store->pieces[bw_target_at(layer, (bw_target)target)]);
}

/* The next layer is read into the memory of this one: new memory costs more than reading into it. */
static void hand_on_layer(bw_store *store, int layer)
{
    for (int target = 0; target < BW_TARGETS; target++) {
        store->pieces[bw_target_at(layer + 1, (bw_target)target)] = store->pieces[bw_target_at(layer, (bw_target)target)];
        store->pieces[bw_target_at(layer, (bw_target)target)] = (bw_matrix){0};
    }
}

/* ---- what is always dense ----------------------------------------------------------------------------------------- */
static int64_t table_floats(const bw_spec *spec)
{
    return spec->vocab * spec->d_model;
}

int64_t bw_store_table_bytes(const bw_spec *spec)
{
    const int64_t table = bw_line_round(table_floats(spec)), vector = bw_line_round(spec->d_model);
    const int64_t floats = (spec->tied ? 1 : 2) * table + (1 + BW_LAYER_VECTORS * spec->n_layer) * vector;
    return floats * (int64_t)sizeof(float) + BW_LINE;
}

static int create_tables(bw_store *store)
{
    const bw_spec *spec = &store->spec;
    const int64_t table = bw_line_round(table_floats(spec)), vector = bw_line_round(spec->d_model);
    BW_TRY(bw_shared_create(store->grid, &store->tables, bw_store_table_bytes(spec), "weights, embedding and norms"));
    store->embedding = bw_shared_floats(&store->tables);
    store->head = store->embedding + (spec->tied ? 0 : table);
    store->norm = store->head + table;
    store->layer_norms = store->norm + vector;
    return BW_OK;
}

static float *layer_norm(const bw_store *store, int layer, int which)
{
    return store->layer_norms + (layer * BW_LAYER_VECTORS + which) * bw_line_round(store->spec.d_model);
}

/* The ranks of a node share out the rows, so that it reads a table once. */
static int read_table(bw_store *store, const char *name, float *table)
{
    const bw_spec *spec = &store->spec;
    const bw_grid *grid = store->grid;
    const int64_t from = spec->vocab * grid->node_rank / grid->node_size, to = spec->vocab * (grid->node_rank + 1) / grid->node_size;
    return bw_source_read_named(store->source, -1, name, from, to - from, 0, spec->d_model, table + from * spec->d_model, spec->d_model);
}

static int read_tables(bw_store *store)
{
    static const char *const norms[BW_LAYER_VECTORS] = {"input_layernorm", "post_attention_layernorm"};
    const int64_t C = store->spec.d_model;
    const double start = bw_now();
    BW_TRY(read_table(store, "embed_tokens", store->embedding));
    if (store->head != store->embedding)
        BW_TRY(read_table(store, "lm_head", store->head));
    for (int layer = 0; store->grid->node_rank == 0 && layer < store->spec.n_layer; layer++)
        for (int which = 0; which < BW_LAYER_VECTORS; which++)
            BW_TRY(bw_source_read_named(store->source, layer, norms[which], 0, 1, 0, C, layer_norm(store, layer, which), C));
    if (store->grid->node_rank == 0)
        BW_TRY(bw_source_read_named(store->source, -1, "norm", 0, 1, 0, C, store->norm, C));
    bw_event_add(BW_EVENT_LOAD, bw_now() - start, 0, (double)(table_floats(&store->spec) / store->grid->node_size) * sizeof(float));
    return BW_OK;
}

/* ---- slots and the choice of the mode ----------------------------------------------------------------------------- */
bool bw_store_folds(void)
{
    return !bw_gemm_is_half();
}

/* From a row of a gathered layer to the next: a slot has them side by side, what is packed as packing likes them. */
static int64_t dense_ld(int64_t cols, bw_use use)
{
    return bw_weight_is_dense(use) ? cols : bw_weight_ld(cols);
}

/* Bytes of a layer, ready for its products or dense, and where in it each target begins. */
static int64_t lay_out(const bw_spec *spec, bool dense, bw_use use, int64_t offset[BW_TARGETS])
{
    int64_t bytes = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        offset[target] = bytes;
        const int64_t gathered = out * dense_ld(in, use) * bw_weight_entry_bytes();
        bytes += dense ? (gathered + BW_LINE - 1) / BW_LINE * BW_LINE : bw_weight_bytes(out, in, use);
    }
    return bytes;
}

static int64_t slots_bytes(const bw_spec *spec, int n_slots, bw_use use)
{
    int64_t offset[BW_TARGETS];
    const int64_t dense = bw_weight_is_dense(use) ? 0 : lay_out(spec, true, use, offset);
    return n_slots * lay_out(spec, false, use, offset) + dense + BW_LINE;
}

int64_t bw_store_layer_bytes(const bw_spec *spec)
{
    int64_t offset[BW_TARGETS];
    return lay_out(spec, false, BW_BOTH, offset);
}

int64_t bw_store_slot_bytes(const bw_spec *spec, bool streams)
{
    return slots_bytes(spec, streams ? SLOTS_STREAMED : spec->n_layer, BW_BOTH);
}

static void *slot_weight(const bw_store *store, int slot, int target)
{
    return (char *)bw_shared_floats(&store->slots) + slot * store->slot_bytes + store->offset[target];
}

/* Where a gather writes a layer that is bound for `slot`. */
static void *dense_weight(const bw_store *store, int slot, int target)
{
    char *first = (char *)bw_shared_floats(&store->slots);
    const int64_t at = bw_weight_is_dense(store->use) ? slot * store->slot_bytes : store->n_slots * store->slot_bytes;
    return first + at + store->dense_offset[target];
}

/* Bytes of memory nobody uses on this node, as far as shared memory may take them; 0 when the kernel does not say. */
static int64_t free_memory(void)
{
    long long kib = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1)
            break;
    if (file)
        fclose(file);
    struct statvfs shm;
    int64_t bytes = (int64_t)kib * 1024;
    if (statvfs("/dev/shm", &shm) == 0) {
        const int64_t room = (int64_t)(shm.f_bavail * shm.f_frsize);
        bytes = room < bytes ? room : bytes;
    }
    return bytes;
}

static const char *piece_name(const bw_store *store, const char *wanted)
{
    const bw_piece_type first = piece_type(bw_source_dtype(store->source, 0, BW_Q), wanted);
    for (int i = 1; i < store->spec.n_layer * BW_TARGETS; i++)
        if (piece_type(bw_source_dtype(store->source, i / BW_TARGETS, (bw_target)(i % BW_TARGETS)), wanted) != first)
            return "mixed";
    return bw_dtype_name(piece_dtype[first]);
}

static int choose_mode(bw_store *store, const bw_config *config)
{
    const char *wanted = config->weights;
    const int64_t whole = store->slot_bytes * store->spec.n_layer;
    const double mib = 1024.0 * 1024.0;
    int64_t least_free = -free_memory(); /* the smallest of all nodes, as the largest negative */
    BW_TRY(bw_max_ints(store->grid, &least_free, 1));
    least_free = -least_free;
    const bool automatic = strcmp(wanted, "auto") == 0;
    store->streams = automatic ? whole > least_free / 3 : strcmp(wanted, "stream") == 0;
    store->n_slots = store->streams ? SLOTS_STREAMED : store->spec.n_layer;
    const int length =
        snprintf(store->describe, sizeof store->describe, "%s, %s pieces, %s %s copies %.1f MiB per node", store->streams ? "streamed" : "resident",
                 piece_name(store, config->store), bw_weight_is_dense(store->use) ? "dense" : "packed", bw_weight_type(),
                 (double)(store->slot_bytes * store->n_slots) / mib);
    if (automatic)
        snprintf(store->describe + length, sizeof store->describe - (size_t)length,
                 " (all layers need %.1f MiB, a third of the free memory is %.1f MiB)", (double)whole / mib, (double)least_free / 3 / mib);
    return BW_OK;
}

/* ---- folding ------------------------------------------------------------------------------------------------------ */
static void fold_block(void *context, float *block, int64_t ld, int64_t i, int64_t j, int64_t rows, int64_t cols)
{
    const fold_place *place = context;
    const bw_store *store = place->store;
    for (int f = 0; f < store->n_folded; f++) {
        const bw_pair *pair = &store->folded[f]->pairs[place->index];
        if (!pair->present)
            continue;
        const float *A = store->dense[f].A[place->index] + j, *B = store->dense[f].B[place->index] + i * pair->r;
        bw_fold(block, ld, rows, cols, (float)(store->factors[f] * pair->scaling), B, pair->r, A, pair->A.layout.n, pair->r);
    }
}

static bool any_folded(const bw_store *store, int index)
{
    for (int f = 0; f < store->n_folded; f++)
        if (store->folded[f]->pairs[index].present)
            return true;
    return false;
}

/* An adapter may come from a file of its own, so its shapes are checked against this model. */
static int check_folded(const bw_store *store, const bw_adapter *adapter)
{
    if (adapter->n_layer != store->spec.n_layer)
        return bw_fail(BW_DATA, "an adapter of %d layers does not fit a model of %d", adapter->n_layer, store->spec.n_layer);
    for (int i = 0; i < store->spec.n_layer * BW_TARGETS; i++) {
        const bw_pair *pair = &adapter->pairs[i];
        int64_t out, in;
        bw_spec_shape(&store->spec, (bw_target)(i % BW_TARGETS), &out, &in);
        if (pair->present && (pair->A.layout.n != in || pair->B.layout.m != out))
            return bw_fail(BW_DATA, "an adapter for a weight of %lld x %lld does not fit %s of layer %d, which is %lld x %lld",
                           (long long)pair->B.layout.m, (long long)pair->A.layout.n, bw_target_name((bw_target)(i % BW_TARGETS)), i / BW_TARGETS,
                           (long long)out, (long long)in);
    }
    return BW_OK;
}

static int take_folded(bw_store *store, const bw_adapter *const *folded, const double *factors, int n_folded)
{
    BW_TRY(BW_NEW(store->folded, n_folded, "weights, folded adapters"));
    BW_TRY(BW_NEW(store->factors, n_folded, "weights, folded adapters"));
    BW_TRY(BW_NEW(store->dense, n_folded, "weights, folded adapters"));
    BW_TRY(BW_NEW(store->places, store->spec.n_layer * BW_TARGETS, "weights, folded adapters"));
    for (int i = 0; i < store->spec.n_layer * BW_TARGETS; i++)
        store->places[i] = (fold_place){store, i};
    for (int f = 0; f < n_folded; f++) {
        BW_TRY(check_folded(store, folded[f]));
        store->folded[f] = folded[f];
        store->factors[f] = factors[f];
    }
    store->n_folded = n_folded;
    return BW_OK;
}

/* Where copies are not fp32, each folded adapter is lent with the weight that it belongs to. */
static int place_sides(bw_store *store)
{
    const int n = store->spec.n_layer * BW_TARGETS;
    BW_TRY(BW_NEW(store->sides, n * store->n_folded, "weights, folded adapters"));
    BW_TRY(BW_NEW(store->n_sides, n, "weights, folded adapters"));
    for (int i = 0; i < n; i++)
        for (int f = 0; f < store->n_folded && !bw_store_folds(); f++) {
            const bw_pair *pair = &store->folded[f]->pairs[i];
            if (pair->present)
                store->sides[i * store->n_folded + store->n_sides[i]++] =
                    (bw_side){pair->r, (float)(store->factors[f] * pair->scaling), store->dense[f].A[i], store->dense[f].B[i]};
        }
    return BW_OK;
}

int bw_store_side_rank(const bw_store *store)
{
    int largest = 0;
    for (int i = 0; i < store->spec.n_layer * BW_TARGETS; i++)
        for (int s = 0; s < store->n_sides[i]; s++) {
            const int r = store->sides[i * store->n_folded + s].r;
            largest = r > largest ? r : largest;
        }
    return largest;
}

/* Collective on world. */
static int gather_folded(bw_store *store)
{
    for (int f = 0; f < store->n_folded; f++) {
        BW_TRY(bw_agree(store->grid, bw_dense_create(&store->dense[f], store->grid, store->folded[f], "weights, folded adapters")));
        BW_TRY(bw_agree(store->grid, bw_dense_refresh(&store->dense[f], store->gather)));
    }
    return bw_agree(store->grid, place_sides(store));
}

/* ---- gathering a layer -------------------------------------------------------------------------------------------- */
/* A streamed layer is packed for the pass that asks for it, but those that a slot still holds when the pass turns, for both. A slot that is the dense
 * layer serves both anyway. */
static bw_use pack_for(const bw_store *store, int layer, bw_use asked)
{
    const bool turns = layer < SLOTS_STREAMED || layer >= store->spec.n_layer - SLOTS_STREAMED;
    return store->streams && !turns && !bw_weight_is_dense(store->use) ? asked : store->use;
}

static int start(bw_store *store, int layer, int slot, bw_use asked)
{
    bw_gather_item items[BW_TARGETS] = {0};
    for (int target = 0; target < BW_TARGETS; target++) {
        const int index = bw_target_at(layer, (bw_target)target);
        items[target].piece = &store->pieces[index];
        items[target].dense = dense_weight(store, slot, target);
        items[target].ld = dense_ld(store->pieces[index].layout.n, store->use);
        items[target].half = bw_gemm_is_half();
        if (bw_store_folds() && any_folded(store, index)) {
            items[target].after = fold_block;
            items[target].context = &store->places[index];
        }
    }
    store->held[slot] = NOBODY;
    store->pending = layer;
    store->arrives = slot;
    store->arriving = pack_for(store, layer, asked);
    return bw_gather_start(store->gather, items, BW_TARGETS);
}

static void note_times(bw_store *store, const bw_gather_times *times)
{
    bw_streaming *sum = &store->streaming;
    sum->gathers++;
    sum->in_flight += times->arrived - times->started;
    sum->waited += times->waited;
    sum->unpacked += times->unpacked;
    sum->met += times->done - times->needed - times->waited - times->unpacked;
    bw_timeline_add("in flight", store->pending, times->started, times->arrived);
    bw_timeline_add("gather", store->pending, times->needed, times->done);
}

/* The layer that is whole now, from the dense one into its slot; nobody gathers into the dense one before all ranks of the node are through. */
static int pack(bw_store *store)
{
    if (bw_weight_is_dense(store->use))
        return BW_OK;
    const double start = bw_now();
    for (int target = store->grid->node_rank; target < BW_TARGETS; target += store->grid->node_size) {
        int64_t out, in;
        bw_spec_shape(&store->spec, (bw_target)target, &out, &in);
        void *dense = dense_weight(store, store->arrives, target);
        bw_unpacked from = {.ld = dense_ld(in, store->use)};
        if (bw_gemm_is_half())
            from.half = dense;
        else
            from.full = dense;
        bw_weight_pack(slot_weight(store, store->arrives, target), from, out, in, store->arriving);
    }
    BW_TRY(bw_node_sync(store->grid));
    const double end = bw_now();
    bw_timeline_add("pack", store->pending, start, end);
    store->streaming.unpacked += end - start;
    return BW_OK;
}

static int finish(bw_store *store)
{
    BW_TRY(bw_gather_finish(store->gather));
    const bw_gather_times *times = bw_gather_last(store->gather);
    note_times(store, times);
    BW_TRY(pack(store));
    bw_event_add(BW_EVENT_GATHER, bw_now() - times->needed, 0, (double)(bw_gather_bytes(store->gather) - store->gathered));
    store->gathered = bw_gather_bytes(store->gather);
    store->held[store->arrives] = store->pending;
    store->ready[store->arrives] = store->arriving;
    store->pending = store->arrives = NOBODY;
    return BW_OK;
}

/* The slot of a layer that is there, and ready for that. */
static int slot_of(const bw_store *store, int layer, bw_use use)
{
    for (int slot = 0; slot < store->n_slots; slot++)
        if (store->held[slot] == layer && (store->ready[slot] & use) == use)
            return slot;
    return NOBODY;
}

static int create_slots(bw_store *store)
{
    BW_TRY(bw_agree(store->grid, BW_NEW(store->held, store->n_slots, "weights, slots")));
    BW_TRY(bw_agree(store->grid, BW_NEW(store->ready, store->n_slots, "weights, slots")));
    for (int slot = 0; slot < store->n_slots; slot++)
        store->held[slot] = NOBODY;
    const int64_t bytes = slots_bytes(&store->spec, store->n_slots, store->use);
    return bw_agree(store->grid, bw_shared_create(store->grid, &store->slots, bytes, "weights, dense layers"));
}

/* A layer's pieces, and where it stays resident its dense copy instead of them. Collective on world. */
static int load_layer(bw_store *store, reader *reader, const bw_config *config)
{
    BW_TRY(bw_agree(store->grid, read_layer(store, reader, config)));
    if (store->streams)
        return BW_OK;
    BW_TRY(start(store, reader->layer, reader->layer, store->use));
    BW_TRY(finish(store));
    if (reader->layer + 1 < store->spec.n_layer)
        hand_on_layer(store, reader->layer);
    else
        free_layer(store, reader->layer);
    return BW_OK;
}

static int load_layers(bw_store *store, const bw_config *config)
{
    reader reader = {.source = store->source, .block_floats = bw_line_round(config->block * config->block)};
    int status = bw_agree(store->grid, BW_NEW(reader.rows, omp_get_max_threads() * reader.block_floats, "weights, reading"));
    for (; status == BW_OK && reader.layer < store->spec.n_layer; reader.layer++)
        status = load_layer(store, &reader, config);
    bw_free(reader.rows);
    return bw_agree(store->grid, status);
}

/* ---- open and close ----------------------------------------------------------------------------------------------- */
static int open_local(bw_store *store, const bw_config *config, const bw_adapter *const *folded, const double *factors, int n_folded)
{
    if (config->block < 1 || config->block > 1 << 14)
        return bw_fail(BW_USAGE, "--block %lld: expected 1 to %d", (long long)config->block, 1 << 14);
    BW_TRY(take_folded(store, folded, factors, n_folded));
    store->slot_bytes = lay_out(&store->spec, false, store->use, store->offset);
    (void)lay_out(&store->spec, true, store->use, store->dense_offset);
    return BW_NEW(store->pieces, store->spec.n_layer * BW_TARGETS, "weights, pieces");
}

static int open_shared(bw_store *store, const bw_config *config)
{
    BW_TRY(bw_agree(store->grid, create_tables(store)));
    BW_TRY(bw_agree(store->grid, read_tables(store)));
    BW_TRY(bw_node_sync(store->grid));
    BW_TRY(bw_gather_create(&store->gather, store->grid));
    BW_TRY(gather_folded(store));
    store->gathered = bw_gather_bytes(store->gather);
    BW_TRY(choose_mode(store, config));
    BW_TRY(create_slots(store));
    return load_layers(store, config);
}

int bw_store_open(bw_store **out, const bw_grid *grid, const bw_source *source, const bw_config *config, bool backward,
                  const bw_adapter *const *folded, const double *factors, int n_folded)
{
    bw_store *store = NULL;
    *out = NULL;
    int status = BW_NEW(store, 1, "weights, pieces");
    if (status == BW_OK) {
        *store =
            (bw_store){.grid = grid, .source = source, .use = backward ? BW_BOTH : BW_FORWARD, .pending = NOBODY, .arrives = NOBODY, .lent = NOBODY};
        store->spec = *bw_source_spec(source);
        status = open_local(store, config, folded, factors, n_folded);
    }
    BW_GO(bw_agree(grid, status));
    BW_GO(open_shared(store, config));
    *out = store;
    return BW_OK;
done:
    bw_store_close(&store);
    return status;
}

void bw_store_close(bw_store **out)
{
    bw_store *store = *out;
    if (!store)
        return;
    if (store->pending != NOBODY) /* a guess that nobody asked for any more; its outcome matters to nobody either */
        (void)bw_gather_finish(store->gather);
    bw_gather_destroy(&store->gather);
    bw_shared_free(store->grid, &store->slots);
    bw_shared_free(store->grid, &store->tables);
    for (int f = 0; f < store->n_folded; f++)
        bw_dense_free(&store->dense[f]);
    for (int layer = 0; store->pieces && layer < store->spec.n_layer; layer++)
        free_layer(store, layer);
    bw_free(store->pieces);
    bw_free(store->held);
    bw_free(store->ready);
    bw_free(store->folded);
    bw_free(store->factors);
    bw_free(store->dense);
    bw_free(store->places);
    bw_free(store->sides);
    bw_free(store->n_sides);
    bw_free(store);
    *out = NULL;
}

/* ---- lending ------------------------------------------------------------------------------------------------------ */
/* Have `layer` in a slot: it may be there, or on its way, or a wrong guess must be waited out first. */
static int fetch(bw_store *store, int layer, bw_use use)
{
    if (slot_of(store, layer, use) != NOBODY)
        return BW_OK;
    if (store->pending != NOBODY) {
        BW_TRY(finish(store));
        if (slot_of(store, layer, use) != NOBODY)
            return BW_OK;
    }
    BW_TRY(start(store, layer, 0, use));
    return finish(store);
}

static int prefetch(bw_store *store, int next, bw_use use, int busy)
{
    if (next < 0 || store->pending != NOBODY || slot_of(store, next, use) != NOBODY)
        return BW_OK;
    return start(store, next, 1 - busy, use);
}

int bw_store_acquire(bw_store *store, int layer, int next, bw_use use, bw_layer *out)
{
    BW_ASSERT(layer >= 0 && layer < store->spec.n_layer && next < store->spec.n_layer && store->lent == NOBODY && (store->use & use) == use);
    if (store->streams) {
        BW_TRY(fetch(store, layer, use));
        BW_TRY(prefetch(store, next, use, slot_of(store, layer, use)));
    }
    const int slot = slot_of(store, layer, use);
    for (int target = 0; target < BW_TARGETS; target++) {
        const int index = bw_target_at(layer, (bw_target)target);
        out->weight[target] = (bw_weight){slot_weight(store, slot, target), bw_weight_is_dense(store->use), store->ready[slot]};
        out->sides[target] = &store->sides[index * store->n_folded];
        out->n_sides[target] = store->n_sides[index];
    }
    out->norm_attention = layer_norm(store, layer, 0);
    out->norm_mlp = layer_norm(store, layer, 1);
    store->lent = layer;
    return BW_OK;
}

int bw_store_release(bw_store *store, int layer)
{
    BW_ASSERT(store->lent == layer);
    store->lent = NOBODY;
    /* Nobody of the node reads any more when the next acquire lets a layer arrive in this slot. */
    return store->streams ? bw_node_sync(store->grid) : BW_OK;
}

void bw_store_progress(const bw_store *store)
{
    bw_gather_advance(store->gather);
}

const bw_streaming *bw_store_streaming(const bw_store *store)
{
    return &store->streaming;
}

bool bw_store_streams(const bw_store *store)
{
    return store->streams;
}

const float *bw_store_embedding(const bw_store *store)
{
    return store->embedding;
}

const float *bw_store_head(const bw_store *store)
{
    return store->head;
}

const float *bw_store_norm(const bw_store *store)
{
    return store->norm;
}

const bw_spec *bw_store_spec(const bw_store *store)
{
    return &store->spec;
}

const char *bw_store_describe(const bw_store *store)
{
    return store->describe;
}

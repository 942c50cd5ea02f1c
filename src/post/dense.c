/* A dense merge: base + delta as a Hugging Face model folder. Every rank reads, adds and writes the blocks it owns in a block-cyclic cut of each
 * weight and never holds more than one of them. The delta of an entry is a sum over r in order, rounding is once and to nearest even
 * (rounding.c), so the files do not depend on the grid. */
#include "post/inside.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

static const char purpose[] = "dense merge";
static const int64_t shard_bytes = 5000000000; /* above this a model is cut into files, as Hugging Face does */
enum { TABLE_ROWS = 512, NAME = 96, NOT_A_TARGET = -1 };

typedef struct weight {
    char name[NAME];   /* as in the file */
    const char *named; /* for bw_source_read_named; NULL: a target */
    int layer, target, shard;
    int64_t rows, cols;
} weight;

typedef struct shard {
    char file[64];
    int first, count; /* weights in it */
    bw_text header;
    int64_t bytes;
    int descriptor;
} shard;

typedef struct dense {
    const bw_grid *grid;
    const bw_source *source;
    const bw_spec *spec;
    const bw_adapter *adapter;
    const char *folder;
    bw_dtype dtype;
    int block;
    weight *weights;
    bw_tensor_spec *specs; /* beside weights */
    int count;
    shard *shards;
    int n_shards;
    bw_fidelity *sums; /* [layer * BW_TARGETS + target], of this rank's entries */
    bw_shared factors;
    bw_gather *gather;
    float *base, *back; /* scratch of one block: as read, and as a reader of the file will see it */
    void *rounded;
    float *packed;      /* A of the target at hand, this rank's columns */
    bw_fidelity *parts; /* of a block, by columns */
    int64_t n_parts;
} dense;

/* ---- which tensors, in which file, where --------------------------------------------------------------------------- */
static void add_named(dense *d, int layer, const char *named, int64_t rows, int64_t cols)
{
    weight *w = &d->weights[d->count++];
    *w = (weight){.named = named, .layer = layer, .target = NOT_A_TARGET, .rows = rows, .cols = cols};
    if (layer >= 0)
        snprintf(w->name, NAME, "model.layers.%d.%s.weight", layer, named);
    else
        snprintf(w->name, NAME, strcmp(named, "lm_head") == 0 ? "%s.weight" : "model.%s.weight", named);
}

static void add_layer(dense *d, int layer)
{
    add_named(d, layer, "input_layernorm", 1, d->spec->d_model);
    for (int target = 0; target < BW_TARGETS; ++target) {
        weight *w = &d->weights[d->count++];
        *w = (weight){.layer = layer, .target = target};
        bw_spec_shape(d->spec, (bw_target)target, &w->rows, &w->cols);
        snprintf(w->name, NAME, "model.layers.%d.%s.weight", layer, bw_target_module((bw_target)target));
    }
    add_named(d, layer, "post_attention_layernorm", 1, d->spec->d_model);
}

static int list_weights(dense *d)
{
    const bw_spec *spec = d->spec;
    int64_t most = 3 + (int64_t)spec->n_layer * (BW_TARGETS + 2);
    BW_TRY(BW_NEW(d->weights, most, purpose));
    BW_TRY(BW_NEW(d->specs, most, purpose));
    add_named(d, -1, "embed_tokens", spec->vocab, spec->d_model);
    for (int layer = 0; layer < spec->n_layer; ++layer)
        add_layer(d, layer);
    add_named(d, -1, "norm", 1, spec->d_model);
    if (!spec->tied)
        add_named(d, -1, "lm_head", spec->vocab, spec->d_model);
    return BW_OK;
}

static int64_t weight_bytes(const dense *d, const weight *w)
{
    return bw_dtype_bytes(d->dtype, w->rows * w->cols);
}

/* Weights go into files in order; a file is closed before it passes shard_bytes. */
static int cut_shards(dense *d)
{
    BW_TRY(BW_NEW(d->shards, d->count, purpose));
    int64_t held = 0;
    for (int i = 0; i < d->count; ++i) {
        weight *w = &d->weights[i];
        if (i == 0 || held + weight_bytes(d, w) > shard_bytes) {
            d->shards[d->n_shards++] = (shard){.first = i, .descriptor = -1};
            held = 0;
        }
        held += weight_bytes(d, w);
        w->shard = d->n_shards - 1;
        d->shards[w->shard].count++;
        bool vector = w->named && w->rows == 1;
        d->specs[i] = (bw_tensor_spec){.name = w->name, .dtype = d->dtype, .n_dims = vector ? 1 : 2, .shape = {vector ? w->cols : w->rows, w->cols}};
    }
    return BW_OK;
}

static int plan_shards(dense *d)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    BW_TRY(cut_shards(d));
    for (int i = 0; i < d->n_shards; ++i) {
        shard *s = &d->shards[i];
        if (d->n_shards == 1)
            snprintf(s->file, sizeof s->file, "model.safetensors");
        else
            snprintf(s->file, sizeof s->file, "model-%05d-of-%05d.safetensors", i + 1, d->n_shards);
        BW_TRY(bw_safetensors_plan(&d->specs[s->first], s->count, metadata, &s->header, &s->bytes));
    }
    return BW_OK;
}

/* ---- files --------------------------------------------------------------------------------------------------------- */
static int put(const shard *s, const void *bytes, int64_t count, int64_t offset)
{
    return bw_file_put(s->descriptor, s->file, bytes, count, offset);
}

static int open_shard(const dense *d, shard *s, int flags)
{
    bw_text path = {0};
    int status = bw_path(&path, d->folder, s->file);
    if (status == BW_OK) {
        s->descriptor = open(path.data, O_WRONLY | O_CLOEXEC | flags, 0644);
        if (s->descriptor < 0)
            status = bw_fail(bw_create_status(errno), "%s: cannot be opened for writing: %s", path.data, strerror(errno));
    }
    bw_text_free(&path);
    return status;
}

static int close_shard(shard *s)
{
    int status = s->descriptor < 0 ? BW_OK : bw_file_finish(s->descriptor, s->file, BW_OK);
    s->descriptor = -1;
    return status;
}

static int create_shards(dense *d)
{
    BW_TRY(bw_dir_make(d->folder));
    for (int i = 0; i < d->n_shards; ++i) {
        shard *s = &d->shards[i];
        BW_TRY(open_shard(d, s, O_CREAT | O_EXCL));
        if (ftruncate(s->descriptor, (off_t)s->bytes) != 0)
            return bw_fail(BW_IO, "%s: cannot be given its size of %lld bytes: %s", s->file, (long long)s->bytes, strerror(errno));
        BW_TRY(put(s, s->header.data, (int64_t)s->header.length, 0));
    }
    return BW_OK;
}

/* Rank 0 makes the files, then all open them. */
static int open_shards(dense *d)
{
    BW_TRY(bw_agree(d->grid, d->grid->rank == 0 ? create_shards(d) : BW_OK));
    int status = BW_OK;
    for (int i = 0; d->grid->rank != 0 && i < d->n_shards && status == BW_OK; ++i)
        status = open_shard(d, &d->shards[i], 0);
    return bw_agree(d->grid, status);
}

static int close_shards(dense *d)
{
    int status = BW_OK;
    for (int i = 0; i < d->n_shards; ++i) {
        int one = close_shard(&d->shards[i]);
        status = status == BW_OK ? one : status;
    }
    return status;
}

static int write_index(const dense *d)
{
    bw_text text = {0}, path = {0};
    int64_t total = 0;
    int status;
    for (int i = 0; i < d->count; ++i)
        total += weight_bytes(d, &d->weights[i]);
    BW_GO(bw_text_addf(&text, "{\"metadata\": {\"total_size\": %lld}, \"weight_map\": {", (long long)total));
    for (int i = 0; i < d->count; ++i)
        BW_GO(bw_text_addf(&text, "%s\n  \"%s\": \"%s\"", i ? "," : "", d->weights[i].name, d->shards[d->weights[i].shard].file));
    BW_GO(bw_text_addf(&text, "\n}}\n"));
    BW_GO(bw_path(&path, d->folder, "model.safetensors.index.json"));
    BW_GO(bw_file_write(path.data, text.data, text.length, 0644));
done:
    bw_text_free(&text);
    bw_text_free(&path);
    return status;
}

/* ---- blocks -------------------------------------------------------------------------------------------------------- */
/* Write `rows` x `cols` contiguous entries of d->rounded. */
static int put_block(const dense *d, int index, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    const weight *w = &d->weights[index];
    const shard *s = &d->shards[w->shard];
    int64_t width = bw_dtype_bytes(d->dtype, 1), offset = d->specs[index].offset;
    if (cols == w->cols)
        return put(s, d->rounded, rows * cols * width, offset + row * cols * width);
    for (int64_t i = 0; i < rows; ++i)
        BW_TRY(put(s, (const char *)d->rounded + i * cols * width, cols * width, offset + ((row + i) * w->cols + col) * width));
    return BW_OK;
}

/* Round d->base: what no type that we write can hold is named. */
static int round_base(dense *d, int index, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    bw_from_f32(d->rounded, d->base, d->dtype, rows * cols);
    bw_to_f32(d->back, d->rounded, d->dtype, rows * cols);
    for (int64_t i = 0; i < rows * cols; ++i)
        if (!isfinite(d->back[i]))
            return bw_fail(BW_DATA, "%s, row %lld, column %lld: %g does not fit in %s; use --dense bf16 or f32", d->weights[index].name,
                           (long long)(row + i / cols), (long long)(col + i % cols), (double)d->base[i], bw_dtype_name(d->dtype));
    return BW_OK;
}

typedef struct layer_factors {
    int r[BW_TARGETS];
    float *A[BW_TARGETS], *B[BW_TARGETS]; /* dense, shared by the node; NULL: no pair */
} layer_factors;

/* Round d->base + B A. */
static int round_merged(dense *d, int index, const layer_factors *f, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    const weight *w = &d->weights[index];
    int r = f->r[w->target];
    const bw_round block = {d->dtype, d->packed, f->B[w->target] + row * r, r};
    bw_fidelity sum = {0};
    memset(d->parts, 0, (size_t)d->n_parts * sizeof *d->parts);
    bw_round_block(&block, d->base, rows, cols, d->rounded, d->parts);
    for (int64_t i = 0; i < d->n_parts; ++i)
        bw_fidelity_add(&sum, &d->parts[i]);
    bw_fidelity_add(&d->sums[w->layer * BW_TARGETS + w->target], &sum);
    if (isfinite(sum.delta.stored))
        return BW_OK;
    bw_fold(d->base, cols, rows, cols, 1, block.b, r, f->A[w->target] + col, w->cols, r); /* the same sums again, to find the entry */
    return round_base(d, index, row, rows, col, cols);
}

static int target_block(dense *d, int index, const layer_factors *f, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    const weight *w = &d->weights[index];
    BW_TRY(bw_source_read(d->source, w->layer, (bw_target)w->target, row, rows, col, cols, d->base, cols));
    BW_TRY(f->A[w->target] ? round_merged(d, index, f, row, rows, col, cols) : round_base(d, index, row, rows, col, cols));
    return put_block(d, index, row, rows, col, cols);
}

/* Columns in one block a process column, so that a row's share is one run of bytes in the file. */
static bw_bcyc cut_of(const dense *d, const weight *w)
{
    const bw_grid *grid = d->grid;
    int64_t nb = (w->cols + grid->npcol - 1) / grid->npcol;
    return (bw_bcyc){w->rows, w->cols, d->block, (int)nb, grid->nprow, grid->npcol};
}

static int write_target(dense *d, int index, const layer_factors *f)
{
    const weight *w = &d->weights[index];
    bw_bcyc cut = cut_of(d, w);
    int64_t cols = bw_bcyc_count(cut.n, cut.nb, d->grid->mycol, cut.npcol), rows = bw_bcyc_count(cut.m, cut.mb, d->grid->myrow, cut.nprow);
    if (cols == 0)
        return BW_OK;
    int64_t col = bw_bcyc_global(0, cut.nb, d->grid->mycol, cut.npcol);
    if (f->A[w->target])
        bw_round_pack(f->A[w->target] + col, w->cols, f->r[w->target], cols, d->packed);
    for (int64_t local = 0; local < rows; local += cut.mb) {
        int64_t row = bw_bcyc_global(local, cut.mb, d->grid->myrow, cut.nprow);
        int64_t height = rows - local < cut.mb ? rows - local : cut.mb;
        BW_TRY(target_block(d, index, f, row, height, col, cols));
    }
    return BW_OK;
}

/* Embedding, norms and head: chunks of rows, dealt out over all ranks. */
static int write_named(dense *d, int index, int64_t *turn)
{
    const weight *w = &d->weights[index];
    for (int64_t row = 0; row < w->rows; row += TABLE_ROWS) {
        if ((*turn)++ % d->grid->size != d->grid->rank)
            continue;
        int64_t rows = w->rows - row < TABLE_ROWS ? w->rows - row : TABLE_ROWS;
        BW_TRY(bw_source_read_named(d->source, w->layer, w->named, row, rows, 0, w->cols, d->base, w->cols));
        BW_TRY(round_base(d, index, row, rows, 0, w->cols));
        BW_TRY(put_block(d, index, row, rows, 0, w->cols));
    }
    return BW_OK;
}

/* ---- layers -------------------------------------------------------------------------------------------------------- */
static int64_t layer_floats(const dense *d)
{
    int64_t floats = 0, out, in;
    for (int target = 0; target < BW_TARGETS; ++target) {
        bw_spec_shape(d->spec, (bw_target)target, &out, &in);
        floats += d->adapter->r * (out + in);
    }
    return floats;
}

/* Dense copies of a layer's factors on this node. Collective on world. */
static int gather_layer(dense *d, int layer, layer_factors *f)
{
    bw_gather_item items[2 * BW_TARGETS];
    float *free_space = d->factors.base;
    int count = 0;
    *f = (layer_factors){0};
    for (int target = 0; target < BW_TARGETS; ++target) {
        const bw_pair *pair = bw_adapter_pair(d->adapter, layer, (bw_target)target);
        if (!pair)
            continue;
        int64_t out, in;
        bw_spec_shape(d->spec, (bw_target)target, &out, &in);
        f->r[target] = pair->r;
        f->A[target] = free_space;
        f->B[target] = free_space + pair->r * in;
        free_space += pair->r * (in + out);
        items[count++] = (bw_gather_item){.piece = &pair->A, .dense = f->A[target], .ld = in};
        items[count++] = (bw_gather_item){.piece = &pair->B, .dense = f->B[target], .ld = pair->r};
    }
    BW_TRY(bw_node_sync(d->grid)); /* nobody reads the layer before any more */
    BW_TRY(bw_gather_start(d->gather, items, count));
    return bw_gather_finish(d->gather);
}

/* Replicas take turns by layer. */
static int write_layer(dense *d, int layer)
{
    layer_factors f;
    BW_TRY(gather_layer(d, layer, &f));
    int status = BW_OK;
    for (int i = 0; i < d->count && layer % d->grid->replicas == d->grid->replica && status == BW_OK; ++i) {
        int target = d->weights[i].target;
        if (d->weights[i].layer == layer && target != NOT_A_TARGET)
            status = write_target(d, i, &f);
    }
    return bw_agree(d->grid, status);
}

static int write_tables(dense *d)
{
    int64_t turn = 0;
    int status = BW_OK;
    for (int i = 0; i < d->count && status == BW_OK; ++i)
        if (d->weights[i].named)
            status = write_named(d, i, &turn);
    return bw_agree(d->grid, status);
}

/* ---- fidelity ------------------------------------------------------------------------------------------------------ */
static void fill_rows(const bw_fidelity *all, int ranks, int64_t targets, bw_merge_row *rows)
{
    for (int64_t i = 0; i < targets; ++i) {
        bw_fidelity sum = {0};
        for (int rank = 0; rank < ranks; ++rank)
            bw_fidelity_add(&sum, &all[rank * targets + i]);
        const bw_delta_sums *delta = &sum.delta;
        bw_merge_row *row = &rows[i];
        row->dense = sum.entries > 0;
        row->changed = sum.entries ? (double)sum.changed / (double)sum.entries : 0;
        double both = sqrt(delta->wanted) * sqrt(delta->stored);
        row->delta_cosine = both > 0 ? delta->product / both : 0;
        row->delta_error = delta->wanted > 0 ? sqrt(delta->error / delta->wanted) : 0;
    }
}

static int collect_fidelity(dense *d, bw_merge_row *rows)
{
    int64_t targets = (int64_t)d->spec->n_layer * BW_TARGETS, *offsets = NULL;
    char *all = NULL;
    int status;
    BW_GO(bw_agree(d->grid, BW_NEW(offsets, d->grid->size + 1, purpose)));
    BW_GO(bw_collect(d->grid, d->sums, targets * (int64_t)sizeof *d->sums, &all, offsets));
    if (d->grid->rank == 0)
        fill_rows((const bw_fidelity *)(const void *)all, d->grid->size, targets, rows);
done:
    bw_free(offsets);
    bw_free(all);
    return status;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------ */
static int allocate(dense *d)
{
    int64_t most = TABLE_ROWS * d->spec->d_model, packed = 0;
    for (int i = 0; i < d->count; ++i) {
        bw_bcyc cut = cut_of(d, &d->weights[i]);
        int64_t entries = (int64_t)cut.mb * cut.nb;
        int64_t parts = (cut.nb + BW_ROUND_COLUMNS - 1) / BW_ROUND_COLUMNS, floats = bw_round_floats(d->adapter->r, cut.nb);
        most = most > entries ? most : entries;
        packed = packed > floats ? packed : floats;
        d->n_parts = d->n_parts > parts ? d->n_parts : parts;
    }
    BW_TRY(BW_NEW(d->base, most, purpose));
    BW_TRY(BW_NEW(d->back, most, purpose));
    BW_TRY(BW_NEW(d->packed, packed, purpose));
    BW_TRY(BW_NEW(d->parts, d->n_parts, purpose));
    d->rounded = bw_calloc(most, 4, purpose);
    BW_TRY(d->rounded ? BW_OK : BW_SYSTEM);
    return BW_NEW(d->sums, (int64_t)d->spec->n_layer * BW_TARGETS, purpose);
}

static int prepare(dense *d)
{
    BW_TRY(list_weights(d));
    BW_TRY(plan_shards(d));
    return allocate(d);
}

static void dense_free(dense *d)
{
    for (int i = 0; i < d->n_shards; ++i) {
        if (d->shards[i].descriptor >= 0)
            close(d->shards[i].descriptor);
        bw_text_free(&d->shards[i].header);
    }
    bw_gather_destroy(&d->gather);
    bw_shared_free(d->grid, &d->factors);
    void *owned[] = {d->weights, d->specs, d->shards, d->base, d->back, d->rounded, d->packed, d->parts, d->sums};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; ++i)
        bw_free(owned[i]);
}

int bw_dense_write(const bw_grid *grid, const bw_source *source, const bw_adapter *adapter, const char *folder, bw_dtype dtype,
                   const bw_config *config, bw_merge_row *rows)
{
    dense d = {.grid = grid, .source = source, .spec = bw_source_spec(source), .adapter = adapter, .folder = folder, .dtype = dtype};
    d.block = (int)config->block;
    bw_rounds rounds = bw_rounds_begin(config->time_limit);
    int status;
    BW_GO(bw_agree(grid, prepare(&d)));
    BW_GO(bw_agree(grid, bw_shared_create(grid, &d.factors, layer_floats(&d) * (int64_t)sizeof(float), purpose)));
    BW_GO(bw_gather_create(&d.gather, grid));
    BW_GO(open_shards(&d));
    for (int layer = 0; layer < d.spec->n_layer; ++layer) {
        BW_GO(write_layer(&d, layer));
        bw_progress("merge: writing layer %d of %d", layer + 1, d.spec->n_layer);
        BW_GO(bw_agree(grid, bw_rounds_next(&rounds, "merge, writing layers", layer + 1, d.spec->n_layer)));
    }
    BW_GO(write_tables(&d));
    BW_GO(bw_agree(grid, close_shards(&d)));
    BW_GO(collect_fidelity(&d, rows));
    status = grid->rank == 0 && d.n_shards > 1 ? write_index(&d) : BW_OK;
    if (grid->rank == 0 && status == BW_OK)
        status = bw_source_write_config(source, folder, dtype);
    status = bw_agree(grid, status);
done:
    dense_free(&d);
    return status;
}

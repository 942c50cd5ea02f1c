/* model/source_random.c - a model of given sizes with random weights: for measurements that need no file. */
#include "model/source.h"
#include <stdlib.h>
#include <string.h>

/* All tensors share one table of random numbers, each from another place in it: a model of 8 billion weights then needs no 16 GB here. */
typedef struct random_weights {
    bw_tensor *tensors;
    uint16_t *table, *ones; /* bf16 */
    int64_t count;
} random_weights;

static const uint16_t BF16_ONE = 0x3f80;

static int fill(random_weights *w, const bw_spec *spec, uint64_t seed)
{
    int64_t widest = spec->d_ff > spec->d_model ? spec->d_ff : spec->d_model;
    float *row;
    w->count = (spec->vocab > widest ? spec->vocab : widest) * spec->d_model;
    BW_TRY(BW_NEW(w->table, w->count, "model headers"));
    BW_TRY(BW_NEW(w->ones, spec->d_model, "model headers"));
    BW_TRY(BW_NEW(row, spec->d_model, "model headers"));
    for (int64_t i = 0; i < spec->d_model; i++)
        w->ones[i] = BF16_ONE;
    const bw_key key = {.seed = seed, .purpose = BW_PURPOSE_TEST};
    for (int64_t at = 0; at < w->count; at += spec->d_model) {
        for (int64_t j = 0; j < spec->d_model; j++) {
            uint32_t bits[4];
            if (j % 4 == 0)
                bw_rng(&key, (uint32_t)((at + j) / 4), bits);
            row[j] = 0.14f * (bw_rng_uniform(bits[j % 4]) - 0.5f); /* a deviation of 0.04, about what such models have */
        }
        bw_from_f32(w->table + at, row, BW_BF16, spec->d_model);
    }
    bw_free(row);
    return BW_OK;
}

static const bw_tensor *matrix(random_weights *w, int index, int64_t rows, int64_t cols)
{
    int64_t room = w->count - rows * cols, first = room > 0 ? (int64_t)index * 1000003 % room : 0;
    w->tensors[index] = (bw_tensor){.name = "random",
                                    .dtype = BW_BF16,
                                    .n_dims = 2,
                                    .shape = {rows, cols},
                                    .data = (const uint8_t *)(w->table + first),
                                    .bytes = rows * cols * (int64_t)sizeof *w->table};
    return &w->tensors[index];
}

static const bw_tensor *vector(random_weights *w, int index, int64_t size)
{
    w->tensors[index] = (bw_tensor){
        .name = "ones", .dtype = BW_BF16, .n_dims = 1, .shape = {size}, .data = (const uint8_t *)w->ones, .bytes = size * (int64_t)sizeof *w->ones};
    return &w->tensors[index];
}

static void point(bw_source *source, random_weights *w)
{
    const bw_spec *spec = &source->spec;
    int next = 0;
    for (int i = 0; i < spec->n_layer * BW_TARGETS; i++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)(i % BW_TARGETS), &out, &in);
        source->targets[i] = matrix(w, next++, out, in);
    }
    for (int i = 0; i < spec->n_layer * BW_LAYER_VECTORS; i++)
        source->vectors[i] = vector(w, next++, spec->d_model);
    source->tables[BW_TABLE_EMBED] = matrix(w, next++, spec->vocab, spec->d_model);
    source->tables[BW_TABLE_NORM] = vector(w, next++, spec->d_model);
    source->tables[BW_TABLE_HEAD] = spec->tied ? source->tables[BW_TABLE_EMBED] : matrix(w, next++, spec->vocab, spec->d_model);
}

void bw_source_random_free(bw_source *source)
{
    random_weights *w = source->random;
    if (!w)
        return;
    bw_free(w->tensors);
    bw_free(w->table);
    bw_free(w->ones);
    bw_free(w);
}

int bw_source_random(bw_source **out, const bw_spec *spec, uint64_t seed)
{
    const int layers = spec->n_layer;
    bw_source *source;
    random_weights *w = NULL;
    int status;
    *out = NULL;
    BW_TRY(BW_NEW(source, 1, "model headers"));
    source->spec = *spec;
    source->family = bw_family_named(spec->family);
    BW_GO(source->family ? BW_OK : bw_fail(BW_BUG, "no family of models is called '%s'", spec->family));
    BW_GO(BW_NEW(source->path, 1, "model headers"));
    BW_GO(BW_NEW(source->targets, layers * BW_TARGETS, "model headers"));
    BW_GO(BW_NEW(source->vectors, layers * BW_LAYER_VECTORS, "model headers"));
    BW_GO(BW_NEW(w, 1, "model headers"));
    source->random = w;
    BW_GO(BW_NEW(w->tensors, layers * (BW_TARGETS + BW_LAYER_VECTORS) + BW_TABLES, "model headers"));
    BW_GO(fill(w, spec, seed));
    point(source, w);
    *out = source;
    return BW_OK;
done:
    bw_source_close(source);
    return status;
}

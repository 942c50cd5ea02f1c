/* bench/ranks.c - what goes between ranks and to files: gathering a layer, summing gradients, checkpoints. */
#include "base/half.h"
#include "bench/bench.h"
#include "breakwater/train.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- gather: the pieces of a layer to one dense copy a node ---------------------------------------------------------------- */

typedef struct gathering {
    bw_bench *bench;
    bw_gather *gather;
    bw_shared dense;
    bw_matrix pieces[BW_TARGETS];
    bw_gather_item items[BW_TARGETS];
    double bytes; /* of the layer: read from pieces, and written in the type that products take */
} gathering;

static const struct {
    bw_piece_type piece;
    bw_dtype dtype;
    int bytes;
} types[] = {{BW_PIECE_F32, BW_F32, 4}, {BW_PIECE_BF16, BW_BF16, 2}, {BW_PIECE_F16, BW_F16, 2}};

/* The type of the model's file; what is quantised there is held as f32. */
static int type_of(const bw_bench *bench, bw_target target)
{
    bw_dtype dtype = bw_source_dtype(bench->source, 0, target);
    return dtype == BW_BF16 ? 1 : dtype == BW_F16 ? 2 : 0;
}

typedef struct filling {
    const bw_bench *bench;
    bw_target target;
} filling;

static int fill_block(void *context, const bw_matrix *piece, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const filling *f = context;
    const int type = type_of(f->bench, f->target);
    float *column;
    BW_TRY(BW_NEW(column, rows, "bench"));
    int status = BW_OK;
    for (int64_t c = 0; status == BW_OK && c < cols; c++) {
        status = bw_source_read(f->bench->source, 0, f->target, i, rows, j + c, 1, column, 1);
        if (status == BW_OK)
            bw_from_f32((char *)block + c * piece->ld * types[type].bytes, column, types[type].dtype, rows);
    }
    bw_free(column);
    return status;
}

static int create_pieces(gathering *g)
{
    const int block = (int)g->bench->config->block;
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(g->bench->spec, (bw_target)target, &out, &in);
        const int type = type_of(g->bench, (bw_target)target);
        filling f = {g->bench, (bw_target)target};
        BW_TRY(bw_matrix_create(&g->pieces[target], g->bench->grid, types[type].piece, out, in, block, block, "bench"));
        BW_TRY(bw_matrix_visit(&g->pieces[target], fill_block, &f));
        g->bytes += (double)(out * in) * (double)(types[type].bytes + bw_weight_entry_bytes());
    }
    return BW_OK;
}

static int gathering_create(gathering *g, bw_bench *bench)
{
    int64_t entries = 0;
    *g = (gathering){.bench = bench};
    BW_TRY(bw_agree(bench->grid, create_pieces(g)));
    for (int target = 0; target < BW_TARGETS; target++)
        entries += g->pieces[target].layout.m * bw_weight_ld(g->pieces[target].layout.n);
    BW_TRY(bw_agree(bench->grid, bw_shared_create(bench->grid, &g->dense, entries * bw_weight_entry_bytes(), "bench")));
    BW_TRY(bw_gather_create(&g->gather, bench->grid));
    char *at = g->dense.base;
    for (int target = 0; target < BW_TARGETS; target++) {
        const bw_bcyc *l = &g->pieces[target].layout;
        g->items[target] = (bw_gather_item){.piece = &g->pieces[target], .dense = at, .ld = bw_weight_ld(l->n), .half = bw_gemm_is_half()};
        at += l->m * bw_weight_ld(l->n) * bw_weight_entry_bytes();
    }
    return BW_OK;
}

static void gathering_free(gathering *g)
{
    bw_gather_destroy(&g->gather);
    if (g->dense.base)
        bw_shared_free(g->bench->grid, &g->dense);
    for (int target = 0; target < BW_TARGETS; target++)
        bw_matrix_free(&g->pieces[target]);
}

static int run_gather(void *context)
{
    gathering *g = context;
    BW_TRY(bw_gather_start(g->gather, g->items, BW_TARGETS));
    return bw_gather_finish(g->gather);
}

static double gathered(const bw_gather_item *item, int64_t at)
{
    return (double)(item->half ? bw_from_bf16(((const uint16_t *)item->dense)[at]) : ((const float *)item->dense)[at]);
}

/* Against the model's file, rounded as it was gathered: largest difference; there is none. */
static int check_gather(const gathering *g, double *residual)
{
    *residual = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        const bw_gather_item *item = &g->items[target];
        int64_t m = item->piece->layout.m, n = item->piece->layout.n;
        float *row;
        BW_TRY(BW_NEW(row, n, "bench"));
        int status = BW_OK;
        for (int64_t i = 0; status == BW_OK && i < m; i++) {
            status = bw_source_read(g->bench->source, 0, (bw_target)target, i, 1, 0, n, row, n);
            for (int64_t j = 0; status == BW_OK && j < n; j++)
                *residual =
                    fmax(*residual, fabs(gathered(item, i * item->ld + j) - (double)(item->half ? bw_from_bf16(bw_to_bf16(row[j])) : row[j])));
        }
        bw_free(row);
        BW_TRY(status);
    }
    return BW_OK;
}

int bw_bench_gather(bw_bench *bench)
{
    gathering g = {.bench = bench};
    bw_bench_row row = {.problem = "one layer, pieces to fp32", .unit = BW_GBYTES, .limit_name = "memcpy"};
    int status;
    row.limit = bench->copy * bench->grid->node_size;
    BW_GO(gathering_create(&g, bench));
    row.work = g.bytes;
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_gather, .context = &g}, &row.times));
    BW_GO(bw_agree(bench->grid, check_gather(&g, &row.residual)));
    status = bw_bench_add(bench, &row);
done:
    gathering_free(&g);
    return status;
}

/* ---- allreduce: int64 sums of a step's gradients, beside MPI's own of as many floats ---------------------------------------- */

typedef struct sums {
    bw_bench *bench;
    bw_reduce *reduce;
    float *gradient, *plain;
    int *exponents;
    int64_t entries;
    int buckets;
} sums;

static int sums_create(sums *s, bw_bench *bench)
{
    const bw_spec *spec = bench->spec;
    unsigned mask;
    int64_t layer = 0, *sizes = NULL;
    int *bucket_of = NULL;
    *s = (sums){.bench = bench, .buckets = spec->n_layer};
    BW_TRY(bw_targets_parse(bench->config->targets, &mask));
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        layer += mask >> target & 1u ? (out + in) * bench->config->lora_r : 0;
    }
    s->entries = layer * s->buckets;
    int status = BW_NEW(sizes, s->buckets, "bench");
    if (status == BW_OK)
        status = BW_NEW(bucket_of, s->buckets, "bench");
    if (status == BW_OK)
        status = BW_NEW(s->gradient, layer, "bench");
    if (status == BW_OK)
        status = BW_NEW(s->plain, s->entries, "bench");
    if (status == BW_OK)
        status = BW_NEW(s->exponents, s->buckets, "bench");
    BW_GO(bw_agree(bench->grid, status));
    for (int i = 0; i < s->buckets; i++) {
        sizes[i] = layer;
        bucket_of[i] = i;
    }
    for (int64_t i = 0; i < layer; i++)
        s->gradient[i] = (float)((i % 17 - 8) * (bench->grid->rank + 1)) * 0x1p-10f;
    status = bw_reduce_create(&s->reduce, bench->grid, s->buckets, sizes, bucket_of, s->buckets);
done:
    bw_free(sizes);
    bw_free(bucket_of);
    return status;
}

static void sums_free(sums *s)
{
    bw_reduce_destroy(&s->reduce);
    bw_free(s->gradient);
    bw_free(s->plain);
    bw_free(s->exponents);
}

static int add_all(void *context)
{
    sums *s = context;
    for (int i = 0; i < s->buckets; i++)
        bw_reduce_add(s->reduce, i, s->gradient);
    return BW_OK;
}

static int begin(void *context)
{
    sums *s = context;
    bw_reduce_begin(s->reduce);
    return BW_OK;
}

static int begin_and_add(void *context)
{
    BW_TRY(begin(context));
    return add_all(context);
}

static int sum_all(void *context)
{
    sums *s = context;
    for (int i = 0; i < s->buckets; i++)
        BW_TRY(bw_reduce_launch(s->reduce, i));
    return bw_reduce_finish(s->reduce);
}

static int clear_plain(void *context)
{
    sums *s = context;
    memset(s->plain, 0, (size_t)s->entries * sizeof *s->plain);
    return BW_OK;
}

static int sum_plain(void *context)
{
    sums *s = context;
    return bw_plain_sum(s->bench->grid, s->plain, s->entries);
}

static double check_sums(const sums *s)
{
    double worst = 0, ranks = (double)s->bench->grid->size * (s->bench->grid->size + 1) / 2;
    bw_reduce_exponents(s->reduce, s->exponents, false);
    for (int b = 0; b < s->buckets; b++)
        for (int64_t i = 0; i < s->entries / s->buckets; i++)
            worst = fmax(worst, fabs(ldexp((double)bw_reduce_sum(s->reduce, b)[i], -s->exponents[b]) - (double)(i % 17 - 8) * ranks * 0x1p-10));
    return worst;
}

int bw_bench_allreduce(bw_bench *bench)
{
    sums s = {0};
    bw_bench_row round = {.problem = "floats to int64, added", .unit = BW_MENTRIES, .limit = bench->copy / 20, .limit_name = "memcpy"};
    bw_bench_row plain = {.unit = BW_MENTRIES}, exact = {.unit = BW_MENTRIES, .limit_name = "plain sum"};
    int status;
    BW_GO(sums_create(&s, bench));
    double entries = (double)s.entries;
    round.work = plain.work = exact.work = entries;
    snprintf(plain.problem, sizeof plain.problem, "MPI_Allreduce, %.2f M floats", entries * 1e-6);
    snprintf(exact.problem, sizeof exact.problem, "int64 sums, %.2f M entries", entries * 1e-6);
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = add_all, .prepare = begin, .context = &s}, &round.times));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = sum_plain, .prepare = clear_plain, .context = &s}, &plain.times));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = sum_all, .prepare = begin_and_add, .context = &s}, &exact.times));
    round.residual = exact.residual = check_sums(&s);
    exact.limit = bench->grid->size > 1 ? entries / plain.times.median : 0; /* one rank has nothing to send */
    BW_GO(bw_bench_add(bench, &round));
    BW_GO(bw_bench_add(bench, &plain));
    status = bw_bench_add(bench, &exact);
done:
    sums_free(&s);
    return status;
}

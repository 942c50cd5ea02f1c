/* bench/bench.c - the benchmark: which parts there are, what the machine allows, the table. */
#include "bench/bench.h"
#include "breakwater/num.h"
#include <math.h>
#include <omp.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(bw_bench *bench);
} parts[] = {
    {"gemm", bw_bench_gemm},           {"layers", bw_bench_layers}, {"attention", bw_bench_attention},
    {"step", bw_bench_step},           {"decode", bw_bench_decode}, {"gather", bw_bench_gather},
    {"allreduce", bw_bench_allreduce}, {"merge", bw_bench_merge},   {"checkpoint", bw_bench_checkpoint},
};

/* ---- limits -------------------------------------------------------------------------------------------------------------- */

typedef struct burst {
    double flops;
    float result;
} burst;

static int run_burst(void *context)
{
    burst *b = context;
    b->flops = bw_fma_burst(1 << 18, &b->result);
    return BW_OK;
}

typedef struct copies {
    char *from, *to;
    int64_t bytes;
} copies;

static int run_copy(void *context)
{
    const copies *c = context;
#pragma omp parallel
    {
        int64_t n = omp_get_num_threads(), i = omp_get_thread_num(), first = c->bytes / n * i, last = i + 1 < n ? c->bytes / n * (i + 1) : c->bytes;
        memcpy(c->to + first, c->from + first, (size_t)(last - first));
    }
    return BW_OK;
}

static int measure_fma(bw_bench *bench)
{
    burst b = {0};
    bw_bench_row row = {.problem = "multiply-add, registers only", .unit = BW_GFLOPS};
    BW_TRY(bw_bench_time(bench, &(bw_bench_work){.run = run_burst, .context = &b}, &row.times));
    row.work = b.flops;
    row.residual = fabs((double)b.result - 24 * bench->threads);
    row.bound = 1e-3 * bench->threads;
    bench->fma = b.flops / row.times.median;
    return bw_bench_add(bench, &row);
}

int bw_bench_copy_rate(const bw_bench *bench, int64_t bytes, double *rate, bw_bench_row *row)
{
    copies c = {.bytes = bytes};
    bw_bench_times times;
    int status = BW_NEW(c.from, c.bytes, "bench");
    if (status == BW_OK)
        status = BW_NEW(c.to, c.bytes, "bench");
    BW_GO(bw_agree(bench->grid, status));
    memset(c.from, 1, (size_t)c.bytes);
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_copy, .context = &c}, &times));
    *rate = 2.0 * (double)bytes / times.median;
    if (row) {
        row->work = 2.0 * (double)bytes;
        row->times = times;
        row->residual = memcmp(c.from, c.to, (size_t)c.bytes) != 0;
    }
done:
    bw_free(c.from);
    bw_free(c.to);
    return status;
}

static int measure_copy(bw_bench *bench)
{
    bw_bench_row row = {.problem = "memcpy 128 MiB, read + written", .unit = BW_GBYTES};
    BW_TRY(bw_bench_copy_rate(bench, 128 << 20, &bench->copy, &row));
    return bw_bench_add(bench, &row);
}

static int measure_limits(bw_bench *bench)
{
    bench->part = "limits";
    BW_TRY(measure_fma(bench));
    return measure_copy(bench);
}

/* ---- the run --------------------------------------------------------------------------------------------------------------- */

static bool is_named(const char *list, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at += length)
        if ((at == list || at[-1] == ',') && (at[length] == ',' || !at[length]))
            return true;
    return false;
}

static int open_source(bw_bench *bench)
{
    static const bw_spec smollm2 = {.family = "llama",
                                    .n_layer = 30,
                                    .n_head = 9,
                                    .n_kv = 3,
                                    .head_dim = 64,
                                    .d_model = 576,
                                    .d_ff = 1536,
                                    .vocab = 49152,
                                    .max_positions = 8192,
                                    .norm_eps = 1e-5,
                                    .rope_theta = 100000,
                                    .embed_scale = 1,
                                    .tied = true};
    int status = bench->config->model ? bw_source_open(&bench->source, bench->config->model)
                                      : bw_source_random(&bench->source, &smollm2, (uint64_t)bench->config->seed);
    BW_TRY(bw_agree(bench->grid, status));
    bench->spec = bw_source_spec(bench->source);
    return BW_OK;
}

int bw_bench_store(bw_bench *bench, bool backward)
{
    bw_store_close(&bench->store);
    return bw_store_open(&bench->store, bench->grid, bench->source, bench->config, backward, NULL, NULL, 0);
}

static int measure_parts(bw_bench *bench)
{
    BW_TRY(bw_agree(bench->grid, bw_bench_head(bench)));
    BW_TRY(measure_limits(bench));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (is_named(bench->config->parts, parts[i].name)) {
            bench->part = parts[i].name;
            BW_TRY(parts[i].run(bench));
        }
    return BW_OK;
}

static int finish(bw_bench *bench)
{
    const bw_config *config = bench->config;
    if (bench->grid->rank != 0)
        return BW_OK;
    bw_info("min, median, max: of the ranks' medians. rate: of the slowest rank; of all ranks together for step, decode, gather, allreduce, merge,\n"
            "checkpoint, of one rank else. cpu: share of the time that the rank had its cores: below 100%% other work ran, or it waited.");
    if (config->csv)
        BW_TRY(bw_file_write(config->csv, bench->csv.data, bench->csv.length, 0644));
    return bench->wrong ? bw_fail(BW_BUG, "bench: %d of the results above are wrong: their rows say WRONG", bench->wrong) : BW_OK;
}

int bw_bench_run(const bw_grid *grid, const bw_config *config)
{
    bw_bench bench = {.grid = grid, .config = config, .threads = omp_get_max_threads()};
    int status = open_source(&bench);
    if (status == BW_OK) {
        bw_info("shapes of %s, %s, %lld repetitions", config->model ? config->model : "SmolLM2-135M with random weights", bw_gemm_describe(),
                (long long)config->repetitions);
        status = measure_parts(&bench);
    }
    if (status == BW_OK)
        status = bw_agree(grid, finish(&bench));
    bw_store_close(&bench.store);
    bw_source_close(bench.source);
    bw_text_free(&bench.csv);
    return status;
}

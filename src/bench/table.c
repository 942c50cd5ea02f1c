/* bench/table.c - timing, and the rows that come of it. */
#include "bench/bench.h"
#include <stdlib.h>
#include <time.h>

const bw_bench_unit BW_GFLOPS = {"GFLOP/s", 1e9}, BW_GBYTES = {"GB/s", 1e9}, BW_TOKENS = {"tokens/s", 1}, BW_MENTRIES = {"Mentries/s", 1e6},
                    BW_PAIRS = {"pairs/s", 1};

static const double SHORT = 0.02; /* seconds: the clock and the start of all ranks are small beside it */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* ---- timing ------------------------------------------------------------------------------------------------------------ */

static double processor_seconds(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int run_once(const bw_bench *bench, const bw_bench_work *work, int times, double *seconds, double *cpu)
{
    int status = work->prepare ? work->prepare(work->context) : BW_OK;
    BW_TRY(bw_agree(bench->grid, status));
    double start = bw_now(), cpu_start = processor_seconds();
    for (int i = 0; status == BW_OK && i < times; i++)
        status = work->run(work->context);
    *seconds = (bw_now() - start) / times;
    *cpu += processor_seconds() - cpu_start;
    return bw_agree(bench->grid, status);
}

/* How often a run has to be repeated to fill SHORT on the fastest rank; the same on every rank. */
static int choose_times(const bw_bench *bench, const bw_bench_work *work, double warm_up, int *times)
{
    double fastest, slowest;
    BW_TRY(bw_min_max(bench->grid, warm_up, &fastest, &slowest));
    double wanted = SHORT / (fastest > 1e-7 ? fastest : 1e-7);
    *times = work->prepare || wanted < 1 ? 1 : wanted > 1e5 ? 100000 : (int)wanted + 1;
    return BW_OK;
}

int bw_bench_time(const bw_bench *bench, const bw_bench_work *work, bw_bench_times *out)
{
    int repetitions = (int)bench->config->repetitions, times = 1, status;
    double *seconds = NULL, warm_up = 0, cpu = 0, wall = 0;
    BW_GO(bw_agree(bench->grid, BW_NEW(seconds, repetitions, "bench")));
    BW_GO(run_once(bench, work, 1, &warm_up, &cpu));
    BW_GO(choose_times(bench, work, warm_up, &times));
    cpu = 0;
    for (int i = 0; i < repetitions; i++) {
        BW_GO(run_once(bench, work, times, &seconds[i], &cpu));
        wall += seconds[i] * times;
    }
    out->median = median(seconds, repetitions); /* sorts */
    out->best = seconds[0];
    out->cpu = cpu / (wall * bench->threads);
done:
    bw_free(seconds);
    return status;
}

/* ---- the table ---------------------------------------------------------------------------------------------------------- */

typedef struct spread { /* of the ranks' medians, and of other facts of the ranks what matters most */
    double best, min, median, max, cpu, residual;
} spread;

typedef struct share {
    double best, median, cpu, residual;
} share;

static int spread_of(const share *all, int size, spread *out)
{
    double *medians;
    BW_TRY(BW_NEW(medians, size, "bench"));
    *out = (spread){.best = 0, .cpu = all[0].cpu};
    for (int i = 0; i < size; i++) {
        medians[i] = all[i].median;
        out->best = all[i].best > out->best ? all[i].best : out->best;
        out->cpu = all[i].cpu < out->cpu ? all[i].cpu : out->cpu;
        out->residual = all[i].residual <= out->residual ? out->residual : all[i].residual; /* a NaN stays */
    }
    out->median = median(medians, size);
    out->min = medians[0];
    out->max = medians[size - 1];
    bw_free(medians);
    return BW_OK;
}

static const char csv_head[] = "part,problem,ranks,threads,repetitions,best_s,min_s,median_s,max_s,rate,unit,limit,limit_of,share,cpu,residual,bound,"
                               "result\n";

int bw_bench_head(bw_bench *bench)
{
    bw_info("%-10s %-36s %6s %4s %12s %12s %12s %10s %-10s %9s %6s %4s %8s", "part", "problem", "r x t", "reps", "min ms", "median ms", "max ms",
            "rate", "", "of", "share", "cpu", "resid");
    return bw_text_addf(&bench->csv, "%s", csv_head);
}

static int write_row(bw_bench *bench, const bw_bench_row *row, const spread *s)
{
    double rate = row->work / s->max / row->unit.size, limit = row->limit / row->unit.size;
    bool right = s->residual <= row->bound; /* false for a NaN */
    const char *result = right ? "ok" : "WRONG";
    char ranks[24], of[24] = "-";
    snprintf(ranks, sizeof ranks, "%d x %d", bench->grid->size, bench->threads);
    if (limit > 0)
        snprintf(of, sizeof of, "%.0f%%", 100 * rate / limit);
    bw_info("%-10s %-36s %6s %4d %12.4f %12.4f %12.4f %10.1f %-10s %9s %6s %3.0f%% %8.1e %s", bench->part, row->problem, ranks,
            (int)bench->config->repetitions, s->min * 1e3, s->median * 1e3, s->max * 1e3, rate, row->unit.name, limit > 0 ? row->limit_name : "-", of,
            100 * s->cpu, s->residual, result);
    bench->wrong += !right;
    return bw_text_addf(&bench->csv, "%s,\"%s\",%d,%d,%d,%.9g,%.9g,%.9g,%.9g,%.6g,%s,%.6g,%s,%.4f,%.3f,%.3g,%.3g,%s\n", bench->part, row->problem,
                        bench->grid->size, bench->threads, (int)bench->config->repetitions, s->best, s->min, s->median, s->max, rate, row->unit.name,
                        limit, limit > 0 ? row->limit_name : "", limit > 0 ? rate / limit : 0, s->cpu, s->residual, row->bound, result);
}

int bw_bench_add(bw_bench *bench, const bw_bench_row *row)
{
    const bw_grid *grid = bench->grid;
    share mine = {row->times.best, row->times.median, row->times.cpu, row->residual};
    char *all = NULL;
    int64_t *offsets = NULL;
    spread s;
    int status;
    BW_GO(bw_agree(grid, BW_NEW(offsets, grid->size + 1, "bench")));
    BW_GO(bw_collect(grid, &mine, sizeof mine, &all, offsets));
    if (grid->rank == 0) {
        status = spread_of((const share *)(const void *)all, grid->size, &s);
        if (status == BW_OK)
            status = write_row(bench, row, &s);
    }
    BW_GO(bw_agree(grid, status));
done:
    bw_free(offsets);
    bw_free(all);
    return status;
}

/* ---- test data ------------------------------------------------------------------------------------------------------------ */

/* A linear congruential sequence (Knuth's MMIX constants): Philox would take longer than some of what is measured. */
float *bw_bench_floats(int64_t n, uint32_t name, float size)
{
    float *x = bw_calloc(n, sizeof *x, "bench");
    uint64_t state = 0x9e3779b97f4a7c15u * (name + 1u);
    for (int64_t i = 0; x && i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(int32_t)(state >> 32) * 0x1p-31f * size;
    }
    return x;
}

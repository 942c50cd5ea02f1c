/* bench/bench.h - what the parts of the benchmark share: the limits of the machine, timing, the table. Private to bench/. */
#ifndef BREAKWATER_BENCH_BENCH_H
#define BREAKWATER_BENCH_BENCH_H
#include "breakwater/bench.h"
#include "breakwater/model.h"

typedef struct bw_bench {
    const bw_grid *grid;
    const bw_config *config;
    bw_source *source;
    const bw_spec *spec;
    bw_store *store; /* of the last part that asked for one: bw_bench_store */
    int threads;     /* of a rank */
    double fma;      /* limits, of one rank while all ranks are at it: multiply-adds from registers, flop/s */
    double copy;     /* memcpy beyond the caches, bytes read and written a second */
    const char *part;
    bw_text csv;
    int wrong; /* rows whose residual is out of bounds */
} bw_bench;

/* ---- timing ----------------------------------------------------------------------------------------------------------- */
typedef struct bw_bench_work {
    int (*run)(void *context);
    int (*prepare)(void *context); /* before each run, not timed; NULL: none, and a short run is repeated until it fills 20 ms */
    void *context;
} bw_bench_work;
typedef struct bw_bench_times { /* of this rank, seconds of one run */
    double best, median;
    double cpu; /* processor seconds per second and thread: below 1 it waited, or other work had the cores */
} bw_bench_times;
/* One run to warm up, then --repetitions; all ranks start each together. Collective on world. */
int bw_bench_time(const bw_bench *bench, const bw_bench_work *work, bw_bench_times *times);

/* ---- the table --------------------------------------------------------------------------------------------------------- */
typedef struct bw_bench_unit {
    const char *name;
    double size;
} bw_bench_unit;
extern const bw_bench_unit BW_GFLOPS, BW_GBYTES, BW_TOKENS, BW_MENTRIES, BW_PAIRS;

typedef struct bw_bench_row {
    char problem[48];
    double work; /* of one run, in flops, bytes, ...: of this rank, or of all ranks where they work on one thing */
    bw_bench_unit unit;
    double limit; /* work a second that the machine would allow; 0: none known */
    const char *limit_name;
    double residual, bound; /* the result is right when residual <= bound */
    bw_bench_times times;
} bw_bench_row;
/* rate = work / time of the slowest rank. Collective on world; rank 0 prints. */
int bw_bench_add(bw_bench *bench, const bw_bench_row *row);
int bw_bench_head(bw_bench *bench);

/* memcpy of so many bytes at a time: bytes read and written a second, and with `row` how that went. Collective on world. */
int bw_bench_copy_rate(const bw_bench *bench, int64_t bytes, double *rate, bw_bench_row *row);

/* ---- shared by parts ---------------------------------------------------------------------------------------------------- */
/* n floats in (-size, size), the same for the same name; NULL: out of memory, message recorded. */
float *bw_bench_floats(int64_t n, uint32_t name, float size);
int bw_bench_store(bw_bench *bench, bool backward);
/* Flop/s of one rank on the model's own products with `rows` rows: forward, with `backward` also that of the input's gradient; the head on
 * `answers` rows. Collective on world. */
int bw_bench_gemm_rate(bw_bench *bench, int64_t rows, int64_t answers, bool backward, double *rate);

/* ---- parts: collective on world -------------------------------------------------------------------------------------------- */
int bw_bench_gemm(bw_bench *bench);
int bw_bench_layers(bw_bench *bench);
int bw_bench_attention(bw_bench *bench);
int bw_bench_step(bw_bench *bench);
int bw_bench_decode(bw_bench *bench);
int bw_bench_gather(bw_bench *bench);
int bw_bench_allreduce(bw_bench *bench);
int bw_bench_merge(bw_bench *bench);
int bw_bench_checkpoint(bw_bench *bench);
#endif

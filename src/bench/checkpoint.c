/* bench/checkpoint.c - writing and reading a training state, beside MPI's own writing and reading of as many bytes. */
#include "bench/bench.h"
#include "breakwater/train.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct saving {
    bw_bench *bench;
    bw_state state;
    bw_matrix **matrices; /* factors, then moments */
    int count;
    char folder[4096], plain[4200];
    char *bytes; /* this rank's share of as many as the checkpoint has */
    int64_t share;
} saving;

/* A folder of our own under --output, or where temporary files go; the same name on every rank. */
static int choose_folder(saving *s)
{
    const bw_grid *grid = s->bench->grid;
    const char *temporary = getenv("TMPDIR"), *base = s->bench->config->output;
    base = base ? base : temporary && *temporary ? temporary : "/tmp";
    int length = snprintf(s->folder, sizeof s->folder, "%s/breakwater-bench-%ld", base, (long)getpid());
    BW_TRY(bw_agree(grid, length < (int)sizeof s->folder ? BW_OK : bw_fail(BW_USAGE, "--output %s: the path is too long", base)));
    BW_TRY(bw_broadcast(grid, s->folder, sizeof s->folder));
    snprintf(s->plain, sizeof s->plain, "%s/plain", s->folder);
    return bw_agree(grid, grid->rank == 0 ? bw_dir_make(s->folder) : BW_OK);
}

static int create_moments(saving *s)
{
    int tensor = 0;
    BW_TRY(BW_NEW(s->matrices, 6 * s->bench->spec->n_layer * BW_TARGETS, "bench"));
    BW_TRY(BW_NEW(s->state.moments, 4 * s->bench->spec->n_layer * BW_TARGETS, "bench"));
    BW_TRY(BW_NEW(s->state.exponents, 2 * s->bench->spec->n_layer * BW_TARGETS, "bench"));
    for (int i = 0; i < s->bench->spec->n_layer * BW_TARGETS; i++) {
        bw_pair *pair = bw_adapter_pair(s->state.adapter, i / BW_TARGETS, (bw_target)(i % BW_TARGETS));
        bw_matrix *factors[] = {pair ? &pair->A : NULL, pair ? &pair->B : NULL};
        for (int f = 0; pair && f < 2; f++, tensor++) {
            const bw_bcyc *l = &factors[f]->layout;
            s->matrices[s->count++] = factors[f];
            for (int m = 2 * tensor; m < 2 * tensor + 2; m++) {
                BW_TRY(bw_matrix_create(&s->state.moments[m], s->bench->grid, BW_PIECE_F32, l->m, l->n, l->mb, l->nb, "bench"));
                s->matrices[s->count++] = &s->state.moments[m];
            }
        }
    }
    s->state.tensors = tensor;
    return BW_OK;
}

static int fill(saving *s)
{
    for (int i = 0; i < s->count; i++) {
        int64_t n = s->matrices[i]->rows * s->matrices[i]->cols;
        float *values = bw_bench_floats(n, (uint32_t)i, 1);
        if (!values)
            return BW_SYSTEM;
        memcpy(s->matrices[i]->data, values, (size_t)n * sizeof *values);
        bw_free(values);
    }
    return BW_OK;
}

static int saving_create(saving *s, bw_bench *bench)
{
    const bw_config *config = bench->config;
    const int ranks = bench->grid->nprow * bench->grid->npcol;
    unsigned mask;
    *s = (saving){.bench = bench, .state = {.step = 1, .micro_batches = 1}};
    BW_TRY(choose_folder(s));
    int status = bw_targets_parse(config->targets, &mask);
    if (status == BW_OK)
        status = bw_adapter_create(&s->state.adapter, bench->grid, bench->spec, mask, (int)config->lora_r, config->lora_alpha, 0, (int)config->block);
    if (status == BW_OK)
        status = create_moments(s);
    if (status == BW_OK)
        status = fill(s);
    s->share = status == BW_OK ? 12 * bw_adapter_parameters(s->state.adapter) / ranks : 0;
    if (status == BW_OK)
        status = BW_NEW(s->bytes, s->share, "bench");
    return bw_agree(bench->grid, status);
}

static void saving_free(saving *s)
{
    for (int i = 0; s->state.moments && i < 2 * s->state.tensors; i++)
        bw_matrix_free(&s->state.moments[i]);
    bw_free(s->state.moments);
    bw_free(s->state.exponents);
    bw_free(s->matrices);
    bw_free(s->bytes);
    bw_adapter_free(&s->state.adapter);
    if (s->bench->grid->rank != 0 || !s->plain[0])
        return;
    char file[4200];
    snprintf(file, sizeof file, "%s/step-000001.h5", s->folder);
    unlink(file);
    unlink(s->plain);
    rmdir(s->folder);
}

static int run_write(void *context)
{
    saving *s = context;
    return bw_checkpoint_write(s->bench->grid, &s->state, s->bench->config, s->folder, 1, 0600);
}

static int run_read(void *context)
{
    saving *s = context;
    bool found = false;
    BW_TRY(bw_checkpoint_read(s->bench->grid, &s->state, s->folder, &found));
    return found ? BW_OK : bw_fail(BW_BUG, "%s: the checkpoint that was written is not found", s->folder);
}

static int run_plain(void *context)
{
    saving *s = context;
    return bw_plain_write(s->bench->grid, s->plain, s->bytes, s->share);
}

static int run_plain_read(void *context)
{
    saving *s = context;
    return bw_plain_read(s->bench->grid, s->plain, s->bytes, s->share);
}

/* Entries that differ from what was written. */
static int check(const saving *s, double *residual)
{
    *residual = 0;
    for (int i = 0; i < s->count; i++) {
        const bw_matrix *m = s->matrices[i];
        float *values = bw_bench_floats(m->rows * m->cols, (uint32_t)i, 1);
        if (!values)
            return BW_SYSTEM;
        for (int64_t c = 0; c < m->cols; c++)
            for (int64_t r = 0; r < m->rows; r++)
                *residual += memcmp((const float *)m->data + c * m->ld + r, values + c * m->ld + r, sizeof *values) != 0;
        bw_free(values);
    }
    return BW_OK;
}

static void clear(saving *s)
{
    for (int i = 0; i < s->count; i++)
        memset(s->matrices[i]->data, 0, (size_t)(s->matrices[i]->rows * s->matrices[i]->cols) * sizeof(float));
}

static int measure(saving *s)
{
    bw_bench *bench = s->bench;
    double bytes = 12.0 * (double)bw_adapter_parameters(s->state.adapter);
    bw_bench_row plain = {.work = bytes, .unit = BW_GBYTES}, written = plain, plain_read = plain, read = plain;
    snprintf(plain.problem, sizeof plain.problem, "MPI-IO, %.0f MB, synced", bytes * 1e-6);
    snprintf(plain_read.problem, sizeof plain_read.problem, "MPI-IO, %.0f MB, read", bytes * 1e-6);
    snprintf(written.problem, sizeof written.problem, "write %.0f MB, synced, checksums", bytes * 1e-6);
    snprintf(read.problem, sizeof read.problem, "read %.0f MB, checked", bytes * 1e-6);
    BW_TRY(bw_bench_time(bench, &(bw_bench_work){.run = run_plain, .context = s}, &plain.times));
    BW_TRY(bw_bench_time(bench, &(bw_bench_work){.run = run_write, .context = s}, &written.times));
    BW_TRY(bw_bench_time(bench, &(bw_bench_work){.run = run_plain_read, .context = s}, &plain_read.times));
    clear(s);
    BW_TRY(bw_bench_time(bench, &(bw_bench_work){.run = run_read, .context = s}, &read.times));
    BW_TRY(bw_agree(bench->grid, check(s, &read.residual)));
    written.residual = read.residual;
    written.limit = bytes / plain.times.median;
    read.limit = bytes / plain_read.times.median;
    written.limit_name = read.limit_name = "MPI-IO";
    BW_TRY(bw_bench_add(bench, &plain));
    BW_TRY(bw_bench_add(bench, &written));
    BW_TRY(bw_bench_add(bench, &plain_read));
    return bw_bench_add(bench, &read);
}

int bw_bench_checkpoint(bw_bench *bench)
{
    saving s = {.bench = bench};
    int status = saving_create(&s, bench);
    if (status == BW_OK)
        status = measure(&s);
    saving_free(&s);
    return status;
}

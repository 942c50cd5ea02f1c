/* bench/merge.c - the QR merge of one layer's targets: in factors, beside the rate of ScaLAPACK's own product, and with the dense weights in bf16,
 * beside multiply-adds from registers. */
#include "bench/bench.h"
#include "post/inside.h"
#include <float.h>
#include <math.h>
#include <string.h>

static const double ALPHA = 0.1, TAU = 0.01, SCALE = 0.5;
enum { MOST_TARGETS = BW_TARGETS };

typedef struct target_case {
    int64_t out, in;
    bw_pair user, reinforce, merged;
    float *b_user, *b_reinforce; /* dense, out x r */
    bw_merge_row row;
} target_case;

typedef struct merging {
    bw_bench *bench;
    int r, count;
    target_case cases[MOST_TARGETS];
} merging;

/* ---- create ---------------------------------------------------------------------------------------------------------------- */

static int fill_pair(bw_pair *pair, const float *b, uint32_t name)
{
    float *a = bw_bench_floats(pair->A.layout.m * pair->A.layout.n, name, 0.02f);
    if (!a)
        return BW_SYSTEM;
    bw_matrix_from_dense(&pair->A, a, pair->A.layout.n);
    bw_matrix_from_dense(&pair->B, b, pair->B.layout.n);
    bw_free(a);
    return BW_OK;
}

static int case_create(const merging *m, target_case *c, int64_t out, int64_t in, uint32_t name)
{
    const bw_grid *grid = m->bench->grid;
    int block = (int)m->bench->config->block;
    c->out = out;
    c->in = in;
    c->b_user = bw_bench_floats(out * m->r, name, 0.02f);
    c->b_reinforce = bw_bench_floats(out * m->r, name + 1, 0.02f);
    if (!c->b_user || !c->b_reinforce)
        return BW_SYSTEM;
    BW_TRY(bw_pair_create(&c->user, grid, out, in, m->r, 2, block));
    BW_TRY(bw_pair_create(&c->reinforce, grid, out, in, m->r, 2, block));
    BW_TRY(bw_pair_create(&c->merged, grid, out, in, 2 * m->r, 1, block));
    BW_TRY(fill_pair(&c->user, c->b_user, name + 2));
    return fill_pair(&c->reinforce, c->b_reinforce, name + 3);
}

static int merging_create(merging *m, bw_bench *bench, const bw_spec *spec)
{
    static const bw_target targets[] = {BW_Q, BW_V, BW_GATE, BW_UP, BW_DOWN};
    int64_t r = bench->config->lora_r;
    *m = (merging){.bench = bench, .count = sizeof targets / sizeof *targets};
    for (int i = 0; i < m->count; i++) { /* so small beside the matrices that random factors have full rank */
        int64_t out, in;
        bw_spec_shape(spec, targets[i], &out, &in);
        r = r > out / 4 ? out / 4 : r;
        r = r > in / 4 ? in / 4 : r;
    }
    m->r = r > 1 ? (int)r : 1;
    for (int i = 0; i < m->count; i++) {
        int64_t out, in;
        bw_spec_shape(spec, targets[i], &out, &in);
        BW_TRY(case_create(m, &m->cases[i], out, in, 100u + 4u * (uint32_t)i));
    }
    return BW_OK;
}

static void merging_free(merging *m)
{
    for (int i = 0; i < m->count; i++) {
        target_case *c = &m->cases[i];
        bw_free(c->b_user);
        bw_free(c->b_reinforce);
        bw_pair_free(&c->user);
        bw_pair_free(&c->reinforce);
        bw_pair_free(&c->merged);
    }
}

static int run_merge(void *context)
{
    merging *m = context;
    for (int i = 0; i < m->count; i++) {
        target_case *c = &m->cases[i];
        BW_TRY(bw_merge_pair(m->bench->grid, &c->user, &c->reinforce, BW_MERGE_QR, ALPHA, TAU, SCALE, &c->merged, &c->row));
    }
    return BW_OK;
}

/* ---- check: the definition in plain loops over doubles ------------------------------------------------------------------------ */

static double dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

static void take_out(double *x, const double *direction, double share, int64_t n)
{
    double along = share * dot(x, direction, n);
    for (int64_t i = 0; i < n; i++)
        x[i] -= along * direction[i];
}

/* Columns of b (n x r, row-major) into q (r x n), orthonormal: Gram and Schmidt, twice over. */
static void orthonormal(double *q, const float *b, int64_t n, int r)
{
    for (int j = 0; j < r; j++) {
        double *mine = q + j * n;
        for (int64_t i = 0; i < n; i++)
            mine[i] = (double)b[i * r + j];
        for (int pass = 0; pass < 2; pass++)
            for (int before = 0; before < j; before++)
                take_out(mine, q + before * n, 1, n);
        double length = sqrt(dot(mine, mine, n));
        for (int64_t i = 0; i < n; i++)
            mine[i] /= length;
    }
}

/* Largest error of this rank's entries of column r + j of the merged B, which should be scale * s_R * (b - alpha Q Q^T b). */
static double column_error(const target_case *c, int r, int j, const double *expected)
{
    const bw_matrix *merged = &c->merged.B;
    const bw_bcyc *l = &merged->layout;
    double worst = 0;
    if (bw_bcyc_owner(r + j, l->nb, l->npcol) != merged->mycol)
        return 0;
    const float *column = (const float *)merged->data + bw_bcyc_local(r + j, l->nb, l->npcol) * merged->ld;
    for (int64_t i = 0; i < merged->rows; i++) {
        double right = SCALE * c->reinforce.scaling * expected[bw_bcyc_global(i, l->mb, merged->myrow, l->nprow)];
        worst = fmax(worst, fabs((double)column[i] - right));
    }
    return worst;
}

static int check_case(const target_case *c, int r, double *residual)
{
    double *q, *b, largest = 0.02 * SCALE * c->reinforce.scaling;
    BW_TRY(BW_NEW(q, r * c->out, "bench"));
    int status = BW_NEW(b, c->out, "bench");
    if (status == BW_OK)
        orthonormal(q, c->b_user, c->out, r);
    for (int j = 0; status == BW_OK && j < r; j++) {
        for (int64_t i = 0; i < c->out; i++)
            b[i] = (double)c->b_reinforce[i * r + j];
        for (int k = 0; k < r; k++) /* directions are orthogonal, so one after another is all at once */
            take_out(b, q + k * c->out, ALPHA, c->out);
        *residual = fmax(*residual, column_error(c, r, j, b) / largest);
    }
    bw_free(q);
    bw_free(b);
    return status;
}

static int check(const merging *m, double *residual)
{
    *residual = 0;
    for (int i = 0; i < m->count; i++)
        BW_TRY(check_case(&m->cases[i], m->r, residual));
    return BW_OK;
}

/* ---- the limit ---------------------------------------------------------------------------------------------------------------- */

typedef struct square {
    const bw_grid *grid;
    bw_matrix a, b, c;
} square;
enum { SQUARE = 1024 };

static int run_square(void *context)
{
    square *s = context;
    return bw_pgemm(s->grid, false, false, 1, &s->a, &s->b, 0, &s->c);
}

static int measure_square(bw_bench *bench, double *rate)
{
    square s = {.grid = bench->grid};
    bw_matrix *all[] = {&s.a, &s.b, &s.c};
    bw_bench_row row = {.work = 2.0 * SQUARE * SQUARE * SQUARE, .unit = BW_GFLOPS};
    int status = BW_OK;
    snprintf(row.problem, sizeof row.problem, "pdgemm %d x %d x %d", SQUARE, SQUARE, SQUARE);
    for (int i = 0; status == BW_OK && i < 3; i++) {
        status = bw_matrix_create(all[i], bench->grid, BW_PIECE_F64, SQUARE, SQUARE, 64, 64, "bench");
        for (int64_t j = 0; status == BW_OK && j < all[i]->rows * all[i]->cols; j++)
            ((double *)all[i]->data)[j] = 1;
    }
    BW_GO(bw_agree(bench->grid, status));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_square, .context = &s}, &row.times));
    for (int64_t j = 0; j < s.c.cols && s.c.rows > 0; j++)
        row.residual = fmax(row.residual, fabs(((double *)s.c.data)[j * s.c.ld] - SQUARE));
    *rate = row.work / row.times.median;
    status = bw_bench_add(bench, &row);
done:
    for (int i = 0; i < 3; i++)
        bw_matrix_free(all[i]);
    return status;
}

/* ---- with the dense weights: what a merge does beside reading and writing files ---------------------------------------------- */

typedef struct dense_merge {
    merging *m;
    uint16_t *weights, *merged; /* bf16, in memory: this rank's part of the largest target */
    float *base;                /* one block of it */
    float *packed;
    int64_t block; /* rows */
    bw_fidelity *parts;
    bw_shared factors;
    bw_gather *gather;
    int64_t rows, cols, row, col; /* of the target at hand: this rank's part, and where it begins */
    float *a, *b;                 /* whole */
} dense_merge;

static void take_part(int64_t n, int parts, int part, int64_t *first, int64_t *count)
{
    int64_t share = (n + parts - 1) / parts;
    *first = share * part < n ? share * part : n;
    *count = n - *first < share ? n - *first : share;
}

static void turn_to(dense_merge *d, const target_case *c)
{
    const bw_grid *grid = d->m->bench->grid;
    take_part(c->out, grid->nprow, grid->myrow, &d->row, &d->rows);
    take_part(c->in, grid->npcol, grid->mycol, &d->col, &d->cols);
    d->a = d->factors.base;
    d->b = d->a + 2 * d->m->r * c->in;
}

static int dense_create(dense_merge *d, merging *m)
{
    const bw_grid *grid = m->bench->grid;
    int64_t most = 0, widest = 0, floats = 0;
    *d = (dense_merge){.m = m, .block = m->bench->config->block};
    for (int i = 0; i < m->count; i++) {
        const target_case *c = &m->cases[i];
        int64_t needed = 2 * m->r * (c->in + c->out);
        turn_to(d, c);
        most = d->rows * d->cols > most ? d->rows * d->cols : most;
        widest = d->cols > widest ? d->cols : widest;
        floats = needed > floats ? needed : floats;
    }
    int status = BW_NEW(d->weights, most, "bench");
    if (status == BW_OK)
        status = BW_NEW(d->merged, most, "bench");
    if (status == BW_OK)
        status = BW_NEW(d->base, d->block * widest, "bench");
    if (status == BW_OK)
        status = BW_NEW(d->packed, bw_round_floats(2 * m->r, widest), "bench");
    if (status == BW_OK)
        status = BW_NEW(d->parts, widest / BW_ROUND_COLUMNS + 1, "bench");
    float *random = status == BW_OK ? bw_bench_floats(most, 90, 0.02f) : NULL;
    if (random)
        bw_from_f32(d->weights, random, BW_BF16, most);
    bw_free(random);
    BW_TRY(bw_agree(grid, random ? BW_OK : BW_SYSTEM));
    BW_TRY(bw_agree(grid, bw_shared_create(grid, &d->factors, floats * (int64_t)sizeof(float), "bench")));
    return bw_gather_create(&d->gather, grid);
}

static void dense_free(dense_merge *d)
{
    bw_free(d->weights);
    bw_free(d->merged);
    bw_free(d->base);
    bw_free(d->packed);
    bw_free(d->parts);
    bw_gather_destroy(&d->gather);
    bw_shared_free(d->m->bench->grid, &d->factors);
}

static int gather_factors(dense_merge *d, const target_case *c)
{
    const bw_gather_item items[] = {{.piece = &c->merged.A, .dense = d->a, .ld = c->in}, {.piece = &c->merged.B, .dense = d->b, .ld = c->merged.r}};
    BW_TRY(bw_node_sync(d->m->bench->grid)); /* nobody reads those before any more */
    BW_TRY(bw_gather_start(d->gather, items, 2));
    return bw_gather_finish(d->gather);
}

static int dense_target(dense_merge *d, target_case *c)
{
    BW_TRY(bw_merge_pair(d->m->bench->grid, &c->user, &c->reinforce, BW_MERGE_QR, ALPHA, TAU, SCALE, &c->merged, &c->row));
    turn_to(d, c);
    BW_TRY(gather_factors(d, c));
    bw_round_pack(d->a + d->col, c->in, c->merged.r, d->cols, d->packed);
    for (int64_t i = 0; i < d->rows; i += d->block) {
        int64_t height = d->rows - i < d->block ? d->rows - i : d->block;
        const bw_round block = {BW_BF16, d->packed, d->b + (d->row + i) * c->merged.r, c->merged.r};
        bw_to_f32(d->base, d->weights + i * d->cols, BW_BF16, height * d->cols);
        bw_round_block(&block, d->base, height, d->cols, d->merged + i * d->cols, d->parts);
    }
    return BW_OK;
}

static int run_dense(void *context)
{
    dense_merge *d = context;
    for (int i = 0; i < d->m->count; i++)
        BW_TRY(dense_target(d, &d->m->cases[i]));
    return BW_OK;
}

/* Of the last target, whose weights are still there: some entries, each against its sum in float64. 1 is half a unit in the last place of bf16, and
 * what a sum in fp32 may lose before. */
static double dense_error(const dense_merge *d)
{
    enum { STEP = 997 };
    const target_case *c = &d->m->cases[d->m->count - 1];
    int r = c->merged.r;
    double worst = 0;
    for (int64_t i = 0; i < d->rows * d->cols; i += STEP) {
        float base, stored;
        bw_to_f32(&base, d->weights + i, BW_BF16, 1);
        bw_to_f32(&stored, d->merged + i, BW_BF16, 1);
        double right = (double)base, size = fabs(right);
        for (int k = 0; k < r; k++) {
            double term = (double)d->b[(d->row + i / d->cols) * r + k] * (double)d->a[k * c->in + d->col + i % d->cols];
            right += term;
            size += fabs(term);
        }
        worst = fmax(worst, fabs((double)stored - right) / (ldexp(1, ilogb(right) - 8) + (double)FLT_EPSILON * size));
    }
    return worst;
}

static int measure_dense(merging *m, const char *name)
{
    bw_bench *bench = m->bench;
    dense_merge d;
    bw_bench_row row = {.unit = BW_GFLOPS, .limit = bench->fma * bench->grid->size, .limit_name = "FMA", .bound = 1};
    int status;
    snprintf(row.problem, sizeof row.problem, "%s: the same, dense bf16", name);
    for (int i = 0; i < m->count; i++)
        row.work += 2.0 * 2 * m->r * (double)m->cases[i].out * (double)m->cases[i].in;
    BW_GO(dense_create(&d, m));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_dense, .context = &d}, &row.times));
    row.residual = dense_error(&d);
    status = bw_bench_add(bench, &row);
done:
    dense_free(&d);
    return status;
}

/* ---- the part ------------------------------------------------------------------------------------------------------------------ */

/* U^T U, U^T R and R^T R of both factors; then of B: Q = B_U T, Q^T Q, Q^T B_R, and B_U M. */
static double flops_of(const merging *m)
{
    double flops = 0, square = (double)m->r * m->r;
    for (int i = 0; i < m->count; i++)
        flops += 2 * square * (3 * (double)m->cases[i].in + 7 * (double)m->cases[i].out);
    return flops;
}

static int measure_factors(merging *m, const char *name, double limit)
{
    bw_bench *bench = m->bench;
    bw_bench_row row = {.unit = BW_GFLOPS, .limit = limit, .limit_name = "pdgemm", .bound = 1e-5};
    snprintf(row.problem, sizeof row.problem, "%s: a layer, %d targets, r %d", name, m->count, m->r);
    row.work = flops_of(m);
    BW_TRY(bw_bench_time(bench, &(bw_bench_work){.run = run_merge, .context = m}, &row.times));
    BW_TRY(bw_agree(bench->grid, check(m, &row.residual)));
    return bw_bench_add(bench, &row);
}

static int measure(bw_bench *bench, const char *name, const bw_spec *spec, double limit)
{
    merging m = {0};
    int status;
    BW_GO(bw_agree(bench->grid, merging_create(&m, bench, spec)));
    BW_GO(measure_factors(&m, name, limit));
    BW_GO(measure_dense(&m, name));
done:
    merging_free(&m);
    return status;
}

int bw_bench_merge(bw_bench *bench)
{
    static const bw_spec llama3 = {.n_head = 32, .n_kv = 8, .head_dim = 128, .d_model = 4096, .d_ff = 14336};
    double limit;
    BW_TRY(measure_square(bench, &limit));
    BW_TRY(measure(bench, "the model", bench->spec, limit));
    return measure(bench, "Llama-3-8B", &llama3, limit);
}

/* bench/merge.c - the QR merge of one layer's targets, in factors, beside the rate of ScaLAPACK's own product. */
#include "bench/bench.h"
#include "breakwater/post.h"
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

/* ---- the part ------------------------------------------------------------------------------------------------------------------ */

/* U^T U, U^T R and R^T R of both factors; then of B: Q = B_U T, Q^T Q, Q^T B_R, and B_U M. */
static double flops_of(const merging *m)
{
    double flops = 0, square = (double)m->r * m->r;
    for (int i = 0; i < m->count; i++)
        flops += 2 * square * (3 * (double)m->cases[i].in + 7 * (double)m->cases[i].out);
    return flops;
}

static int measure(bw_bench *bench, const char *name, const bw_spec *spec, double limit)
{
    merging m = {0};
    bw_bench_row row = {.unit = BW_GFLOPS, .limit = limit, .limit_name = "pdgemm", .bound = 1e-5};
    int status;
    BW_GO(bw_agree(bench->grid, merging_create(&m, bench, spec)));
    snprintf(row.problem, sizeof row.problem, "%s: a layer, %d targets, r %d", name, m.count, m.r);
    row.work = flops_of(&m);
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_merge, .context = &m}, &row.times));
    BW_GO(bw_agree(bench->grid, check(&m, &row.residual)));
    status = bw_bench_add(bench, &row);
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

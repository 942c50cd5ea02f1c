/* bench/attention.c - attention and the loss, which are kernels of ours; the limit is what the arithmetic units do. */
#include "bench/bench.h"
#include "breakwater/num.h"
#include <math.h>

/* ---- attention ---------------------------------------------------------------------------------------------------------- */

typedef struct attention {
    bw_attention shape;
    int32_t *offsets;
    int n_seq;
    int64_t T, length, query, key;
    float *q, *k, *v, *out, *lse, *dout, *dq, *dk, *dv, *scratch;
} attention;

static int attention_create(attention *a, const bw_spec *spec, int n_seq, int length)
{
    *a = (attention){.shape = {.n_head = spec->n_head, .n_kv = spec->n_kv, .head_dim = spec->head_dim, .scale = 1 / sqrtf((float)spec->head_dim)},
                     .n_seq = n_seq,
                     .T = (int64_t)n_seq * length,
                     .length = length,
                     .query = (int64_t)spec->n_head * spec->head_dim,
                     .key = (int64_t)spec->n_kv * spec->head_dim};
    float **const wide[] = {&a->q, &a->out, &a->dout, &a->dq}, **const narrow[] = {&a->k, &a->v, &a->dk, &a->dv};
    for (uint32_t i = 0; i < 4; i++) {
        *wide[i] = bw_bench_floats(a->T * a->query, i, 1);
        *narrow[i] = bw_bench_floats(a->T * a->key, i + 4, 1);
        if (!*wide[i] || !*narrow[i])
            return BW_SYSTEM;
    }
    BW_TRY(BW_NEW(a->lse, a->T * spec->n_head, "bench"));
    BW_TRY(BW_NEW(a->scratch, bw_attention_scratch(&a->shape, a->T), "bench"));
    BW_TRY(BW_NEW(a->offsets, n_seq + 1, "bench"));
    for (int i = 0; i <= n_seq; i++)
        a->offsets[i] = i * length;
    return BW_OK;
}

static void attention_free(attention *a)
{
    void *owned[] = {a->q, a->k, a->v, a->out, a->lse, a->dout, a->dq, a->dk, a->dv, a->scratch, a->offsets};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        bw_free(owned[i]);
}

static int run_forward(void *context)
{
    const attention *a = context;
    bw_attention_forward(&a->shape, a->out, a->lse, a->q, a->k, a->v, a->query, a->key, a->offsets, a->n_seq, a->scratch);
    return BW_OK;
}

static int run_backward(void *context)
{
    const attention *a = context;
    bw_attention_backward(&a->shape, a->dq, a->dk, a->dv, a->dout, a->out, a->lse, a->q, a->k, a->v, a->query, a->key, a->offsets, a->n_seq,
                          a->scratch);
    return BW_OK;
}

static double dot(const float *x, const float *y, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* Of the last row of the last sequence, in doubles: errors of the first entry of each head's output and of its gradient dq. */
static void check_attention(const attention *a, double *forward, double *backward)
{
    int head_dim = a->shape.head_dim;
    *forward = *backward = 0;
    for (int head = 0; head < a->shape.n_head; head++) {
        int64_t row = (a->T - 1) * a->query + (int64_t)head * head_dim, kv = (int64_t)(head / (a->shape.n_head / a->shape.n_kv)) * head_dim;
        double sum = 0, value = 0, slope = 0, weighted_key = 0, slope_key = 0;
        for (int64_t j = a->T - a->length; j < a->T; j++) {
            const float *key = a->k + j * a->key + kv, *values = a->v + j * a->key + kv;
            double p = exp(dot(a->q + row, key, head_dim) * (double)a->shape.scale), dp = dot(a->dout + row, values, head_dim);
            sum += p;
            value += p * (double)values[0];
            slope += p * dp;
            weighted_key += p * (double)key[0];
            slope_key += p * dp * (double)key[0];
        }
        double dq = (slope_key / sum - slope / sum * (weighted_key / sum)) * (double)a->shape.scale;
        *forward = fmax(*forward, fabs(value / sum - (double)a->out[row]));
        *backward = fmax(*backward, fabs(dq - (double)a->dq[row]));
    }
}

static int measure_attention(bw_bench *bench, int n_seq, int length)
{
    attention a = {0};
    double pairs = (double)n_seq * (double)length * (length + 1) / 2 * bench->spec->n_head * bench->spec->head_dim;
    /* Where products are bf16: both operands of a term are rounded by 2^-9 of themselves at most, and the terms of an output add up to 1 or less,
     * those of a gradient to 2. */
    const bool half = bw_attention_is_half();
    bw_bench_row forward = {
        .work = 4 * pairs, .unit = BW_GFLOPS, .limit = bench->fma, .limit_name = half ? "fp32 FMA" : "FMA", .bound = half ? 0x1p-7 : 2e-6};
    bw_bench_row backward = forward;
    backward.work = 10 * pairs;
    backward.bound = half ? 0x1p-7 : 1e-5;
    snprintf(forward.problem, sizeof forward.problem, "forward %d x %d tokens", n_seq, length);
    snprintf(backward.problem, sizeof backward.problem, "backward %d x %d tokens", n_seq, length);
    int status;
    BW_GO(bw_agree(bench->grid, attention_create(&a, bench->spec, n_seq, length)));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_forward, .context = &a}, &forward.times));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_backward, .context = &a}, &backward.times));
    check_attention(&a, &forward.residual, &backward.residual);
    BW_GO(bw_bench_add(bench, &forward));
    BW_GO(bw_bench_add(bench, &backward));
done:
    attention_free(&a);
    return status;
}

/* ---- loss ----------------------------------------------------------------------------------------------------------------- */

typedef struct loss {
    int64_t n, C, V;
    float *h, *head, *loss, *dh, *scratch;
    int32_t *targets;
    bool gradient;
} loss;

static int loss_create(loss *l, const bw_spec *spec, int64_t n, bool gradient)
{
    *l = (loss){.n = n, .C = spec->d_model, .V = spec->vocab, .gradient = gradient};
    l->h = bw_bench_floats(n * l->C, 1, 1);
    l->head = bw_bench_floats(l->V * l->C, 2, 0.1f);
    l->dh = bw_bench_floats(n * l->C, 4, 1);
    BW_TRY(BW_NEW(l->loss, n, "bench"));
    BW_TRY(BW_NEW(l->scratch, bw_loss_scratch(n, l->C), "bench"));
    BW_TRY(BW_NEW(l->targets, n, "bench"));
    for (int64_t i = 0; i < n; i++)
        l->targets[i] = (int32_t)(i * 37 % l->V);
    return l->h && l->head && l->dh ? BW_OK : BW_SYSTEM;
}

static void loss_free(loss *l)
{
    void *owned[] = {l->h, l->head, l->loss, l->dh, l->scratch, l->targets};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        bw_free(owned[i]);
}

static int run_loss(void *context)
{
    const loss *l = context;
    bw_loss(l->loss, l->gradient ? l->dh : NULL, 1, l->h, l->head, l->targets, l->n, l->C, l->V, 0, l->scratch);
    return BW_OK;
}

/* The first row, in doubles: its loss, and with the gradient that of its first entry. */
static double check_loss(const loss *l)
{
    double sum = 0, slope = 0, aimed = 0;
    int64_t target = l->targets[0];
    for (int64_t j = 0; j < l->V; j++) {
        double z = dot(l->h, l->head + j * l->C, l->C);
        sum += exp(z);
        slope += exp(z) * (double)l->head[j * l->C];
        aimed = j == target ? z : aimed;
    }
    double error = fabs(log(sum) - aimed - (double)l->loss[0]);
    return l->gradient ? fmax(error, fabs(slope / sum - (double)l->head[target * l->C] - (double)l->dh[0])) : error;
}

static int measure_loss(bw_bench *bench, int64_t n, bool gradient)
{
    loss l = {0};
    double flops = (gradient ? 4.0 : 2.0) * (double)n * (double)bench->spec->d_model * (double)bench->spec->vocab;
    /* In bf16 a logit here, the sum of 576 products of about 0.03, each off by 2^-9 of it, is off by about 1e-3. */
    const double bound = bw_gemm_is_half() ? 1e-2 : 1e-4;
    bw_bench_row row = {.work = flops, .unit = BW_GFLOPS, .limit = bench->fma, .limit_name = bw_gemm_is_half() ? "fp32 FMA" : "FMA", .bound = bound};
    snprintf(row.problem, sizeof row.problem, "loss%s, %lld rows", gradient ? " and gradient" : "", (long long)n);
    int status;
    BW_GO(bw_agree(bench->grid, loss_create(&l, bench->spec, n, gradient)));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = run_loss, .context = &l}, &row.times));
    row.residual = check_loss(&l);
    status = bw_bench_add(bench, &row);
done:
    loss_free(&l);
    return status;
}

int bw_bench_attention(bw_bench *bench)
{
    BW_TRY(measure_attention(bench, 8, 200));
    BW_TRY(measure_attention(bench, 2, 800));
    BW_TRY(measure_loss(bench, 1000, true));
    return measure_loss(bench, 200, false);
}

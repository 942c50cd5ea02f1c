/* Rates of the arithmetic in num/, each validated against a double sum before it is reported.
 * usage: bench_num [threads [repetitions]] */
#include "breakwater/base.h"
#include "breakwater/num.h"
#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int repetitions = 5, threads = 1;

/* One thread is timed in processor seconds, which other work on the machine does not lengthen; several by the clock. */
static double now(void)
{
    struct timespec t;
    if (threads > 1)
        return bw_now();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static float *filled(int64_t n, uint32_t name)
{
    float *x = bw_calloc(n, sizeof *x, "bench");
    if (!x)
        exit(BW_SYSTEM);
    uint64_t state = 0x9e3779b97f4a7c15u * (name + 1);
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
    return x;
}

static void report(const char *name, double *seconds, double flops, double residual, double bound)
{
    qsort(seconds, (size_t)repetitions, sizeof *seconds, compare);
    printf("%-44s reps %d  min %9.3f ms  median %9.3f ms  %7.1f GF/s  resid %.1e  %s\n", name, repetitions, seconds[0] * 1e3,
           seconds[repetitions / 2] * 1e3, flops / seconds[0] / 1e9, residual, residual <= bound ? "PASS" : "FAIL");
    fflush(stdout);
}

/* ---- products -------------------------------------------------------------------------------------------------- */

typedef struct product {
    const char *what;
    bool trans_a, trans_b;
    int64_t m, n, k;
} product;

/* Largest error of 64 entries spread over c, in units of (k + 2) eps/2 times the sum of the terms' sizes. */
static double residual_of(const product *p, const float *a, int64_t lda, const float *b, int64_t ldb, const float *c)
{
    double worst = 0;
    for (int64_t s = 0; s < 64; s++) {
        int64_t at = (s * 7919 + 13) * 104729 % (p->m * p->n), i = at / p->n, j = at % p->n;
        double sum = 0, size = 0;
        for (int64_t l = 0; l < p->k; l++) {
            double term = (double)(p->trans_a ? a[l * lda + i] : a[i * lda + l]) * (double)(p->trans_b ? b[j * ldb + l] : b[l * ldb + j]);
            sum += term;
            size += fabs(term);
        }
        double error = fabs((double)c[at] - sum) / ((double)(p->k + 2) * FLT_EPSILON / 2 * size);
        worst = error > worst ? error : worst;
    }
    return worst;
}

static void bench_product(product p)
{
    int64_t lda = p.trans_a ? p.m : p.k, ldb = p.trans_b ? p.k : p.n;
    float *a = filled(p.m * p.k, 1), *b = filled(p.k * p.n, 2), *c = filled(p.m * p.n, 3);
    double *seconds = calloc((size_t)repetitions, sizeof *seconds);
    int64_t inner = (int64_t)(2e8 / (2.0 * (double)(p.m * p.n * p.k))) + 1;
    bw_gemm(p.trans_a, p.trans_b, p.m, p.n, p.k, 1, a, lda, b, ldb, 0, c, p.n);
    for (int r = 0; r < repetitions; r++) {
        double start = now();
        for (int64_t i = 0; i < inner; i++)
            bw_gemm(p.trans_a, p.trans_b, p.m, p.n, p.k, 1, a, lda, b, ldb, 0, c, p.n);
        seconds[r] = (now() - start) / (double)inner;
    }
    char name[96];
    snprintf(name, sizeof name, "gemm %-10s %5lld x %5lld x %5lld", p.what, (long long)p.m, (long long)p.n, (long long)p.k);
    report(name, seconds, 2.0 * (double)(p.m * p.n * p.k), residual_of(&p, a, lda, b, ldb, c), 1.0);
    free(seconds), bw_free(a), bw_free(b), bw_free(c);
}

static void bench_products(void)
{
    static const product products[] = {
        {"q,o", false, true, 200, 576, 576},       {"q,o", false, true, 800, 576, 576},        {"k,v", false, true, 800, 192, 576},
        {"gate,up", false, true, 100, 1536, 576},  {"gate,up", false, true, 200, 1536, 576},   {"gate,up", false, true, 800, 1536, 576},
        {"gate,up", false, true, 1600, 1536, 576}, {"down", false, true, 200, 576, 1536},      {"down", false, true, 1600, 576, 1536},
        {"dX gate", false, false, 200, 576, 1536}, {"dX gate", false, false, 1600, 576, 1536}, {"dX down", false, false, 1600, 1536, 576},
        {"lora x A'", false, true, 200, 32, 576},  {"lora x A'", false, true, 1600, 32, 576},  {"lora h B'", false, true, 1600, 1536, 32},
        {"lora dA", true, false, 32, 576, 1600},   {"lora dB", true, false, 1536, 32, 1600},   {"lora dA", true, false, 32, 576, 200},
        {"head", false, true, 1000, 1024, 576},    {"head dh", false, false, 1000, 576, 1024}, {"decode", false, true, 1, 576, 576},
        {"decode", false, true, 1, 1536, 576},     {"decode", false, true, 4, 1536, 576},      {"decode", false, true, 8, 1536, 576},
        {"decode", false, true, 12, 1536, 576},    {"decode", false, true, 16, 1536, 576},     {"decode", false, true, 32, 1536, 576},
        {"decode", false, true, 64, 1536, 576},    {"decode", false, true, 16, 49152, 576},    {"decode", false, true, 1, 49152, 576}};
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++)
        bench_product(products[i]);
}

/* ---- attention, loss, dropout, fold ------------------------------------------------------------------------------- */

static void bench_attention(int n_seq, int length)
{
    bw_attention shape = {.n_head = 9, .n_kv = 3, .head_dim = 64, .scale = 0.125f};
    int64_t T = (int64_t)n_seq * length;
    int32_t *offsets = calloc((size_t)n_seq + 1, sizeof *offsets);
    for (int i = 0; i <= n_seq; i++)
        offsets[i] = i * length;
    float *q = filled(T * 576, 1), *k = filled(T * 192, 2), *v = filled(T * 192, 3), *out = filled(T * 576, 4), *dout = filled(T * 576, 5);
    float *dq = filled(T * 576, 6), *dk = filled(T * 192, 7), *dv = filled(T * 192, 8), *lse = filled(T * 9, 9);
    double *forward = calloc((size_t)repetitions, sizeof(double)), *backward = calloc((size_t)repetitions, sizeof(double));
    bw_attention_forward(&shape, out, lse, q, k, v, 576, 192, offsets, n_seq);
    for (int r = 0; r < repetitions; r++) {
        double start = now();
        bw_attention_forward(&shape, out, lse, q, k, v, 576, 192, offsets, n_seq);
        forward[r] = now() - start;
        start = now();
        bw_attention_backward(&shape, dq, dk, dv, dout, out, lse, q, k, v, 576, 192, offsets, n_seq);
        backward[r] = now() - start;
    }
    double worst = 0; /* the last row of the last sequence, against doubles */
    for (int head = 0; head < 9; head++) {
        double sum = 0, value = 0;
        for (int64_t j = T - length; j < T; j++) {
            double s = 0;
            for (int c = 0; c < 64; c++)
                s += (double)q[(T - 1) * 576 + head * 64 + c] * (double)k[j * 192 + head / 3 * 64 + c];
            sum += exp(s * 0.125);
            value += exp(s * 0.125) * (double)v[j * 192 + head / 3 * 64];
        }
        double error = fabs(value / sum - (double)out[(T - 1) * 576 + head * 64]);
        worst = error > worst ? error : worst;
    }
    double pairs = (double)n_seq * (double)length * (length + 1) / 2 * 9 * 64;
    char name[96];
    snprintf(name, sizeof name, "attention forward  %d x %d", n_seq, length);
    report(name, forward, 4 * pairs, worst, 2e-6);
    snprintf(name, sizeof name, "attention backward %d x %d", n_seq, length);
    report(name, backward, 10 * pairs, worst, 2e-6);
    free(forward), free(backward), free(offsets);
    bw_free(q), bw_free(k), bw_free(v), bw_free(out), bw_free(dout), bw_free(dq), bw_free(dk), bw_free(dv), bw_free(lse);
}

static void bench_loss(int64_t n, bool gradient)
{
    enum { C = 576, V = 49152 };
    float *h = filled(n * C, 1), *head = filled((int64_t)V * C, 2), *loss = filled(n, 3), *dh = filled(n * C, 4),
          *scratch = filled(bw_loss_scratch(n, C), 5);
    int32_t *targets = calloc((size_t)n, sizeof *targets);
    double *seconds = calloc((size_t)repetitions, sizeof *seconds), sum = 0, z0 = 0;
    for (int64_t i = 0; i < (int64_t)V * C; i++)
        head[i] *= 0.1f;
    for (int64_t i = 0; i < n; i++)
        targets[i] = (int32_t)(i * 37 % V);
    for (int r = 0; r < repetitions; r++) {
        double start = now();
        bw_loss(loss, gradient ? dh : NULL, 1, h, head, targets, n, C, V, 0, scratch);
        seconds[r] = now() - start;
    }
    for (int64_t j = 0; j < V; j++) {
        double z = 0;
        for (int c = 0; c < C; c++)
            z += (double)h[c] * (double)head[j * C + c];
        sum += exp(z);
        z0 = j == targets[0] ? z : z0;
    }
    char name[96];
    snprintf(name, sizeof name, "loss %s %lld rows", gradient ? "and gradient" : "alone", (long long)n);
    report(name, seconds, (gradient ? 4.0 : 2.0) * (double)(n * C) * V, fabs(log(sum) - z0 - (double)loss[0]), 1e-4);
    free(targets), free(seconds), bw_free(h), bw_free(head), bw_free(loss), bw_free(dh), bw_free(scratch);
}

static void bench_elementwise(void)
{
    enum { T = 1600, F = 1536, C = 576 };
    int32_t *zero = calloc(T, sizeof *zero);
    float *x = filled(T * F, 1), *y = filled(T * F, 2), *z = filled(T * F, 3), *w = filled(F, 4), *inverse = filled(T, 5);
    double *seconds = calloc((size_t)repetitions, sizeof *seconds);
#define TIMED(name, entries, call)                                                                                                                   \
    for (int r = 0; r < repetitions; r++) {                                                                                                          \
        double start = now();                                                                                                                        \
        call;                                                                                                                                        \
        seconds[r] = now() - start;                                                                                                                  \
    }                                                                                                                                                \
    report(name " (G entries/s)", seconds, entries, 0, 1)
    TIMED("dropout 1600 x 1536", (double)T * F, bw_dropout(y, x, zero, zero, 1, 2, 3, 0.1f, T, F));
    TIMED("swiglu forward 1600 x 1536", (double)T * F, bw_swiglu_forward(y, x, z, T * F));
    TIMED("swiglu backward 1600 x 1536", (double)T * F, bw_swiglu_backward(y, z, x, y, z, T * F));
    TIMED("rmsnorm forward 1600 x 576", (double)T * C, bw_rmsnorm_forward(y, inverse, x, w, false, 1e-5f, T, C));
    TIMED("rmsnorm backward 1600 x 576", (double)T * C, bw_rmsnorm_backward(y, x, z, inverse, w, false, T, C));
    TIMED("add 1600 x 576", (double)T * C, bw_add(y, x, T * C));
    TIMED("fold 1536 x 576 r 32 (GF/s)", 2.0 * F * C * 32, bw_fold(y, C, F, C, 0.5f, x, 32, z, C, 32));
#undef TIMED
    free(zero), free(seconds), bw_free(x), bw_free(y), bw_free(z), bw_free(w), bw_free(inverse);
}

int main(int argc, char **argv)
{
    threads = argc > 1 ? atoi(argv[1]) : 1;
    repetitions = argc > 2 ? atoi(argv[2]) : 5;
    if (threads < 1 || repetitions < 1) {
        fprintf(stderr, "usage: bench_num [threads [repetitions]]\n");
        return BW_USAGE;
    }
    omp_set_num_threads(threads);
    if (bw_gemm_start("fp32", threads) != BW_OK)
        return BW_USAGE;
    bw_flush_denormals();
    printf("%s\n", bw_gemm_describe());
    bench_products();
    bench_attention(8, 200);
    bench_attention(2, 800);
    bench_loss(1000, true);
    bench_loss(200, false);
    bench_elementwise();
    return BW_OK;
}

/* bench/gemm.c - matrix products on the shapes that a step and decoding have. */
#include "bench/bench.h"
#include "breakwater/num.h"
#include <float.h>
#include <math.h>

typedef struct product {
    const char *what;
    bool trans_a, trans_b;
    int64_t m, n, k;
    float *a, *b, *c;
    bw_use use; /* b is a weight of the model, prepared once for that; 0: it is a matrix */
    void *weight;
} product;

static int64_t lda(const product *p)
{
    return p->trans_a ? p->m : p->k;
}

static int64_t ldb(const product *p)
{
    return p->trans_b ? p->k : p->n;
}

static int multiply(void *context)
{
    const product *p = context;
    if (p->use)
        bw_gemm_weight(p->trans_b, p->m, p->n, p->k, bw_operand_of(p->a, p->k), (bw_weight){p->weight, bw_weight_is_dense(p->use), p->use}, 0, p->c,
                       p->n);
    else
        bw_gemm(p->trans_a, p->trans_b, p->m, p->n, p->k, 1, bw_operand_of(p->a, lda(p)), bw_operand_of(p->b, ldb(p)), 0, p->c, p->n);
    return BW_OK;
}

/* Largest error of 64 entries spread over c against a double sum, in units of (k + 2) eps/2 times the sum of the terms' sizes. */
static double residual_of(const product *p)
{
    double worst = 0;
    for (int64_t s = 0; s < 64; s++) {
        int64_t at = (s * 7919 + 13) * 104729 % (p->m * p->n), i = at / p->n, j = at % p->n;
        double sum = 0, size = 0;
        for (int64_t l = 0; l < p->k; l++) {
            double term = (double)p->a[p->trans_a ? l * p->m + i : i * p->k + l] * (double)p->b[p->trans_b ? j * p->k + l : l * p->n + j];
            sum += term;
            size += fabs(term);
        }
        worst = fmax(worst, fabs((double)p->c[at] - sum) / ((double)(p->k + 2) * FLT_EPSILON / 2 * size));
    }
    return worst;
}

static int product_create(product *p)
{
    p->a = bw_bench_floats(p->m * p->k, 1, 1);
    p->b = bw_bench_floats(p->k * p->n, 2, 1);
    p->c = bw_bench_floats(p->m * p->n, 3, 1);
    if (!p->a || !p->b || !p->c)
        return BW_SYSTEM;
    const int64_t rows = p->trans_b ? p->n : p->k, cols = p->trans_b ? p->k : p->n;
    if (!p->use)
        return BW_OK;
    p->weight = bw_calloc(bw_weight_bytes(rows, cols, p->use), 1, "bench");
    if (p->weight)
        bw_weight_pack(p->weight, (bw_unpacked){.full = p->b, .ld = cols}, rows, cols, p->use);
    return p->weight ? BW_OK : BW_SYSTEM;
}

static void product_free(product *p)
{
    bw_free(p->a);
    bw_free(p->b);
    bw_free(p->c);
    bw_free(p->weight);
}

static double flops_of(const product *p)
{
    return 2.0 * (double)p->m * (double)p->n * (double)p->k;
}

/* bf16 operands carry 8 bits; the sums behind them are fp32 either way. */
static double bound_of(void)
{
    return bw_gemm_is_half() ? 0x1p16 : 1;
}

static int measure(bw_bench *bench, product p, bool report, double *seconds)
{
    bw_bench_row row = {
        .work = flops_of(&p), .unit = BW_GFLOPS, .limit = bench->fma, .limit_name = bw_gemm_is_half() ? "fp32 FMA" : "FMA", .bound = bound_of()};
    snprintf(row.problem, sizeof row.problem, "%s %lld x %lld x %lld", p.what, (long long)p.m, (long long)p.n, (long long)p.k);
    int status;
    BW_GO(bw_agree(bench->grid, product_create(&p)));
    BW_GO(bw_bench_time(bench, &(bw_bench_work){.run = multiply, .context = &p}, &row.times));
    if (seconds)
        *seconds = row.times.median;
    row.residual = residual_of(&p);
    if (report)
        status = bw_bench_add(bench, &row);
done:
    product_free(&p);
    return status;
}

/* ---- the rate that bounds a step or a token ------------------------------------------------------------------------------ */

int bw_bench_gemm_rate(bw_bench *bench, int64_t rows, int64_t answers, bool backward, double *rate)
{
    const bw_spec *spec = bench->spec;
    double flops = 0, seconds = 0, one;
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        product p = {.what = "forward", .trans_b = true, .m = rows, .n = out, .k = in, .use = backward ? BW_BOTH : BW_FORWARD};
        BW_TRY(measure(bench, p, false, &one));
        seconds += one * spec->n_layer;
        flops += flops_of(&p) * spec->n_layer;
        if (!backward)
            continue;
        p = (product){.what = "backward", .m = rows, .n = in, .k = out, .use = BW_BOTH};
        BW_TRY(measure(bench, p, false, &one));
        seconds += one * spec->n_layer;
        flops += flops_of(&p) * spec->n_layer;
    }
    /* The head walks the vocabulary in chunks; a thousand words of it have the same rate. Decoding has it prepared (model/head). */
    int64_t words = spec->vocab < 1024 ? spec->vocab : 1024;
    product head = {.what = "head", .trans_b = true, .m = answers, .n = words, .k = spec->d_model, .use = backward ? 0 : BW_FORWARD};
    BW_TRY(measure(bench, head, false, &one));
    double share = (double)spec->vocab / (double)words * (backward ? 2 : 1);
    *rate = (flops + flops_of(&head) * share) / (seconds + one * share);
    return BW_OK;
}

/* ---- the part ------------------------------------------------------------------------------------------------------------- */

static int base_products(bw_bench *bench, int64_t rows)
{
    static const struct {
        bw_target target;
        const char *forward, *backward;
    } shapes[] = {{BW_Q, "q, o", "dX of q, o"}, {BW_K, "k, v", NULL}, {BW_GATE, "gate, up", "dX of gate, up"}, {BW_DOWN, "down", "dX of down"}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t out, in;
        bw_spec_shape(bench->spec, shapes[i].target, &out, &in);
        product p = {.what = shapes[i].forward, .trans_b = true, .m = rows, .n = out, .k = in, .use = BW_BOTH};
        BW_TRY(measure(bench, p, true, NULL));
        p = (product){.what = shapes[i].backward, .m = rows, .n = in, .k = out, .use = BW_BOTH};
        if (p.what)
            BW_TRY(measure(bench, p, true, NULL));
    }
    return BW_OK;
}

static int lora_products(bw_bench *bench, int64_t rows)
{
    int64_t r = bench->config->lora_r, C = bench->spec->d_model, F = bench->spec->d_ff;
    const product products[] = {
        {.what = "LoRA x A'", .trans_b = true, .m = rows, .n = r, .k = C},
        {.what = "LoRA h B'", .trans_b = true, .m = rows, .n = F, .k = r},
        {.what = "LoRA dA", .trans_a = true, .m = r, .n = C, .k = rows},
        {.what = "LoRA dB", .trans_a = true, .m = F, .n = r, .k = rows},
        {.what = "LoRA dX", .m = rows, .n = C, .k = r},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        BW_TRY(measure(bench, products[i], true, NULL));
    return BW_OK;
}

static int decode_products(bw_bench *bench)
{
    const bw_spec *spec = bench->spec;
    static const int64_t rows[] = {1, 4, 16, 64};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        BW_TRY(measure(bench, (product){.what = "decode gate", .trans_b = true, .m = rows[i], .n = spec->d_ff, .k = spec->d_model, .use = BW_FORWARD},
                       true, NULL));
    const int64_t part = spec->vocab < 4096 ? spec->vocab : 4096; /* as model/head cuts it */
    return measure(bench, (product){.what = "decode head", .trans_b = true, .m = 16, .n = part, .k = spec->d_model, .use = BW_FORWARD}, true, NULL);
}

int bw_bench_gemm(bw_bench *bench)
{
    static const int64_t rows[] = {200, 1600};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        BW_TRY(base_products(bench, rows[i]));
    BW_TRY(lora_products(bench, 1600));
    int64_t words = bench->spec->vocab < 1024 ? bench->spec->vocab : 1024;
    BW_TRY(measure(bench, (product){.what = "head, a chunk", .trans_b = true, .m = 1000, .n = words, .k = bench->spec->d_model}, true, NULL));
    return decode_products(bench);
}

/* bench/layers.c - what is bound by memory: norms, rotary embedding, SwiGLU, dropout, sums, folding. */
#include "bench/bench.h"
#include "breakwater/num.h"
#include <float.h>
#include <math.h>
#include <string.h>

enum { ROWS = 1600 };

typedef struct arrays {
    int64_t T, C, F, r;
    int n_head, head_dim;
    float *x, *y, *z, *u; /* T x F, or F x C where that is more */
    float *w, *inverse;   /* weights of a norm; 1 / rms of each row */
    float *cosines, *sines;
    float *first; /* what y was before the run that is checked */
    int32_t *positions, *samples;
    uint32_t *kept;
} arrays;

static int arrays_create(arrays *a, const bw_bench *bench)
{
    const bw_spec *spec = bench->spec;
    *a = (arrays){.T = ROWS, .C = spec->d_model, .F = spec->d_ff, .r = bench->config->lora_r, .n_head = spec->n_head, .head_dim = spec->head_dim};
    int64_t wide = a->F > a->C ? a->F : a->C, query = (int64_t)a->n_head * a->head_dim;
    wide = wide > query ? wide : query;
    int64_t entries = a->T * wide > a->F * a->C ? a->T * wide : a->F * a->C;
    float **const all[] = {&a->x, &a->y, &a->z, &a->u, &a->first};
    for (uint32_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!(*all[i] = bw_bench_floats(entries, i, 1)))
            return BW_SYSTEM;
    a->w = bw_bench_floats(wide, 7, 1);
    a->inverse = bw_bench_floats(a->T, 8, 1);
    a->cosines = bw_bench_floats(a->T * a->head_dim / 2, 9, 1);
    a->sines = bw_bench_floats(a->T * a->head_dim / 2, 10, 1);
    if (!a->w || !a->inverse || !a->cosines || !a->sines)
        return BW_SYSTEM;
    BW_TRY(BW_NEW(a->positions, a->T, "bench"));
    BW_TRY(BW_NEW(a->samples, a->T, "bench"));
    BW_TRY(BW_NEW(a->kept, a->T * bw_mask_words(a->F), "bench"));
    for (int64_t t = 0; t < a->T; t++)
        a->positions[t] = (int32_t)(t % 200);
    return BW_OK;
}

static void arrays_free(arrays *a)
{
    void *owned[] = {a->x, a->y, a->z, a->u, a->first, a->w, a->inverse, a->cosines, a->sines, a->positions, a->samples, a->kept};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        bw_free(owned[i]);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* ---- each kernel, and the value that entry (t, c) of its result should have ------------------------------------------------ */

static int run_norm(void *context)
{
    const arrays *a = context;
    bw_rmsnorm_forward(a->y, a->inverse, a->x, a->w, false, 1e-5f, a->T, a->C);
    return BW_OK;
}

static double inverse_rms(const arrays *a, int64_t t)
{
    double sum = 0;
    for (int64_t c = 0; c < a->C; c++)
        sum += (double)a->x[t * a->C + c] * (double)a->x[t * a->C + c];
    return 1 / sqrt(sum / (double)a->C + 1e-5f);
}

static double expect_norm(const arrays *a, int64_t t, int64_t c)
{
    return (double)a->x[t * a->C + c] * inverse_rms(a, t) * (double)a->w[c];
}

static int run_norm_backward(void *context)
{
    const arrays *a = context;
    bw_rmsnorm_backward(a->y, a->z, a->x, a->inverse, a->w, false, a->T, a->C);
    return BW_OK;
}

static int prepare_norm_backward(arrays *a)
{
    bw_rmsnorm_forward(a->y, a->inverse, a->x, a->w, false, 1e-5f, a->T, a->C);
    memset(a->y, 0, (size_t)(a->T * a->C) * sizeof *a->y);
    return BW_OK;
}

static double expect_norm_backward(const arrays *a, int64_t t, int64_t c)
{
    double inverse = inverse_rms(a, t), dot = 0;
    for (int64_t j = 0; j < a->C; j++)
        dot += (double)a->z[t * a->C + j] * (double)a->w[j] * (double)a->x[t * a->C + j];
    double own = (double)a->z[t * a->C + c] * (double)a->w[c];
    return (double)a->first[t * a->C + c] + inverse * (own - (double)a->x[t * a->C + c] * inverse * inverse * dot / (double)a->C);
}

static int run_rope(void *context)
{
    const arrays *a = context;
    int64_t ld = (int64_t)a->n_head * a->head_dim;
    bw_rope(a->y, ld, a->positions, a->cosines, a->sines, a->T, a->n_head, a->head_dim, false);
    return BW_OK;
}

/* Angles make it a rotation: repeated, it neither grows nor shrinks what it is given. */
static int prepare_rope(arrays *a)
{
    for (int64_t i = 0; i < a->T * a->head_dim / 2; i++) {
        double angle = (double)a->u[i] * 3;
        a->cosines[i] = (float)cos(angle);
        a->sines[i] = (float)sin(angle);
    }
    return BW_OK;
}

static double expect_rope(const arrays *a, int64_t t, int64_t c)
{
    int64_t half = a->head_dim / 2, i = c % a->head_dim % half, row = t * a->n_head * a->head_dim + c - c % a->head_dim;
    double low = (double)a->first[row + i], high = (double)a->first[row + i + half];
    double cosine = (double)a->cosines[a->positions[t] * half + i], sine = (double)a->sines[a->positions[t] * half + i];
    return c % a->head_dim < half ? low * cosine - high * sine : high * cosine + low * sine;
}

static int run_swiglu(void *context)
{
    const arrays *a = context;
    bw_swiglu_forward(a->y, a->x, a->z, a->T * a->F);
    return BW_OK;
}

static double expect_swiglu(const arrays *a, int64_t t, int64_t c)
{
    double gate = (double)a->x[t * a->F + c];
    return gate * sigmoid(gate) * (double)a->z[t * a->F + c];
}

static int run_swiglu_backward(void *context)
{
    const arrays *a = context;
    bw_swiglu_backward(a->y, a->u, a->first, a->x, a->z, a->T * a->F);
    return BW_OK;
}

static double expect_swiglu_backward(const arrays *a, int64_t t, int64_t c)
{
    double gate = (double)a->x[t * a->F + c], s = sigmoid(gate);
    return (double)a->first[t * a->F + c] * (double)a->z[t * a->F + c] * s * (1 + gate * (1 - s));
}

static int run_dropout(void *context)
{
    const arrays *a = context;
    bw_dropout_draw(a->kept, a->samples, a->positions, 1, 2, 3, 0.1f, a->T, a->F);
    bw_dropout(a->y, a->x, a->kept, 0.1f, a->T, a->F);
    return BW_OK;
}

/* The definition in num.h, spelled out. */
static double expect_dropout(const arrays *a, int64_t t, int64_t c)
{
    bw_key key = {.seed = 1, .purpose = BW_PURPOSE_DROPOUT, .step = 2, .sample = (uint32_t)a->samples[t], .layer = 3};
    uint32_t words[4];
    bw_rng(&key, (uint32_t)(a->positions[t] * ((a->F + 7) / 8) + c / 8), words);
    uint32_t draw = (words[c / 2 % 4] >> (16 * (c % 2))) & 0xffff, threshold = 6554; /* 0.1 * 2^16, rounded */
    return draw < threshold ? 0 : (double)a->x[t * a->F + c] * 65536 / (65536 - threshold);
}

static int run_add(void *context)
{
    const arrays *a = context;
    bw_add(a->y, a->x, a->T * a->C);
    return BW_OK;
}

static double expect_add(const arrays *a, int64_t t, int64_t c)
{
    return (double)a->first[t * a->C + c] + (double)a->x[t * a->C + c];
}

static int run_fold(void *context)
{
    const arrays *a = context;
    bw_fold(a->y, a->C, a->F, a->C, 0.5f, a->x, a->r, a->z, a->C, (int)a->r);
    return BW_OK;
}

static double expect_fold(const arrays *a, int64_t t, int64_t c)
{
    double sum = 0;
    for (int64_t i = 0; i < a->r; i++)
        sum += (double)a->x[t * a->r + i] * (double)a->z[i * a->C + c];
    return (double)a->first[t * a->C + c] + 0.5 * sum;
}

/* ---- the part --------------------------------------------------------------------------------------------------------------- */

typedef struct kernel {
    const char *name;
    int (*run)(void *context);
    int (*setup)(arrays *a);
    double (*expect)(const arrays *a, int64_t t, int64_t c);
    enum { WIDTH_C, WIDTH_F, WIDTH_HEADS } width;
    int moves; /* arrays of T x width that are read or written */
    bool in_place, folds;
} kernel;

static const kernel kernels[] = {
    {"rmsnorm forward", run_norm, NULL, expect_norm, WIDTH_C, 2, false, false},
    {"rmsnorm backward", run_norm_backward, prepare_norm_backward, expect_norm_backward, WIDTH_C, 4, true, false},
    {"rope", run_rope, prepare_rope, expect_rope, WIDTH_HEADS, 2, true, false},
    {"swiglu forward", run_swiglu, NULL, expect_swiglu, WIDTH_F, 3, false, false},
    {"swiglu backward", run_swiglu_backward, NULL, expect_swiglu_backward, WIDTH_F, 5, false, false},
    {"dropout", run_dropout, NULL, expect_dropout, WIDTH_F, 2, false, false},
    {"residual sum", run_add, NULL, expect_add, WIDTH_C, 3, true, false},
    {"fold of a LoRA", run_fold, NULL, expect_fold, WIDTH_C, 0, true, true},
};

/* One run more, from a known start, against the plain formula in doubles at 64 places. */
static int check(const kernel *k, arrays *a, int64_t rows, int64_t width, double *residual)
{
    if (k->in_place)
        memcpy(a->y, a->first, (size_t)(rows * width) * sizeof *a->y);
    BW_TRY(k->run(a));
    *residual = 0;
    for (int64_t s = 0; s < 64; s++) {
        int64_t at = (s * 7919 + 13) * 104729 % (rows * width), t = at / width, c = at % width;
        double expected = k->expect(a, t, c), error = fabs((double)a->y[at] - expected) / (1 + fabs(expected));
        *residual = error <= *residual ? *residual : error;
    }
    return BW_OK;
}

static int measure(bw_bench *bench, const kernel *k, arrays *a)
{
    int64_t width = k->width == WIDTH_F ? a->F : k->width == WIDTH_C ? a->C : (int64_t)a->n_head * a->head_dim, rows = k->folds ? a->F : a->T;
    bw_bench_row row = {.work = k->folds ? 2.0 * (double)(rows * width * a->r) : (double)(rows * width * k->moves) * sizeof(float),
                        .unit = k->folds ? BW_GFLOPS : BW_GBYTES,
                        .limit = bench->fma,
                        .limit_name = k->folds ? "FMA" : "memcpy",
                        .bound = 64 * FLT_EPSILON};
    snprintf(row.problem, sizeof row.problem, "%s %lld x %lld", k->name, (long long)rows, (long long)width);
    if (!k->folds) /* a copy as large as the kernel's arrays, so that it has the same caches */
        BW_TRY(bw_bench_copy_rate(bench, (int64_t)row.work / 2, &row.limit, NULL));
    if (k->setup)
        BW_TRY(k->setup(a));
    BW_TRY(bw_bench_time(bench, &(bw_bench_work){.run = k->run, .context = a}, &row.times));
    BW_TRY(bw_agree(bench->grid, check(k, a, rows, width, &row.residual)));
    return bw_bench_add(bench, &row);
}

int bw_bench_layers(bw_bench *bench)
{
    arrays a = {0};
    int status;
    BW_GO(bw_agree(bench->grid, arrays_create(&a, bench)));
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        BW_GO(measure(bench, &kernels[i], &a));
done:
    arrays_free(&a);
    return status;
}

/* oneDNN behind the GEMM seam; nothing else calls it. Operands are converted to its type (bf16 for the backend, fp32 for a test that runs
 * the same code where the CPU has no bf16), products are summed in fp32 and written as fp32.
 *
 * A frozen weight is packed into the layout that oneDNN names for it: for x W^T and, where there is a backward pass, for dy W. A product is a
 * primitive, made once for its shape and kept. Micro-batches differ in their number of tokens, so rows are taken in whole groups of ROWS and a short
 * last group is filled up with zeros: a run meets few shapes. What oneDNN writes is c itself where it can be; where c is scaled or added to, or its
 * rows lie apart, or where rows were filled up, it is scratch, and one pass brings it to c: with a post-op for the sum, or rows apart, oneDNN 2.6
 * leaves its fast kernels.
 *
 * One product at a time: each uses all threads. oneDNN fails only where memory ends or where we asked for something wrong; a product cannot
 * report that, so the program ends there, as it does inside BLIS. */
#include "breakwater/base.h"
#include "num/gemm.h"
#ifdef BW_ONEDNN
#include "num/hot.h"
#include "num/tile.h"
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    ROWS = 8,            /* rows of a product come in groups of this many: half a tile of AMX */
    FEW_ROWS = 128,      /* up to here a weight is read once for all rows, rather than a second time for the last group */
    PIECE = 64,          /* columns that are turned over at a time */
    DEPTH = 32,          /* and what is summed over, where no packed weight says how much it is: k of a tile */
    USUAL_ROWS = 512,    /* the number of rows for which oneDNN is asked to name a weight's layout */
    MOST_PRODUCTS = 512, /* kept; a model, its adapters and forty numbers of rows stay below */
    PLACES = 1024,
    MOST_LAYOUTS = 32,
    LINE = 64
};

typedef struct shape {
    int64_t m, n, k;
    bool packed;
} shape;

typedef struct product {
    shape shape;
    dnnl_primitive_t primitive; /* NULL: the place is free */
    dnnl_memory_t a, b, c, workspace;
    int64_t workspace_bytes;
} product;

typedef struct layout { /* of a packed weight, k x n */
    int64_t k, n;
    dnnl_memory_desc_t description;
} layout;

typedef struct buffer {
    void *data;
    int64_t bytes;
} buffer;

static struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attributes;
    dnnl_data_type_t type; /* of operands */
    product products[PLACES];
    int n_products;
    layout layouts[MOST_LAYOUTS];
    int n_layouts;
    buffer a, b, c, workspace;
    char description[96];
} state;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void must(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success)
        return;
    fprintf(stderr, "breakwater: error: oneDNN cannot %s (status %d)\n", what, (int)status);
    abort();
}

static void *reserve(buffer *buffer, int64_t bytes)
{
    if (bytes <= buffer->bytes)
        return buffer->data;
    bw_free(buffer->data);
    buffer->data = bw_calloc(bytes, 1, "matrix products");
    buffer->bytes = bytes;
    must(buffer->data ? dnnl_success : dnnl_out_of_memory, "get memory for a product");
    return buffer->data;
}

static int64_t entry_bytes(void)
{
    return state.type == dnnl_bf16 ? 2 : 4;
}

static int64_t round_up(int64_t n, int64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* ---- operands ------------------------------------------------------------------------------------------------------ */

/* op(X), stored as x; `count` rows of it from `first` on are written to `to` in `width` columns, those that X lacks as zeros. */
typedef struct operand {
    const float *x;
    int64_t ld, rows, cols;
    bool trans;
} operand;

#if defined(__x86_64__)
/* A row in bf16, by the instruction that every CPU has which multiplies it: it rounds as bw_to_bf16() does, but for subnormals, which it takes for
 * zeros, as the products do. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) static void narrow_row(uint16_t *to, const float *from, int64_t n)
{
    int64_t j = 0;
    for (; j + 32 <= n; j += 32)
        _mm512_storeu_si512(to + j, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + j + 16), _mm512_loadu_ps(from + j)));
    for (; j < n; j += 16) {
        const __mmask16 there = (__mmask16)(n - j < 16 ? (1u << (n - j)) - 1 : 0xffff);
        _mm256_mask_storeu_epi16(to + j, there, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from + j)));
    }
}
#else
static void narrow_row(uint16_t *to, const float *from, int64_t n)
{
    for (int64_t j = 0; j < n; j++)
        to[j] = bw_to_bf16(from[j]);
}
#endif

/* n entries to place `at` of a matrix of the operands' type. */
static void put(void *to, int64_t at, const float *from, int64_t n)
{
    if (state.type == dnnl_bf16)
        narrow_row((uint16_t *)to + at, from, n);
    else
        memcpy((float *)to + at, from, (size_t)n * sizeof *from);
}

/* Rows of op(X) that are columns of x: turned piece by piece in the first cache, then written along the rows. */
static void convert_turned(void *to, const operand *x, int64_t first, int64_t there, int64_t width)
{
    float piece[ROWS][PIECE];
    for (int64_t j = 0; j < x->cols; j += PIECE) {
        const int64_t length = x->cols - j < PIECE ? x->cols - j : PIECE;
        bw_transpose(piece[0], PIECE, x->x + j * x->ld + first, x->ld, length, there);
        for (int64_t i = 0; i < there; i++)
            put(to, (first + i) * width + j, piece[i], length);
    }
}

static void convert(void *to, const operand *x, int64_t first, int64_t count, int64_t width)
{
    const int64_t there = x->rows - first < count ? x->rows - first : count, bytes = entry_bytes();
    if (x->trans && there > 0)
        convert_turned(to, x, first, there, width);
    for (int64_t i = 0; !x->trans && i < there; i++)
        put(to, (first + i) * width, x->x + (first + i) * x->ld, x->cols);
    for (int64_t i = 0; i < count; i++) {
        const int64_t filled = i < there ? x->cols : 0;
        memset((char *)to + ((first + i) * width + filled) * bytes, 0, (size_t)((width - filled) * bytes));
    }
}

/* op(X) in the operands' type, row-major, filled up with zeros to rows x cols. */
static void *take(buffer *buffer, const operand *x, int64_t rows, int64_t cols)
{
    void *to = reserve(buffer, rows * cols * entry_bytes());
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i += ROWS)
        convert(to, x, i, rows - i < ROWS ? rows - i : ROWS, cols);
    return to;
}

/* c = alpha * sums + beta * c of one row; its sums lie `step` apart. */
BW_HOT static void onednn_bring_row(float *c, const float *sums, int64_t step, int64_t n, float alpha, float beta)
{
    if (beta == 0.0f)
        for (int64_t j = 0; j < n; j++)
            c[j] = alpha * sums[j * step];
    else
        for (int64_t j = 0; j < n; j++)
            c[j] = alpha * sums[j * step] + beta * c[j];
}

/* ---- products kept ------------------------------------------------------------------------------------------------- */

static dnnl_memory_desc_t plain(int64_t rows, int64_t cols, dnnl_data_type_t type, int64_t ld)
{
    dnnl_memory_desc_t description;
    must(dnnl_memory_desc_init_by_strides(&description, 2, (dnnl_dims_t){rows, cols}, type, (dnnl_dims_t){ld, 1}), "describe a matrix");
    return description;
}

static dnnl_primitive_desc_t describe_product(const shape *s, const dnnl_memory_desc_t *b)
{
    const dnnl_memory_desc_t a = plain(s->m, s->k, state.type, s->k), c = plain(s->m, s->n, dnnl_f32, s->n);
    dnnl_matmul_desc_t operation;
    dnnl_primitive_desc_t description;
    must(dnnl_matmul_desc_init(&operation, &a, b, NULL, &c), "describe a product");
    must(dnnl_primitive_desc_create(&description, &operation, state.attributes, state.engine, NULL), "find a kernel for a product");
    return description;
}

/* The layout that oneDNN likes for a weight, k x n. */
static const dnnl_memory_desc_t *layout_of(int64_t k, int64_t n)
{
    for (int i = 0; i < state.n_layouts; i++)
        if (state.layouts[i].k == k && state.layouts[i].n == n)
            return &state.layouts[i].description;
    const shape usual = {USUAL_ROWS, n, k, true};
    dnnl_memory_desc_t any;
    must(dnnl_memory_desc_init_by_tag(&any, 2, (dnnl_dims_t){k, n}, state.type, dnnl_format_tag_any), "describe a weight");
    dnnl_primitive_desc_t description = describe_product(&usual, &any);
    state.n_layouts = state.n_layouts < MOST_LAYOUTS ? state.n_layouts : 0; /* asked for again, the answer is the same */
    layout *added = &state.layouts[state.n_layouts++];
    *added = (layout){k, n, *dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0)};
    must(dnnl_primitive_desc_destroy(description), "let go of a description");
    return &added->description;
}

static void memory_for(dnnl_memory_t *memory, const_dnnl_primitive_desc_t description, dnnl_query_t what)
{
    const dnnl_memory_desc_t *found = dnnl_primitive_desc_query_md(description, what, 0);
    must(dnnl_memory_create(memory, found, state.engine, DNNL_MEMORY_NONE), "describe memory");
}

/* oneDNN multiplies whatever it is asked for; what it has no kernel for takes a thousand times as long. */
static void warn_of_reference(const_dnnl_primitive_desc_t description, const shape *s)
{
    static bool warned;
    const char *name = "";
    must(dnnl_primitive_desc_query(description, dnnl_query_impl_info_str, 0, &name), "name a kernel");
    if (warned || strncmp(name, "ref", 3) != 0)
        return;
    warned = true;
    bw_warn("oneDNN has only reference code for products such as %lld x %lld x %lld (%s), which is very slow: --precision fp32 does without it",
            (long long)s->m, (long long)s->n, (long long)s->k, name);
}

static void make_product(product *p, const shape *s)
{
    const dnnl_memory_desc_t b = s->packed ? *layout_of(s->k, s->n) : plain(s->k, s->n, state.type, s->n);
    dnnl_primitive_desc_t description = describe_product(s, &b);
    p->shape = *s;
    warn_of_reference(description, s);
    must(dnnl_primitive_create(&p->primitive, description), "make a product");
    memory_for(&p->a, description, dnnl_query_src_md);
    memory_for(&p->b, description, dnnl_query_weights_md);
    memory_for(&p->c, description, dnnl_query_dst_md);
    memory_for(&p->workspace, description, dnnl_query_scratchpad_md);
    p->workspace_bytes = (int64_t)dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(description, dnnl_query_scratchpad_md, 0));
    must(dnnl_primitive_desc_destroy(description), "let go of a description");
}

static void forget_products(void)
{
    for (int i = 0; i < PLACES; i++) {
        product *p = &state.products[i];
        if (!p->primitive)
            continue;
        dnnl_memory_t memories[] = {p->a, p->b, p->c, p->workspace};
        for (size_t which = 0; which < sizeof memories / sizeof *memories; which++)
            must(dnnl_memory_destroy(memories[which]), "let go of memory");
        must(dnnl_primitive_destroy(p->primitive), "let go of a product");
        *p = (product){0};
    }
    state.n_products = 0;
}

static bool same_shape(const shape *a, const shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->packed == b->packed;
}

static product *product_of(const shape *s)
{
    uint64_t hash = (uint64_t)s->packed;
    const int64_t parts[] = {s->m, s->n, s->k};
    for (int i = 0; i < 3; i++)
        hash = (hash ^ (uint64_t)parts[i]) * 0x9e3779b97f4a7c15u;
    if (state.n_products == MOST_PRODUCTS)
        forget_products();
    int place = (int)(hash >> 54) % PLACES;
    while (state.products[place].primitive && !same_shape(&state.products[place].shape, s))
        place = (place + 1) % PLACES;
    if (!state.products[place].primitive) {
        make_product(&state.products[place], s);
        state.n_products++;
    }
    return &state.products[place];
}

static void run(const shape *s, void *a, void *b, float *c)
{
    product *p = product_of(s);
    must(dnnl_memory_set_data_handle(p->a, a), "take an operand");
    must(dnnl_memory_set_data_handle(p->b, b), "take an operand");
    must(dnnl_memory_set_data_handle(p->c, c), "take a result");
    must(dnnl_memory_set_data_handle(p->workspace, reserve(&state.workspace, p->workspace_bytes)), "take memory");
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}, {DNNL_ARG_SCRATCHPAD, p->workspace}};
    must(dnnl_primitive_execute(p->primitive, state.stream, 4, arguments), "multiply");
    must(dnnl_stream_wait(state.stream), "finish a product");
}

/* ---- multiply ------------------------------------------------------------------------------------------------------ */

/* Of a packed weight: its part for x W^T, then, where it was asked for, that for dy W. */
static int64_t part_bytes(int64_t k, int64_t n)
{
    return round_up((int64_t)dnnl_memory_desc_get_size(layout_of(k, n)), LINE);
}

static void *packed_part(const bw_gemm_call *call)
{
    return (char *)call->weight + (call->trans_b ? 0 : part_bytes(call->n, call->k));
}

static void multiply_rows(const bw_gemm_call *call)
{
    const int64_t rows = round_up(call->m, ROWS), k = call->weight ? call->k : round_up(call->k, DEPTH);
    const operand a = {call->a, call->lda, call->m, call->k, call->trans_a}, b = {call->b, call->ldb, call->k, call->n, call->trans_b};
    char *left = take(&state.a, &a, rows, k);
    void *right = call->weight ? packed_part(call) : take(&state.b, &b, k, call->n);
    const bool straight = call->alpha == 1.0f && call->beta == 0.0f && call->ldc == call->n && (call->m % ROWS == 0 || call->m > FEW_ROWS);
    const int64_t whole = straight ? call->m / ROWS * ROWS : 0, rest = call->m - whole; /* rows straight to c */
    shape shape = {whole, call->n, k, call->weight != NULL};
    if (whole > 0)
        run(&shape, left, right, call->c);
    if (rest == 0)
        return;
    shape.m = rows - whole;
    float *sums = reserve(&state.c, shape.m * call->n * (int64_t)sizeof *sums);
    run(&shape, left + whole * k * entry_bytes(), right, sums);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rest; i++)
        onednn_bring_row(call->c + (whole + i) * call->ldc, sums + i * call->n, 1, call->n, call->alpha, call->beta);
}

/* C^T = op(B)^T A, where A would have to be turned and C has more rows than columns: the gradient of a LoRA's B. What is turned is then the smaller
 * operand, and the result. */
static void multiply_turned(const bw_gemm_call *call)
{
    const int64_t rows = round_up(call->n, ROWS), k = round_up(call->k, DEPTH);
    const operand a = {call->b, call->ldb, call->n, call->k, !call->trans_b}, b = {call->a, call->lda, call->k, call->m, false};
    const shape shape = {rows, call->m, k, false};
    float *sums = reserve(&state.c, rows * call->m * (int64_t)sizeof *sums);
    run(&shape, take(&state.a, &a, rows, k), take(&state.b, &b, k, call->m), sums);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < call->m; i++)
        onednn_bring_row(call->c + i * call->ldc, sums + i, call->m, call->n, call->alpha, call->beta);
}

static void multiply(const bw_gemm_call *call)
{
    if (call->k <= 0) {
        bw_gemm_blis.multiply(call); /* scales c */
        return;
    }
    pthread_mutex_lock(&lock);
    if (call->trans_a && call->m > call->n)
        multiply_turned(call);
    else
        multiply_rows(call);
    pthread_mutex_unlock(&lock);
}

/* ---- frozen weights ------------------------------------------------------------------------------------------------- */

static int64_t weight_bytes(int64_t rows, int64_t cols, bool backward)
{
    pthread_mutex_lock(&lock);
    const int64_t bytes = part_bytes(cols, rows) + (backward ? part_bytes(rows, cols) : 0);
    pthread_mutex_unlock(&lock);
    return bytes;
}

/* x, k x n, into its layout: first to a plain matrix of the operands' type, which is the order from which oneDNN packs fast. */
static void pack_part(void *part, const operand *x)
{
    const dnnl_memory_desc_t from = plain(x->rows, x->cols, state.type, x->cols), *to = layout_of(x->rows, x->cols);
    dnnl_primitive_desc_t description;
    dnnl_primitive_t reorder;
    dnnl_memory_t source, destination;
    must(dnnl_memory_create(&source, &from, state.engine, take(&state.b, x, x->rows, x->cols)), "take a weight");
    must(dnnl_memory_create(&destination, to, state.engine, part), "take a packed weight");
    must(dnnl_reorder_primitive_desc_create(&description, &from, state.engine, to, state.engine, NULL), "find how to pack a weight");
    must(dnnl_primitive_create(&reorder, description), "prepare to pack a weight");
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, destination}};
    must(dnnl_primitive_execute(reorder, state.stream, 2, arguments), "pack a weight");
    must(dnnl_stream_wait(state.stream), "finish packing");
    must(dnnl_primitive_destroy(reorder), "let go of a packing");
    must(dnnl_primitive_desc_destroy(description), "let go of a description");
    must(dnnl_memory_destroy(source), "let go of a weight");
    must(dnnl_memory_destroy(destination), "let go of a packed weight");
}

static void pack(void *weight, const float *dense, int64_t rows, int64_t cols, bool backward)
{
    const operand turned = {dense, cols, cols, rows, true}, straight = {dense, cols, rows, cols, false};
    pthread_mutex_lock(&lock);
    pack_part(weight, &turned);
    if (backward)
        pack_part((char *)weight + part_bytes(cols, rows), &straight);
    pthread_mutex_unlock(&lock);
}

static void stop(void)
{
    buffer *const buffers[] = {&state.a, &state.b, &state.c, &state.workspace};
    forget_products();
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        bw_free(buffers[i]->data);
        *buffers[i] = (buffer){0};
    }
}

/* ---- start ---------------------------------------------------------------------------------------------------------- */

static const char *kernels(void)
{
    const int isa = (int)dnnl_get_effective_cpu_isa();
    if ((isa & dnnl_cpu_isa_avx512_core_amx) == dnnl_cpu_isa_avx512_core_amx)
        return "AMX";
    return (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16 ? "AVX512-BF16" : NULL;
}

static const char *missing(void)
{
    return kernels() ? NULL : "this CPU has neither AMX nor AVX512-BF16";
}

static const char *missing_nothing(void)
{
    return NULL;
}

/* Once a process; after it only the type of operands and the number of threads change, and what was made for the old ones goes. */
static int open_engine(void)
{
    if (state.engine) {
        forget_products();
        state.n_layouts = 0;
        return BW_OK;
    }
    if (dnnl_engine_create(&state.engine, dnnl_cpu, 0) == dnnl_success &&
        dnnl_stream_create(&state.stream, state.engine, dnnl_stream_default_flags) == dnnl_success &&
        dnnl_primitive_attr_create(&state.attributes) == dnnl_success &&
        dnnl_primitive_attr_set_scratchpad_mode(state.attributes, dnnl_scratchpad_mode_user) == dnnl_success)
        return BW_OK;
    state.engine = NULL;
    return bw_fail(BW_SYSTEM, "oneDNN does not start");
}

/* A product of small integers, which every type holds, and whose sums are exact: what a right kernel gives is known to the bit. */
static bool is_right(bool trans_b, bool packed)
{
    enum { M = 37, N = 80, K = 96 };
    static float a[M * K], b[N * K], c[M * N];
    for (int i = 0; i < M * K; i++)
        a[i] = (float)(i * 29 % 15 - 7);
    for (int i = 0; i < N * K; i++)
        b[i] = (float)(i * 31 % 13 - 6);
    for (int i = 0; i < M * N; i++)
        c[i] = (float)(i % 11);
    const int64_t rows = trans_b ? N : K, cols = trans_b ? K : N;
    void *weight = packed ? bw_calloc(weight_bytes(rows, cols, true), 1, "matrix products") : NULL;
    if (packed && !weight)
        return false;
    if (packed)
        pack(weight, b, rows, cols, true);
    multiply(&(bw_gemm_call){.m = M,
                             .n = N,
                             .k = K,
                             .alpha = 1,
                             .beta = 1,
                             .a = a,
                             .b = b,
                             .weight = weight,
                             .c = c,
                             .lda = K,
                             .ldb = cols,
                             .ldc = N,
                             .trans_b = trans_b});
    bw_free(weight);
    for (int i = 0; i < M * N; i++) {
        float sum = (float)(i % 11);
        for (int l = 0; l < K; l++)
            sum += a[i / N * K + l] * (trans_b ? b[i % N * K + l] : b[l * N + i % N]);
        if (c[i] != sum)
            return false;
    }
    return true;
}

static int start_with(dnnl_data_type_t type, const char *how, int threads)
{
    const dnnl_version_t *version = dnnl_version();
    BW_TRY(bw_gemm_blis.start(threads)); /* for products over nothing, and for ScaLAPACK */
    BW_TRY(open_engine());
    state.type = type;
    snprintf(state.description, sizeof state.description, "oneDNN %d.%d.%d, %s, %d thread%s", version->major, version->minor, version->patch, how,
             threads > 0 ? threads : 1, threads > 1 ? "s" : "");
    for (int which = 0; which < 4; which++)
        if (!is_right(which % 2, which / 2))
            return bw_fail(BW_SYSTEM, "its products came out wrong in a check");
    return BW_OK;
}

static int start(int threads)
{
    char how[48];
    snprintf(how, sizeof how, "bf16 by %s", kernels());
    return start_with(dnnl_bf16, how, threads);
}

static int start_full(int threads)
{
    return start_with(dnnl_f32, "fp32", threads);
}

static const char *describe(void)
{
    return state.description;
}

#define ONEDNN(precision_, type_, missing_, start_)                                                                                                  \
    {                                                                                                                                                \
        .precision = (precision_), .name = "oneDNN", .weight_type = (type_), .missing = (missing_), .start = (start_), .stop = stop,                 \
        .describe = describe, .multiply = multiply, .weight_bytes = weight_bytes, .pack = pack                                                       \
    }
const bw_gemm_backend bw_gemm_onednn = ONEDNN("bf16", "bf16", missing, start);
const bw_gemm_backend bw_gemm_onednn_f32 = ONEDNN("fp32", "f32", missing_nothing, start_full);

#else

static const char *missing(void)
{
    return "this build is without it";
}

const bw_gemm_backend bw_gemm_onednn = {.precision = "bf16", .name = "oneDNN", .weight_type = "bf16", .missing = missing};
const bw_gemm_backend bw_gemm_onednn_f32 = {.precision = "fp32", .name = "oneDNN", .weight_type = "f32", .missing = missing};
#endif

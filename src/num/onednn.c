#ifdef BW_ONEDNN
#include "num/onednn.h"
#include "breakwater/base.h"
#include "num/hot.h"
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    USUAL_ROWS = 512, /* the number of rows for which oneDNN is asked to name a weight's layout */
    MOST_PRODUCTS =
        256, /* kept, at 0.1 MiB: a step has thirty shapes, twice as many where sums are cut, for each number of rows; made again in 0.3 ms */
    PLACES = 512,
    MOST_LAYOUTS = 32,
    MOST_PACKINGS = 64, /* kept: two of each layout; made again in 0.1 ms, as long as it takes to pack a small weight */
    LINE = 64
};

typedef struct product {
    bw_onednn_shape shape;
    dnnl_primitive_t primitive; /* NULL: the place is free */
    dnnl_memory_t a, b, c, workspace;
    int64_t workspace_bytes;
    bool fast, reference;
} product;

typedef struct layout { /* of a packed weight, k x n */
    int64_t k, n;
    dnnl_memory_desc_t description;
} layout;

typedef struct packing { /* from a plain matrix into a layout */
    int64_t k, n, ld;
    bool turned;
    dnnl_primitive_t primitive; /* NULL: the place is free */
    dnnl_memory_t from, to;
} packing;

static struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_data_type_t type; /* of operands */
    int64_t depth;         /* of bw_onednn_start */
    product products[PLACES];
    int n_products;
    layout layouts[MOST_LAYOUTS];
    int n_layouts;
    packing packings[MOST_PACKINGS];
    int n_packings; /* made so far: the oldest is the next to go */
    bw_onednn_buffer workspace, sums;
    char description[96];
} state;

static void must(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success)
        return;
    fprintf(stderr, "breakwater: error: oneDNN cannot %s (status %d)\n", what, (int)status);
    abort();
}

void *bw_onednn_reserve(bw_onednn_buffer *buffer, int64_t bytes)
{
    if (bytes <= buffer->bytes)
        return buffer->data;
    bw_free(buffer->data);
    buffer->data = bw_calloc(bytes, 1, "matrix products");
    buffer->bytes = bytes;
    must(buffer->data ? dnnl_success : dnnl_out_of_memory, "get memory for a product");
    return buffer->data;
}

void bw_onednn_release(bw_onednn_buffer *buffer)
{
    bw_free(buffer->data);
    *buffer = (bw_onednn_buffer){0};
}

/* ---- descriptions -------------------------------------------------------------------------------------------------- */

/* rows x cols, stored as it is, or turned: cols rows of ld. */
static dnnl_memory_desc_t plain(int64_t rows, int64_t cols, dnnl_data_type_t type, int64_t ld, bool turned)
{
    dnnl_memory_desc_t description;
    must(dnnl_memory_desc_init_by_strides(&description, 2, (dnnl_dims_t){rows, cols}, type, (dnnl_dims_t){turned ? 1 : ld, turned ? ld : 1}),
         "describe a matrix");
    return description;
}

static dnnl_primitive_attr_t attributes_of(const bw_onednn_shape *s)
{
    dnnl_primitive_attr_t attributes;
    must(dnnl_primitive_attr_create(&attributes), "describe a product");
    must(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user), "describe a product's memory");
    if (s->alpha != 1.0f)
        must(dnnl_primitive_attr_set_output_scales(attributes, 1, 0, &s->alpha), "scale a product");
    if (s->add) {
        dnnl_post_ops_t after;
        must(dnnl_post_ops_create(&after), "describe a sum");
        must(dnnl_post_ops_append_sum(after, 1.0f), "describe a sum");
        must(dnnl_primitive_attr_set_post_ops(attributes, after), "describe a sum");
        must(dnnl_post_ops_destroy(after), "let go of a description");
    }
    return attributes;
}

static dnnl_primitive_desc_t describe_product(const bw_onednn_shape *s, const dnnl_memory_desc_t *b)
{
    const dnnl_memory_desc_t a = plain(s->m, s->k, state.type, s->lda, s->trans_a), c = plain(s->m, s->n, dnnl_f32, s->n, false);
    dnnl_primitive_attr_t attributes = attributes_of(s);
    dnnl_matmul_desc_t operation;
    dnnl_primitive_desc_t description;
    must(dnnl_matmul_desc_init(&operation, &a, b, NULL, &c), "describe a product");
    must(dnnl_primitive_desc_create(&description, &operation, attributes, state.engine, NULL), "find a kernel for a product");
    must(dnnl_primitive_attr_destroy(attributes), "let go of a description");
    return description;
}

/* The layout that oneDNN likes for a weight, k x n. */
static const dnnl_memory_desc_t *layout_of(int64_t k, int64_t n)
{
    for (int i = 0; i < state.n_layouts; i++)
        if (state.layouts[i].k == k && state.layouts[i].n == n)
            return &state.layouts[i].description;
    const bw_onednn_shape usual = {.m = USUAL_ROWS, .n = n, .k = k, .lda = k, .packed = true, .alpha = 1};
    dnnl_memory_desc_t any;
    must(dnnl_memory_desc_init_by_tag(&any, 2, (dnnl_dims_t){k, n}, state.type, dnnl_format_tag_any), "describe a weight");
    dnnl_primitive_desc_t description = describe_product(&usual, &any);
    state.n_layouts = state.n_layouts < MOST_LAYOUTS ? state.n_layouts : 0; /* asked for again, the answer is the same */
    layout *added = &state.layouts[state.n_layouts++];
    *added = (layout){k, n, *dnnl_primitive_desc_query_md(description, dnnl_query_weights_md, 0)};
    must(dnnl_primitive_desc_destroy(description), "let go of a description");
    return &added->description;
}

/* ---- products kept ------------------------------------------------------------------------------------------------- */

static void memory_for(dnnl_memory_t *memory, const_dnnl_primitive_desc_t description, dnnl_query_t what)
{
    const dnnl_memory_desc_t *found = dnnl_primitive_desc_query_md(description, what, 0);
    must(dnnl_memory_create(memory, found, state.engine, DNNL_MEMORY_NONE), "describe memory");
}

static void make_product(product *p, const bw_onednn_shape *s)
{
    const dnnl_memory_desc_t b = s->packed ? *layout_of(s->k, s->n) : plain(s->k, s->n, state.type, s->ldb, s->trans_b);
    dnnl_primitive_desc_t description = describe_product(s, &b);
    const char *kernel = "";
    must(dnnl_primitive_desc_query(description, dnnl_query_impl_info_str, 0, &kernel), "name a kernel");
    p->shape = *s;
    p->fast = strncmp(kernel, "brg", 3) == 0;
    p->reference = strncmp(kernel, "ref", 3) == 0;
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

static bool same_shape(const bw_onednn_shape *a, const bw_onednn_shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->lda == b->lda && a->ldb == b->ldb && a->trans_a == b->trans_a &&
           a->trans_b == b->trans_b && a->packed == b->packed && a->add == b->add && a->alpha == b->alpha;
}

static int place_of(const bw_onednn_shape *s)
{
    const int64_t parts[] = {s->m, s->n, s->k, s->lda, s->ldb, s->trans_a | s->trans_b << 1 | s->packed << 2 | s->add << 3};
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        hash = (hash ^ (uint64_t)parts[i]) * 0x9e3779b97f4a7c15u;
    return (int)(hash >> 55) % PLACES;
}

static product *product_of(const bw_onednn_shape *s)
{
    if (state.n_products == MOST_PRODUCTS)
        forget_products();
    int place = place_of(s);
    while (state.products[place].primitive && !same_shape(&state.products[place].shape, s))
        place = (place + 1) % PLACES;
    if (!state.products[place].primitive) {
        make_product(&state.products[place], s);
        state.n_products++;
    }
    return &state.products[place];
}

bool bw_onednn_is_fast(const bw_onednn_shape *shape)
{
    return product_of(shape)->fast;
}

/* oneDNN multiplies whatever it is asked for; what it has no kernel for takes a thousand times as long. */
static void warn_of_reference(const bw_onednn_shape *s)
{
    static bool warned;
    if (!warned)
        bw_warn(
            "oneDNN has only reference code for products such as %lld x %lld x %lld, which is very slow: DNNL_MAX_CPU_ISA=AVX2 in the environment "
            "does without oneDNN",
            (long long)s->m, (long long)s->n, (long long)s->k);
    warned = true;
}

void bw_onednn_multiply(const bw_onednn_shape *shape, const void *a, const void *b, float *c)
{
    product *p = product_of(shape);
    /* One thread would do its part of the product there, and nobody the rest. */
    must(omp_in_parallel() ? dnnl_invalid_arguments : dnnl_success, "multiply inside a parallel region");
    if (p->reference)
        warn_of_reference(shape);
    must(dnnl_memory_set_data_handle(p->a, (void *)a), "take an operand");
    must(dnnl_memory_set_data_handle(p->b, (void *)b), "take an operand");
    must(dnnl_memory_set_data_handle(p->c, c), "take a result");
    must(dnnl_memory_set_data_handle(p->workspace, bw_onednn_reserve(&state.workspace, p->workspace_bytes)), "take memory");
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}, {DNNL_ARG_SCRATCHPAD, p->workspace}};
    must(dnnl_primitive_execute(p->primitive, state.stream, 4, arguments), "multiply");
    must(dnnl_stream_wait(state.stream), "finish a product");
}

BW_HOT static void onednn_bring_row(float *c, const float *sums, int64_t step, int64_t n, float alpha, float beta)
{
    if (beta == 0.0f)
        for (int64_t j = 0; j < n; j++)
            c[j] = alpha * sums[j * step];
    else
        for (int64_t j = 0; j < n; j++)
            c[j] = alpha * sums[j * step] + beta * c[j];
}

bool bw_onednn_goes_straight(const bw_gemm_call *call, const bw_onednn_shape *shape)
{
    if (call->ldc != call->n || (call->beta != 0.0f && call->beta != 1.0f))
        return false;
    return (shape->alpha == 1.0f && !shape->add) || bw_onednn_is_fast(shape);
}

void bw_onednn_multiply_apart(const bw_gemm_call *call, bw_onednn_shape shape, const void *a, const void *b, int64_t first, bool turned)
{
    float *sums = bw_onednn_reserve(&state.sums, shape.m * shape.n * (int64_t)sizeof *sums);
    const int64_t row_step = turned ? 1 : shape.n, column_step = turned ? shape.n : 1;
    shape.alpha = 1, shape.add = false;
    bw_onednn_multiply(&shape, a, b, sums);
#pragma omp parallel for schedule(static)
    for (int64_t i = first; i < call->m; i++)
        onednn_bring_row(call->c + i * call->ldc, sums + (i - first) * row_step, column_step, call->n, call->alpha, call->beta);
}

/* ---- packed weights ------------------------------------------------------------------------------------------------- */

static int64_t part_bytes(int64_t k, int64_t n)
{
    const int64_t bytes = (int64_t)dnnl_memory_desc_get_size(layout_of(k, n));
    return (bytes + LINE - 1) / LINE * LINE;
}

int64_t bw_onednn_part(int64_t left)
{
    return state.depth > 0 && left > state.depth ? state.depth : left;
}

int64_t bw_onednn_weight_bytes(int64_t k, int64_t n)
{
    int64_t bytes = 0;
    for (int64_t first = 0; first < k; first += bw_onednn_part(k - first))
        bytes += part_bytes(bw_onednn_part(k - first), n);
    return bytes;
}

static void forget_packing(packing *p)
{
    if (!p->primitive)
        return;
    must(dnnl_primitive_destroy(p->primitive), "let go of a packing");
    must(dnnl_memory_destroy(p->from), "let go of memory");
    must(dnnl_memory_destroy(p->to), "let go of memory");
    *p = (packing){0};
}

static void forget_packings(void)
{
    for (int i = 0; i < MOST_PACKINGS; i++)
        forget_packing(&state.packings[i]);
    state.n_packings = 0;
}

static const packing *packing_of(int64_t k, int64_t n, int64_t ld, bool turned)
{
    for (int i = 0; i < MOST_PACKINGS; i++) {
        const packing *p = &state.packings[i];
        if (p->primitive && p->k == k && p->n == n && p->ld == ld && p->turned == turned)
            return p;
    }
    packing *p = &state.packings[state.n_packings++ % MOST_PACKINGS];
    const dnnl_memory_desc_t here = plain(k, n, state.type, ld, turned), *there = layout_of(k, n);
    dnnl_primitive_desc_t description;
    forget_packing(p);
    *p = (packing){.k = k, .n = n, .ld = ld, .turned = turned};
    must(dnnl_memory_create(&p->from, &here, state.engine, DNNL_MEMORY_NONE), "describe memory");
    must(dnnl_memory_create(&p->to, there, state.engine, DNNL_MEMORY_NONE), "describe memory");
    must(dnnl_reorder_primitive_desc_create(&description, &here, state.engine, there, state.engine, NULL), "find how to pack a weight");
    must(dnnl_primitive_create(&p->primitive, description), "prepare to pack a weight");
    must(dnnl_primitive_desc_destroy(description), "let go of a description");
    return p;
}

static void pack_part(void *weight, const void *from, int64_t k, int64_t n, int64_t ld, bool turned)
{
    const packing *p = packing_of(k, n, ld, turned);
    must(dnnl_memory_set_data_handle(p->from, (void *)from), "take a weight");
    must(dnnl_memory_set_data_handle(p->to, weight), "take a packed weight");
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, p->from}, {DNNL_ARG_TO, p->to}};
    must(dnnl_primitive_execute(p->primitive, state.stream, 2, arguments), "pack a weight");
    must(dnnl_stream_wait(state.stream), "finish packing");
}

void bw_onednn_pack(void *weight, const void *from, int64_t k, int64_t n, int64_t ld, bool turned)
{
    const int64_t entry_bytes = (int64_t)dnnl_data_type_size(state.type);
    char *to = weight;
    for (int64_t first = 0; first < k; first += bw_onednn_part(k - first)) {
        const int64_t rows = bw_onednn_part(k - first), at = turned ? first : first * ld;
        pack_part(to, (const char *)from + at * entry_bytes, rows, n, ld, turned);
        to += part_bytes(rows, n);
    }
}

/* ---- start ---------------------------------------------------------------------------------------------------------- */

const char *bw_onednn_kernels(bool half)
{
    const int isa = (int)dnnl_get_effective_cpu_isa();
    if (!half)
        return (isa & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core ? "AVX512" : NULL;
    if ((isa & dnnl_cpu_isa_avx512_core_amx) == dnnl_cpu_isa_avx512_core_amx)
        return "AMX";
    return (isa & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16 ? "AVX512-BF16" : NULL;
}

static int open_library(void)
{
    if (state.engine)
        return BW_OK;
    if (dnnl_engine_create(&state.engine, dnnl_cpu, 0) == dnnl_success &&
        dnnl_stream_create(&state.stream, state.engine, dnnl_stream_default_flags) == dnnl_success &&
        dnnl_set_primitive_cache_capacity(0) == dnnl_success) /* products are kept here; its own cache would hold on to a thousand more */
        return BW_OK;
    state.engine = NULL;
    return bw_fail(BW_SYSTEM, "oneDNN does not start");
}

int bw_onednn_start(const char *how, bool half, int64_t depth, int threads)
{
    const dnnl_version_t *version = dnnl_version();
    BW_TRY(bw_gemm_blis.start(threads)); /* for products over nothing, and for ScaLAPACK */
    BW_TRY(open_library());
    forget_products();
    forget_packings();
    state.n_layouts = 0;
    state.type = half ? dnnl_bf16 : dnnl_f32;
    state.depth = depth;
    snprintf(state.description, sizeof state.description, "oneDNN %d.%d.%d, %s, %d thread%s", version->major, version->minor, version->patch, how,
             threads > 0 ? threads : 1, threads > 1 ? "s" : "");
    return BW_OK;
}

const char *bw_onednn_describe(void)
{
    return state.description;
}

bool bw_onednn_is_half(void)
{
    return state.type == dnnl_bf16;
}

void bw_onednn_stop(void)
{
    forget_products();
    forget_packings();
    bw_onednn_release(&state.workspace);
    bw_onednn_release(&state.sums);
}

static bool is_right(const bw_gemm_backend *backend, bool trans_b, bool packed)
{
    enum { M = 77, N = 80, LEAST = 96, MOST = 800 }; /* more rows than a backend would leave to BLIS */
    static float a[M * MOST], b[N * MOST], c[M * N];
    const int K = state.depth > 0 && state.depth + 32 <= MOST ? (int)state.depth + 32 : LEAST; /* where sums are cut this one is */
    for (int i = 0; i < M * K; i++)
        a[i] = (float)(i * 29 % 15 - 7);
    for (int i = 0; i < N * K; i++)
        b[i] = (float)(i * 31 % 13 - 6);
    for (int i = 0; i < M * N; i++)
        c[i] = (float)(i % 11);
    const int64_t rows = trans_b ? N : K, cols = trans_b ? K : N;
    const bw_use use = trans_b ? BW_FORWARD : BW_BOTH;
    void *weight = packed ? bw_calloc(backend->weight_bytes(rows, cols, use), 1, "matrix products") : NULL;
    if (packed && !weight)
        return false;
    if (packed)
        backend->pack(weight, (bw_unpacked){.full = b, .ld = cols}, rows, cols, use);
    bw_gemm_call call = {.m = M, .n = N, .k = K, .alpha = 1, .beta = 1, .a = a, .b = b, .weight = weight, .c = c, .lda = K, .ldb = cols, .ldc = N};
    call.trans_b = trans_b;
    backend->multiply(&call);
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

int bw_onednn_require_fast(void)
{
    const bw_onednn_shape shapes[] = {{.m = 80, .n = 80, .k = 96, .lda = 96, .packed = true, .alpha = 1},
                                      {.m = 80, .n = 80, .k = 96, .lda = 96, .ldb = 80, .alpha = 1},
                                      {.m = 80, .n = 80, .k = 96, .lda = 96, .ldb = 96, .trans_b = true, .alpha = 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!bw_onednn_is_fast(&shapes[i]))
            return bw_fail(BW_SYSTEM, "this oneDNN has no fast kernels for that on this CPU");
    return BW_OK;
}

int bw_onednn_check(const bw_gemm_backend *backend)
{
    for (int which = 0; which < 4; which++) {
        const bool trans_b = which % 2, packed = which / 2, serves = !packed || trans_b || !backend->forward_only;
        if (serves && !is_right(backend, trans_b, packed))
            return bw_fail(BW_SYSTEM, "its products came out wrong in a check");
    }
    return BW_OK;
}

#else
#include "num/gemm.h"

/* The table's rows in a build without oneDNN. */
static const char *missing(void)
{
    return "this build is without it";
}

const bw_gemm_backend bw_gemm_onednn = {.precision = "bf16", .name = "oneDNN in bf16", .weight_type = "bf16", .missing = missing};
const bw_gemm_backend bw_gemm_onednn_fp32 = {.precision = "fp32", .name = "oneDNN in fp32", .weight_type = "f32", .missing = missing};
const bw_gemm_backend bw_gemm_onednn_full = {.precision = "fp32", .name = "oneDNN in the way of bf16", .weight_type = "f32", .missing = missing};
#endif

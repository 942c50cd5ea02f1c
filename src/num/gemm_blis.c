/* BLIS behind the GEMM seam; nothing else calls it. Row and column strides say where an operand is transposed, so
 * nothing is copied but the panels that BLIS packs for itself, and those of narrow products (gemm_narrow.c). */
#include "breakwater/base.h"
#include "num/gemm.h"
#include <blis.h>
#include <stdio.h>
#include <stdlib.h>

static int thread_count = 1;
static char description[96] = "BLIS, not started";

/* BLIS 0.9.0 asks a table of processor names for its kernels and takes slow ones for a name it does not know, or 0.
 * BLIS_ARCH_TYPE overrules it; it is read once, at the first call. */
static const char *kernel_set(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl");
    if (avx512)
        return "skx";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return __builtin_cpu_is("amd") ? "zen3" : "haswell";
#endif
    return NULL;
}

static int name_kernels(void)
{
    static const struct {
        const char *name;
        arch_t id;
    } ids[] = {{"skx", BLIS_ARCH_SKX}, {"zen3", BLIS_ARCH_ZEN3}, {"haswell", BLIS_ARCH_HASWELL}};
    const char *name = kernel_set();
    char number[16];
    for (size_t i = 0; name && i < sizeof ids / sizeof ids[0]; i++)
        if (strcmp(ids[i].name, name) == 0) {
            snprintf(number, sizeof number, "%d", (int)ids[i].id);
            if (setenv("BLIS_ARCH_TYPE", number, 0) != 0)
                return bw_fail(BW_SYSTEM, "cannot set BLIS_ARCH_TYPE: out of memory");
        }
    return BW_OK;
}

static int start(int threads)
{
    BW_TRY(name_kernels());
    bli_init(); /* before bli_arch_query_id, which aborts otherwise where BLIS_ARCH_TYPE is set */
    thread_count = threads > 0 ? threads : 1;
    bli_thread_set_num_threads(thread_count);
    snprintf(description, sizeof description, "BLIS %s, kernels %s, %d thread%s", bli_info_get_version_str(), bli_arch_string(bli_arch_query_id()),
             thread_count, thread_count == 1 ? "" : "s");
    return BW_OK;
}

static const char *describe(void)
{
    return description;
}

/* The kernels for small products sum in an order that depends on how threads cut the product, so they stay off: the
 * packed path gives an entry the same bits for any number of threads. */
static void multiply(const bw_gemm_call *call)
{
    if (bw_gemm_is_thin(call)) {
        bw_gemm_thin(call, thread_count);
        return;
    }
    if (bw_gemm_is_narrow(call)) {
        bw_gemm_narrow(call, thread_count);
        return;
    }
    rntm_t runtime = BLIS_RNTM_INITIALIZER;
    float alpha = call->alpha, beta = call->beta;
    bli_rntm_set_num_threads(thread_count, &runtime);
    bli_rntm_disable_l3_sup(&runtime);
    inc_t a_row = call->trans_a ? 1 : call->lda, a_column = call->trans_a ? call->lda : 1;
    inc_t b_row = call->trans_b ? 1 : call->ldb, b_column = call->trans_b ? call->ldb : 1;
    bli_sgemm_ex(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, call->m, call->n, call->k, &alpha, (float *)call->a, a_row, a_column, (float *)call->b, b_row,
                 b_column, &beta, call->c, call->ldc, 1, NULL, &runtime);
}

static const char *missing(void)
{
    return NULL;
}

const bw_gemm_backend bw_gemm_blis = {
    .precision = "fp32", .name = "BLIS", .weight_type = "f32", .missing = missing, .start = start, .describe = describe, .multiply = multiply};

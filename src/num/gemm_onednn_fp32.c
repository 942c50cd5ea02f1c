/* fp32 on oneDNN behind the GEMM seam, where the CPU has AVX512: 92 to 98 % of its multiply-adds, where BLIS has 70 to 90 (docs/performance.md).
 * Operands are taken where they lie. A frozen weight that needs its forward product only is packed once; with a backward pass it stays the dense
 * matrix, which serves both: a copy for each direction would be twice the memory for 3 % of the time. */
#include "breakwater/base.h"
#include "num/gemm.h"
#ifdef BW_ONEDNN
#include "num/onednn.h"

enum {
    FEW_ROWS = 64, /* up to here oneDNN turns a weight over for longer than it multiplies; num/gemm_narrow.c is faster, measured */
    DEPTH = 1024   /* of a sum over columns of a: from 2,000 on, how oneDNN cuts it depends on the number of threads */
};

static bw_onednn_buffer sums; /* of a product whose rows lie apart */

static bw_onednn_shape shape_of(const bw_gemm_call *call)
{
    bw_onednn_shape shape = {.m = call->m, .n = call->n, .k = call->k, .lda = call->lda, .trans_a = call->trans_a, .alpha = call->alpha};
    shape.packed = call->weight != NULL;
    shape.ldb = shape.packed ? 0 : call->ldb;
    shape.trans_b = !shape.packed && call->trans_b;
    shape.add = call->beta != 0.0f;
    return shape;
}

/* What is not packed and has no fast kernel is left to BLIS. oneDNN's other kernels, too, sum in an order that follows the number of threads. */
static bool is_ours(const bw_gemm_call *call)
{
    const bool dense = call->ldc == call->n && (call->beta == 0.0f || call->beta == 1.0f), few = call->trans_b && call->m <= FEW_ROWS;
    if (call->weight)
        return true;
    const bw_onednn_shape shape = shape_of(call);
    return call->k > 0 && dense && !few && bw_onednn_is_fast(&shape);
}

static void multiply_apart(const bw_gemm_call *call)
{
    bw_onednn_shape shape = shape_of(call);
    shape.add = false, shape.alpha = 1;
    float *to = bw_onednn_reserve(&sums, call->m * call->n * (int64_t)sizeof *to);
    bw_onednn_multiply(&shape, call->a, call->weight, to);
    bw_onednn_bring(call, 0, to, call->n, 1);
}

static void multiply_deep(const bw_gemm_call *call)
{
    bw_gemm_call part = *call;
    for (int64_t l = 0; l < call->k; l += DEPTH, part.beta = 1) {
        part.k = call->k - l < DEPTH ? call->k - l : DEPTH;
        const bw_onednn_shape shape = shape_of(&part);
        bw_onednn_multiply(&shape, call->a + l * call->lda, call->b + (call->trans_b ? l : l * call->ldb), call->c);
    }
}

static void multiply(const bw_gemm_call *call)
{
    const bw_onednn_shape shape = shape_of(call);
    pthread_mutex_lock(&bw_onednn_lock);
    const bool ours = is_ours(call);
    if (ours && call->ldc != call->n)
        multiply_apart(call);
    else if (ours && call->trans_a)
        multiply_deep(call);
    else if (ours)
        bw_onednn_multiply(&shape, call->a, call->weight ? call->weight : call->b, call->c);
    pthread_mutex_unlock(&bw_onednn_lock);
    if (!ours)
        bw_gemm_blis.multiply(call);
}

/* ---- frozen weights, forward only ------------------------------------------------------------------------------------ */

static int64_t weight_bytes(int64_t rows, int64_t cols, bool backward)
{
    (void)backward;
    pthread_mutex_lock(&bw_onednn_lock);
    const int64_t bytes = bw_onednn_weight_bytes(cols, rows);
    pthread_mutex_unlock(&bw_onednn_lock);
    return bytes;
}

static void pack(void *weight, const float *dense, int64_t rows, int64_t cols, bool backward)
{
    (void)backward;
    pthread_mutex_lock(&bw_onednn_lock);
    bw_onednn_pack(weight, dense, cols, rows, cols, true);
    pthread_mutex_unlock(&bw_onednn_lock);
}

/* ---- start ------------------------------------------------------------------------------------------------------------ */

static void stop(void)
{
    bw_onednn_stop();
    bw_onednn_release(&sums);
}

static const char *missing(void)
{
    return bw_onednn_kernels(false) ? NULL : "this CPU has no AVX512";
}

static int start(int threads)
{
    BW_TRY(bw_onednn_start("fp32 by AVX512", false, threads));
    return bw_onednn_check(&bw_gemm_onednn_fp32);
}

const bw_gemm_backend bw_gemm_onednn_fp32 = {.precision = "fp32",
                                             .name = "oneDNN",
                                             .weight_type = "f32",
                                             .forward_only = true,
                                             .missing = missing,
                                             .start = start,
                                             .stop = stop,
                                             .describe = bw_onednn_describe,
                                             .multiply = multiply,
                                             .weight_bytes = weight_bytes,
                                             .pack = pack};

#else

static const char *missing(void)
{
    return "this build is without it";
}

const bw_gemm_backend bw_gemm_onednn_fp32 = {.precision = "fp32", .name = "oneDNN", .weight_type = "f32", .missing = missing};
#endif

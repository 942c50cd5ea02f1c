/* fp32 on oneDNN behind the GEMM seam, where the CPU has AVX512: 90 to 98 % of its multiply-adds, where BLIS has 70 to 90 (docs/decisions.md).
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

static bw_onednn_shape shape_of(const bw_gemm_call *call)
{
    bw_onednn_shape shape = {.m = call->m, .n = call->n, .k = call->k, .lda = call->lda, .trans_a = call->trans_a, .alpha = call->alpha};
    shape.packed = call->weight != NULL;
    shape.ldb = shape.packed ? 0 : call->ldb;
    shape.trans_b = !shape.packed && call->trans_b;
    shape.add = call->beta != 0.0f;
    return shape;
}

/* The part of a plain product that sums from l on. */
static bw_gemm_call part_at(const bw_gemm_call *call, int64_t l)
{
    const int64_t depth = call->trans_a ? DEPTH : call->k;
    bw_gemm_call part = *call;
    part.k = call->k - l < depth ? call->k - l : depth;
    part.beta = l > 0 ? 1 : call->beta;
    part.a = call->a + (call->trans_a ? l * call->lda : l);
    part.b = call->b + (call->trans_b ? l : l * call->ldb);
    return part;
}

/* What is not packed and has no fast kernel is left to BLIS. oneDNN's other kernels, too, sum in an order that follows the number of threads. */
static bool is_ours(const bw_gemm_call *call)
{
    if (call->weight)
        return true;
    if (call->k <= 0 || (call->trans_b && call->m <= FEW_ROWS))
        return false;
    bw_gemm_call part;
    for (int64_t l = 0; l < call->k; l += part.k) {
        part = part_at(call, l);
        const bw_onednn_shape shape = shape_of(&part);
        if (!bw_onednn_goes_straight(&part, &shape) || !bw_onednn_is_fast(&shape))
            return false;
    }
    return true;
}

static void multiply_packed(const bw_gemm_call *call)
{
    const bw_onednn_shape shape = shape_of(call);
    if (bw_onednn_goes_straight(call, &shape))
        bw_onednn_multiply(&shape, call->a, call->weight, call->c);
    else
        bw_onednn_multiply_apart(call, shape, call->a, call->weight, 0, false);
}

static void multiply_plain(const bw_gemm_call *call)
{
    bw_gemm_call part;
    for (int64_t l = 0; l < call->k; l += part.k) {
        part = part_at(call, l);
        const bw_onednn_shape shape = shape_of(&part);
        bw_onednn_multiply(&shape, part.a, part.b, part.c);
    }
}

static void multiply(const bw_gemm_call *call)
{
    if (!is_ours(call))
        bw_gemm_blis.multiply(call);
    else if (call->weight)
        multiply_packed(call);
    else
        multiply_plain(call);
}

/* ---- frozen weights, forward only ------------------------------------------------------------------------------------ */

static int64_t weight_bytes(int64_t rows, int64_t cols, bw_use use)
{
    (void)use;
    return bw_onednn_weight_bytes(cols, rows);
}

static void pack(void *weight, bw_unpacked from, int64_t rows, int64_t cols, bw_use use)
{
    (void)use;
    bw_onednn_pack(weight, from.full, cols, rows, from.ld, true);
}

/* ---- start ------------------------------------------------------------------------------------------------------------ */

static const char *missing(void)
{
    return bw_onednn_kernels(false) ? NULL : "this CPU has no AVX512";
}

static int start(int threads)
{
    BW_TRY(bw_onednn_start("fp32 by AVX512", false, 0, threads));
    BW_TRY(bw_onednn_require_fast());
    return bw_onednn_check(&bw_gemm_onednn_fp32);
}

const bw_gemm_backend bw_gemm_onednn_fp32 = {.precision = "fp32",
                                             .name = "oneDNN in fp32",
                                             .weight_type = "f32",
                                             .forward_only = true,
                                             .missing = missing,
                                             .start = start,
                                             .stop = bw_onednn_stop,
                                             .describe = bw_onednn_describe,
                                             .multiply = multiply,
                                             .weight_bytes = weight_bytes,
                                             .pack = pack};

#endif

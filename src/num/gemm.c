/* The GEMM seam: which backend serves a precision, and how much was multiplied. */
#include "num/gemm.h"
#include "breakwater/base.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Best first: the first that this CPU and build have is taken, of all or of those with the precision that is asked for. BLIS is always there. */
static const bw_gemm_backend *const backends[] = {&bw_gemm_onednn, &bw_gemm_onednn_fp32, &bw_gemm_blis, &bw_gemm_bf16};
enum { BACKENDS = sizeof backends / sizeof backends[0] };
enum { LINE = 64 };

static const bw_gemm_backend *chosen = &bw_gemm_blis; /* fp32 until bw_gemm_start says otherwise */
static char description[512];
static _Atomic int64_t flops;

/* ---- choice ------------------------------------------------------------------------------------------------------- */

static bool serves(const bw_gemm_backend *backend, const char *precision)
{
    return strcmp(precision, "auto") == 0 || strcmp(precision, backend->precision) == 0;
}

static int start(int place, const char *why_not, int threads)
{
    if (chosen->stop && chosen != backends[place])
        chosen->stop();
    chosen = backends[place];
    BW_TRY(chosen->start(threads));
    snprintf(description, sizeof description, "%s%s", chosen->describe(), why_not);
    return BW_OK;
}

int bw_gemm_start(const char *precision, int threads)
{
    char why_not[256] = "";
    int status = bw_fail(BW_USAGE, "precision '%s' is not known here: use fp32, bf16 or auto", precision);
    for (int i = 0; i < BACKENDS; i++) {
        if (!serves(backends[i], precision))
            continue;
        bw_error_clear();
        const char *missing = backends[i]->missing();
        if (!missing && (status = start(i, why_not, threads)) == BW_OK)
            return BW_OK;
        const size_t said = strlen(why_not);
        snprintf(why_not + said, sizeof why_not - said, "; not %s: %s", backends[i]->name, missing ? missing : bw_error());
    }
    return status;
}

const bw_gemm_backend *bw_gemm_backend_chosen(void)
{
    return chosen;
}

int bw_gemm_place(void)
{
    for (int i = 0; i < BACKENDS; i++)
        if (backends[i] == chosen)
            return i;
    return BACKENDS;
}

int bw_gemm_start_at(int place, int threads)
{
    BW_ASSERT(place >= 0 && place < BACKENDS);
    const char *missing = backends[place]->missing();
    if (missing)
        return bw_fail(BW_SYSTEM, "other ranks multiply with %s, and here it is not to be had: %s", backends[place]->name, missing);
    return start(place, "; another rank has no better one", threads);
}

bool bw_gemm_is_half(void)
{
    return strcmp(chosen->precision, "bf16") == 0;
}

void bw_gemm_stop(void)
{
    if (chosen->stop)
        chosen->stop();
}

const char *bw_gemm_precision(void)
{
    return chosen->precision;
}

const char *bw_gemm_describe(void)
{
    return description;
}

/* ---- products ------------------------------------------------------------------------------------------------------ */

static void refuse(const char *what)
{
    fprintf(stderr, "breakwater: error: %s: this is a bug\n", what);
    abort();
}

static void multiply(const bw_gemm_call *call)
{
    if (call->m <= 0 || call->n <= 0)
        return;
    chosen->multiply(call);
    atomic_fetch_add_explicit(&flops, 2 * call->m * call->n * call->k, memory_order_relaxed);
}

void bw_gemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, float alpha, bw_operand a, bw_operand b, float beta, float *c, int64_t ldc)
{
    if (trans_a && !trans_b && !a.x && !b.x)
        refuse("a product is to turn over one of two operands of which only copies are there");
    multiply(&(bw_gemm_call){.m = m,
                             .n = n,
                             .k = k,
                             .alpha = alpha,
                             .beta = beta,
                             .a = a.x,
                             .b = b.x,
                             .c = c,
                             .lda = a.ld,
                             .ldb = b.ld,
                             .ldc = ldc,
                             .trans_a = trans_a,
                             .trans_b = trans_b,
                             .ready_a = a.ready,
                             .ready_b = b.ready});
}

double bw_gemm_flops(void)
{
    return (double)atomic_load_explicit(&flops, memory_order_relaxed);
}

/* ---- frozen weights ------------------------------------------------------------------------------------------------- */

bool bw_weight_is_dense(bw_use use)
{
    return !chosen->pack || ((use & BW_BACKWARD) && chosen->forward_only);
}

const char *bw_weight_type(void)
{
    return chosen->weight_type;
}

int64_t bw_weight_bytes(int64_t rows, int64_t cols, bw_use use)
{
    const int64_t bytes = bw_weight_is_dense(use) ? rows * cols * (int64_t)sizeof(float) : chosen->weight_bytes(rows, cols, use);
    return (bytes + LINE - 1) / LINE * LINE;
}

/* An odd number of units: a power of two would bring the entries of a column into one set. */
int64_t bw_weight_ld(int64_t cols)
{
    return ((cols + BW_READY_UNIT - 1) / BW_READY_UNIT | 1) * BW_READY_UNIT;
}

int64_t bw_weight_entry_bytes(void)
{
    return bw_gemm_is_half() ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float);
}

void bw_weight_pack(void *weight, bw_unpacked from, int64_t rows, int64_t cols, bw_use use)
{
    if (from.half && !bw_gemm_is_half())
        refuse("a weight of bf16 is to be packed for products in fp32");
    if (!bw_weight_is_dense(use))
        chosen->pack(weight, from, rows, cols, use);
    else
        for (int64_t i = 0; i < rows; i++)
            memcpy((float *)weight + i * cols, from.full + i * from.ld, (size_t)cols * sizeof *from.full);
}

void bw_gemm_weight(bool trans, int64_t m, int64_t n, int64_t k, bw_operand a, bw_weight weight, float beta, float *c, int64_t ldc)
{
    bw_gemm_call call = {.m = m, .n = n, .k = k, .alpha = 1, .beta = beta, .a = a.x, .lda = a.ld, .c = c, .ldc = ldc, .trans_b = trans};
    call.ready_a = a.ready;
    if (!(weight.use & (trans ? BW_FORWARD : BW_BACKWARD)))
        refuse("a weight prepared for the product of one direction is asked for that of the other");
    if (weight.dense)
        call.b = weight.data;
    else
        call.weight = weight.data;
    call.ldb = trans ? k : n;
    multiply(&call);
}

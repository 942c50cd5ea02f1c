/* reduce.c - gradients as integers, whose sums are exact.
 *
 * Each micro-batch's gradient is rounded to multiples of 2^-exponent and added up in int64, first on the rank, then over the ranks.
 * Integer sums know no order, so the same micro-batches give the same bits wherever they were computed.
 *
 * Overflow must not depend on who adds what either. For each tensor the largest magnitude of every micro-batch is added up as well
 * (rounded up to whole units of 2^16, so that its own sum cannot overflow): as long as that total stays below 2^62, no partial sum of any
 * entry, in any order, can leave int64. */
#include <limits.h>
#include <math.h>
#include <string.h>
#include "par/comms.h"

enum {
    FIRST_EXPONENT = 40, /* before anything is known: entries whose sums stay below 2^22, in steps of 1e-12 */
    SUM_BITS = 62,
    HEADROOM_BITS = 20,
    UNIT_BITS = 16,
    LEAST_EXPONENT = -80,
    LARGEST_EXPONENT = 120 /* every fp32 fits below the first; 2^120 is fine enough for denormals */
};

typedef struct bucket {
    int64_t offset, count; /* of its sums and bounds, in `memory` */
} bucket;

struct bw_reduce {
    const bw_grid *grid;
    int tensors, buckets;
    int64_t *sizes, *offsets; /* [tensors]: entries, and where a tensor's sums begin in `memory` */
    int64_t *bounds;          /* [tensors]: where its bound lies in `memory` */
    int *exponents;
    bucket *bucket;
    int64_t *memory; /* per bucket: the sums of its tensors, then one bound per tensor */
    MPI_Request *requests;
    int n_requests;
    bool overflowed, nonfinite;
};

/* ---- create ------------------------------------------------------------------------------------------------------- */
int64_t bw_reduce_integers(int tensors, int64_t entries)
{
    return entries + tensors;
}

static void lay_out(bw_reduce *reduce, const int *bucket_of)
{
    int64_t at = 0;
    for (int b = 0; b < reduce->buckets; b++) {
        reduce->bucket[b].offset = at;
        for (int t = 0; t < reduce->tensors; t++)
            if (bucket_of[t] == b) {
                reduce->offsets[t] = at;
                at += reduce->sizes[t];
            }
        for (int t = 0; t < reduce->tensors; t++)
            if (bucket_of[t] == b)
                reduce->bounds[t] = at++;
        reduce->bucket[b].count = at - reduce->bucket[b].offset;
    }
}

static int part(int64_t left)
{
    return (int)(left < BW_MESSAGE_BYTES / 8 ? left : BW_MESSAGE_BYTES / 8);
}

static int64_t count_requests(const bw_reduce *reduce)
{
    int64_t requests = 0;
    for (int b = 0; b < reduce->buckets; b++)
        requests += (reduce->bucket[b].count + BW_MESSAGE_BYTES / 8 - 1) / (BW_MESSAGE_BYTES / 8);
    return requests;
}

static int fill(bw_reduce *reduce, const bw_grid *grid, int tensors, const int64_t *sizes, const int *bucket_of, int buckets)
{
    reduce->grid = grid;
    reduce->tensors = tensors;
    reduce->buckets = buckets;
    BW_TRY(BW_NEW(reduce->sizes, tensors, "gradient sums"));
    BW_TRY(BW_NEW(reduce->offsets, tensors, "gradient sums"));
    BW_TRY(BW_NEW(reduce->bounds, tensors, "gradient sums"));
    BW_TRY(BW_NEW(reduce->exponents, tensors, "gradient sums"));
    BW_TRY(BW_NEW(reduce->bucket, buckets, "gradient sums"));
    int64_t entries = 0;
    for (int t = 0; t < tensors; t++) {
        entries += sizes[t];
        BW_ASSERT(sizes[t] >= 0 && bucket_of[t] >= 0 && bucket_of[t] < buckets);
        reduce->sizes[t] = sizes[t];
        reduce->exponents[t] = FIRST_EXPONENT;
    }
    lay_out(reduce, bucket_of);
    BW_TRY(BW_NEW(reduce->memory, bw_reduce_integers(tensors, entries), "gradient sums"));
    return BW_NEW(reduce->requests, count_requests(reduce), "gradient sums");
}

int bw_reduce_create(bw_reduce **out, const bw_grid *grid, int tensors, const int64_t *sizes, const int *bucket_of, int buckets)
{
    bw_reduce *reduce = NULL;
    int status = BW_NEW(reduce, 1, "gradient sums");
    if (status == BW_OK)
        status = fill(reduce, grid, tensors, sizes, bucket_of, buckets);
    status = bw_agree(grid, status);
    if (status != BW_OK)
        bw_reduce_destroy(&reduce);
    *out = reduce;
    return status;
}

void bw_reduce_destroy(bw_reduce **reduce)
{
    if (!*reduce)
        return;
    bw_free((*reduce)->sizes);
    bw_free((*reduce)->offsets);
    bw_free((*reduce)->bounds);
    bw_free((*reduce)->exponents);
    bw_free((*reduce)->bucket);
    bw_free((*reduce)->memory);
    bw_free((*reduce)->requests);
    bw_free(*reduce);
    *reduce = NULL;
}

/* ---- exponents ---------------------------------------------------------------------------------------------------- */
static int clamp_exponent(int exponent)
{
    return exponent < LEAST_EXPONENT ? LEAST_EXPONENT : exponent > LARGEST_EXPONENT ? LARGEST_EXPONENT : exponent;
}

void bw_reduce_exponents(bw_reduce *reduce, int *exponents, bool set)
{
    for (int t = 0; t < reduce->tensors; t++)
        if (set)
            reduce->exponents[t] = clamp_exponent(exponents[t]); /* from a file, perhaps */
        else
            exponents[t] = reduce->exponents[t];
}

void bw_reduce_widen(bw_reduce *reduce)
{
    for (int t = 0; t < reduce->tensors; t++)
        reduce->exponents[t] = clamp_exponent(reduce->exponents[t] - HEADROOM_BITS);
}

static uint64_t largest_magnitude(const int64_t *sums, int64_t count)
{
    uint64_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint64_t magnitude = sums[i] < 0 ? -(uint64_t)sums[i] : (uint64_t)sums[i];
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

/* A tensor without any gradient tells nothing, and keeps its exponent. */
void bw_reduce_advance(bw_reduce *reduce)
{
    for (int t = 0; t < reduce->tensors; t++) {
        uint64_t largest = largest_magnitude(reduce->memory + reduce->offsets[t], reduce->sizes[t]);
        if (largest == 0)
            continue;
        int bits = 64 - __builtin_clzll(largest); /* largest < 2^bits */
        reduce->exponents[t] = clamp_exponent(reduce->exponents[t] + SUM_BITS - HEADROOM_BITS - bits);
    }
}

/* ---- add ---------------------------------------------------------------------------------------------------------- */
void bw_reduce_begin(bw_reduce *reduce)
{
    int64_t entries = 0;
    for (int b = 0; b < reduce->buckets; b++)
        entries += reduce->bucket[b].count;
    if (entries > 0)
        memset(reduce->memory, 0, sizeof *reduce->memory * (size_t)entries);
    reduce->overflowed = reduce->nonfinite = false;
}

/* Bits of the largest magnitude. Without their sign, IEEE numbers order as integers do, and Inf and NaN come above all others. */
static uint32_t largest_bits(const float *values, int64_t count)
{
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bits &= 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* Adding 1.5 * 2^52 to a double rounds it to an integer, nearest even, which then lies in the low bits. That reaches 2^51, so a value is split:
 * the high part in multiples of 2^32, the rest exactly. No instruction here needs more than SSE2, and all of it vectorises. */
static void add_fixed(int64_t *sums, const float *gradient, int64_t count, double scale)
{
    const double magic = 0x1.8p52;
    int64_t magic_bits;
    memcpy(&magic_bits, &magic, sizeof magic_bits);
    for (int64_t i = 0; i < count; i++) {
        double value = (double)gradient[i] * scale;
        double high = value * 0x1p-32 + magic;
        double low = (value - (high - magic) * 0x1p32) + magic;
        uint64_t high_bits, low_bits;
        memcpy(&high_bits, &high, sizeof high_bits);
        memcpy(&low_bits, &low, sizeof low_bits);
        uint64_t fixed = ((high_bits - (uint64_t)magic_bits) << 32) + (low_bits - (uint64_t)magic_bits);
        sums[i] = (int64_t)((uint64_t)sums[i] + fixed);
    }
}

void bw_reduce_add(bw_reduce *reduce, int tensor, const float *gradient)
{
    int64_t count = reduce->sizes[tensor];
    uint32_t bits = largest_bits(gradient, count);
    int64_t *bound = reduce->memory + reduce->bounds[tensor];
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    if (bits >= 0x7f800000u) {
        reduce->nonfinite = true;
        return;
    }
    double scale = ldexp(1.0, reduce->exponents[tensor]), units = ceil((double)largest * scale * 0x1p-16);
    if (units >= 0x1p46) { /* alone beyond 2^62 */
        reduce->overflowed = true;
        *bound += INT64_C(1) << (SUM_BITS - UNIT_BITS);
        return;
    }
    *bound += (int64_t)units;
    add_fixed(reduce->memory + reduce->offsets[tensor], gradient, count, scale);
}

/* ---- sum over ranks ------------------------------------------------------------------------------------------------ */
int bw_reduce_launch(bw_reduce *reduce, int bucket)
{
    MPI_Comm comm = reduce->grid->comms->reduce;
    int64_t *memory = reduce->memory + reduce->bucket[bucket].offset, count = reduce->bucket[bucket].count;
    for (int64_t done = 0; done < count; done += part(count - done))
        BW_MPI(MPI_Iallreduce(MPI_IN_PLACE, memory + done, part(count - done), MPI_INT64_T, MPI_SUM, comm, &reduce->requests[reduce->n_requests++]));
    return BW_OK;
}

int bw_reduce_finish(bw_reduce *reduce)
{
    int count = reduce->n_requests;
    const double start = bw_now();
    reduce->n_requests = 0;
    BW_MPI(MPI_Waitall(count, reduce->requests, MPI_STATUSES_IGNORE));
    bw_event_add(BW_EVENT_REDUCE, bw_now() - start, 0, 0); /* what the backward pass did not hide */
    for (int t = 0; t < reduce->tensors; t++)
        if (reduce->memory[reduce->bounds[t]] >= INT64_C(1) << (SUM_BITS - UNIT_BITS))
            reduce->overflowed = true;
    return BW_OK;
}

bool bw_reduce_overflowed(const bw_reduce *reduce)
{
    return reduce->overflowed;
}

bool bw_reduce_nonfinite(const bw_reduce *reduce)
{
    return reduce->nonfinite;
}

const int64_t *bw_reduce_sum(const bw_reduce *reduce, int tensor)
{
    return reduce->memory + reduce->offsets[tensor];
}

/* ---- norm --------------------------------------------------------------------------------------------------------- */
enum { LANES = 8 }; /* as many partial sums as a vector holds: the order is fixed, and the compiler may still use vectors */

static double sum_of_squares(const int64_t *sums, int64_t count, double unit)
{
    double lanes[LANES] = {0}, total = 0;
    int64_t whole = count / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            double value = (double)sums[i + lane] * unit;
            lanes[lane] += value * value;
        }
    for (int64_t i = whole; i < count; i++)
        lanes[i - whole] += (double)sums[i] * unit * ((double)sums[i] * unit);
    for (int lane = 0; lane < LANES; lane++)
        total += lanes[lane];
    return total;
}

double bw_reduce_norm(const bw_reduce *reduce)
{
    double total = 0;
    for (int t = 0; t < reduce->tensors; t++)
        total += sum_of_squares(reduce->memory + reduce->offsets[t], reduce->sizes[t], ldexp(1.0, -reduce->exponents[t]));
    return sqrt(total);
}

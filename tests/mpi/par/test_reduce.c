/* test_reduce.c - sums of gradients are the same integers whoever adds what, and overflow is noticed by all or none. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

enum { TENSORS = 5, BUCKETS = 3, MICRO_BATCHES = 7, LARGEST = 1003 };
static const int64_t sizes[TENSORS] = {1, 7, 0, LARGEST, 64};
static const int bucket_of[TENSORS] = {0, 0, 2, 2, 2}; /* bucket 1 is empty */

static float gradient_entry(int micro_batch, int tensor, int64_t i)
{
    bw_key key = {7, BW_PURPOSE_TEST, (uint32_t)micro_batch, (uint32_t)tensor, 0};
    uint32_t random[4];
    bw_rng(&key, (uint32_t)i, random);
    float value = bw_rng_uniform(random[0]) - 0.5f;
    return ldexpf(value, (int)(random[1] % 60) - 50); /* from 2^9 down to far below the spacing of the sums */
}

static void fill(float *gradient, int micro_batch, int tensor)
{
    for (int64_t i = 0; i < sizes[tensor]; i++)
        gradient[i] = gradient_entry(micro_batch, tensor, i);
}

static void add_micro_batch(bw_reduce *reduce, int micro_batch)
{
    static float gradient[LARGEST];
    for (int t = 0; t < TENSORS; t++) {
        fill(gradient, micro_batch, t);
        bw_reduce_add(reduce, t, gradient);
    }
}

static void sum_over_ranks(bw_reduce *reduce)
{
    for (int bucket = BUCKETS - 1; bucket >= 0; bucket--)
        CHECK_OK(bw_reduce_launch(reduce, bucket));
    CHECK_OK(bw_reduce_finish(reduce));
}

/* Ways to hand out micro-batches: round robin, the other way round, all to the last rank, in runs. */
enum { WAYS = 4 };
static int worker(int way, int micro_batch, int size)
{
    const int ranks[WAYS] = {micro_batch % size, size - 1 - micro_batch % size, size - 1, micro_batch * size / MICRO_BATCHES};
    return ranks[way];
}

static bw_reduce *open_reduce(const bw_grid *grid)
{
    bw_reduce *reduce = NULL;
    CHECK_OK(bw_reduce_create(&reduce, grid, TENSORS, sizes, bucket_of, BUCKETS));
    return reduce;
}

/* llrint rounds to nearest even as the sums must, one entry at a time. */
static void check_sums(const bw_reduce *reduce, const int *exponents)
{
    double squares = 0;
    for (int t = 0; t < TENSORS; t++)
        for (int64_t i = 0; i < sizes[t]; i++) {
            int64_t expected = 0;
            for (int b = 0; b < MICRO_BATCHES; b++)
                expected += llrint(ldexp((double)gradient_entry(b, t, i), exponents[t]));
            CHECK(bw_reduce_sum(reduce, t)[i] == expected);
            squares += pow(ldexp((double)expected, -exponents[t]), 2);
        }
    /* Two orders of adding about 1e3 positive numbers differ by at most 1e3 roundings. */
    CHECK(fabs(bw_reduce_norm(reduce) - sqrt(squares)) <= 1100 * 0x1p-53 * sqrt(squares));
}

static void who_adds_what_changes_no_bit(const bw_grid *grid)
{
    bw_reduce *reduce = open_reduce(grid);
    int exponents[TENSORS];
    double first = 0, min, max;
    for (int way = 0; way < WAYS; way++) {
        bw_reduce_begin(reduce);
        for (int b = 0; b < MICRO_BATCHES; b++)
            if (worker(way, b, grid->size) == grid->rank)
                add_micro_batch(reduce, b);
        sum_over_ranks(reduce);
        bw_reduce_exponents(reduce, exponents, false);
        check_sums(reduce, exponents);
        CHECK(!bw_reduce_overflowed(reduce) && !bw_reduce_nonfinite(reduce));
        CHECK_OK(bw_min_max(grid, bw_reduce_norm(reduce), &min, &max));
        first = way == 0 ? min : first;
        CHECK(min == max && min == first);
    }
    bw_reduce_destroy(&reduce);
}

/* After advance() the largest sum has 62 - 20 bits, and the same step again gives sums of the new spacing. */
static void the_next_exponents_follow_the_largest_sum(const bw_grid *grid)
{
    bw_reduce *reduce = open_reduce(grid);
    int exponents[TENSORS], first[TENSORS];
    bw_reduce_exponents(reduce, first, false);
    for (int step = 0; step < 2; step++) {
        bw_reduce_begin(reduce);
        for (int b = grid->rank; b < MICRO_BATCHES; b += grid->size)
            add_micro_batch(reduce, b);
        sum_over_ranks(reduce);
        bw_reduce_exponents(reduce, exponents, false);
        check_sums(reduce, exponents);
        for (int t = 0; step == 1 && t < TENSORS; t++) {
            int64_t largest = 0;
            for (int64_t i = 0; i < sizes[t]; i++)
                largest = llabs(bw_reduce_sum(reduce, t)[i]) > largest ? llabs(bw_reduce_sum(reduce, t)[i]) : largest;
            /* a sum of rounded entries may round up to the power of two itself */
            CHECK(sizes[t] == 0 ? exponents[t] == first[t] : largest >= INT64_C(1) << 41 && largest <= INT64_C(1) << 42);
        }
        bw_reduce_advance(reduce);
    }
    bw_reduce_destroy(&reduce);
}

static void exponents_come_back_as_they_were_set(const bw_grid *grid)
{
    bw_reduce *reduce = open_reduce(grid);
    int set[TENSORS] = {3, -7, 40, 60, 1 << 30}, get[TENSORS];
    bw_reduce_exponents(reduce, set, true);
    bw_reduce_exponents(reduce, get, false);
    CHECK(memcmp(set, get, 4 * sizeof *set) == 0 && get[4] < 1000); /* one that no float can need is cut */
    bw_reduce_destroy(&reduce);
}

/* Two micro-batches whose sum leaves the range: seen by every rank, whether one rank adds both or two ranks one each. */
static bool step_overflows(const bw_grid *grid, bw_reduce *reduce, bool spread, float value)
{
    float gradient[7] = {0, 0, 0, value, 0, -value, 0};
    bw_reduce_begin(reduce);
    for (int b = 0; b < 2; b++)
        if ((spread ? b % grid->size : 0) == grid->rank)
            bw_reduce_add(reduce, 1, gradient);
    sum_over_ranks(reduce);
    double min, max;
    CHECK_OK(bw_min_max(grid, bw_reduce_overflowed(reduce), &min, &max));
    CHECK(min == max);
    return max > 0;
}

static void overflow_is_seen_by_all_however_it_is_shared_out(const bw_grid *grid)
{
    bw_reduce *reduce = open_reduce(grid);
    int exponents[TENSORS] = {40, 40, 40, 40, 40};
    for (int spread = 0; spread < 2; spread++) {
        bw_reduce_exponents(reduce, exponents, true);
        CHECK(!step_overflows(grid, reduce, spread, 0x1.fffffep20f)); /* two of them stay below 2^62 */
        CHECK(bw_reduce_sum(reduce, 1)[3] == 2 * INT64_C(0x1fffffe) << 36);
        CHECK(step_overflows(grid, reduce, spread, 0x1p21f)); /* two of them are 2^62 */
        CHECK(step_overflows(grid, reduce, spread, 0x1p22f)); /* one of them is */
        CHECK(step_overflows(grid, reduce, spread, 0x1.fffffep127f));
        bw_reduce_widen(reduce);
        CHECK(!step_overflows(grid, reduce, spread, 0x1p22f));
        CHECK(bw_reduce_sum(reduce, 1)[5] == -(INT64_C(1) << 43));
        for (int i = 0; i < 5; i++)
            bw_reduce_widen(reduce);
        CHECK(!step_overflows(grid, reduce, spread, 0x1.fffffep127f)); /* no finite gradient can overflow for ever */
    }
    bw_reduce_destroy(&reduce);
}

static void nan_and_inf_are_seen_by_the_rank_that_had_them(const bw_grid *grid)
{
    static const float bad[] = {__builtin_nanf(""), __builtin_inff(), -__builtin_inff()};
    bw_reduce *reduce = open_reduce(grid);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        float gradient[7] = {1, 2, 3, 4, 5, 6, grid->rank == 0 ? bad[i] : 7};
        bw_reduce_begin(reduce);
        CHECK(!bw_reduce_nonfinite(reduce));
        bw_reduce_add(reduce, 1, gradient);
        CHECK(bw_reduce_nonfinite(reduce) == (grid->rank == 0));
        sum_over_ranks(reduce);
    }
    bw_reduce_destroy(&reduce);
}

/* Halves, the largest and smallest numbers, both signs: each must round as llrint does. */
static void single_numbers_round_to_nearest_even(const bw_grid *grid)
{
    static const float values[] = {
        0.5f,      1.5f,  2.5f,      -0.5f,      -1.5f,          -2.5f,          0x1.000002p23f, 0x1.7p21f,       -0x1.fffffep60f, 0x1.fffffep60f,
        0x1p-149f, -0.0f, 0x1.8p31f, -0x1.8p31f, 0x1.fffffep31f, 0x1.000002p32f, 0.499999970f,   -0x1.000002p51f, 0x1.2p52f};
    enum { COUNT = sizeof values / sizeof *values };
    for (int64_t at = 0; at < COUNT; at++) {
        bw_reduce *reduce = NULL;
        const int64_t one = 1;
        const int bucket = 0;
        int exponent = 0;
        CHECK_OK(bw_reduce_create(&reduce, grid, 1, &one, &bucket, 1));
        bw_reduce_exponents(reduce, &exponent, true);
        bw_reduce_begin(reduce);
        bw_reduce_add(reduce, 0, &values[at]);
        CHECK(bw_reduce_sum(reduce, 0)[0] == llrint((double)values[at]));
        bw_reduce_destroy(&reduce);
    }
}

int main(int argc, char **argv)
{
    bw_grid *grid = NULL;
    CHECK_OK(bw_par_start(&argc, &argv));
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    who_adds_what_changes_no_bit(grid);
    the_next_exponents_follow_the_largest_sum(grid);
    exponents_come_back_as_they_were_set(grid);
    overflow_is_seen_by_all_however_it_is_shared_out(grid);
    nan_and_inf_are_seen_by_the_rank_that_had_them(grid);
    single_numbers_round_to_nearest_even(grid);
    bw_grid_destroy(&grid);
    return check_finish("test_reduce");
}

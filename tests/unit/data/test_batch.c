/* Which samples a step has, how they are cut, and what a packed micro-batch says. */
#include "breakwater/data.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* A data set of `count` samples with lengths that vary; token t of sample i is 1000 * i + t. */
static bw_dataset make_dataset(int64_t count)
{
    bw_dataset dataset = {.count = count};
    for (int64_t i = 0; i < count; i++)
        dataset.token_count += 2 + i * 7 % 23;
    assert_int_equal(BW_NEW(dataset.samples, count, "test"), BW_OK);
    assert_int_equal(BW_NEW(dataset.tokens, dataset.token_count, "test"), BW_OK);
    for (int64_t i = 0, at = 0; i < count; i++) {
        int32_t length = (int32_t)(2 + i * 7 % 23);
        dataset.samples[i] = (bw_sample){.offset = at, .length = length, .prompt_length = (int32_t)(i % length), .row = (int32_t)i + 1};
        for (int32_t t = 0; t < length; t++)
            dataset.tokens[at++] = (int32_t)(1000 * i) + t;
    }
    return dataset;
}

static void every_epoch_has_each_sample_once(void **state)
{
    (void)state;
    for (int64_t samples = 1; samples <= 41; samples += 5) {
        bw_plan plan = {.samples = samples, .batch = 8, .micro_batches = 4, .seed = 42};
        int64_t steps = bw_plan_steps_per_epoch(&plan), got[8];
        assert_int_equal(steps, (samples + 7) / 8);
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            int seen[64] = {0};
            for (int64_t step = 0; step < steps; step++) {
                int64_t count = bw_plan_step(&plan, epoch * steps + step, got);
                assert_int_equal(count, step + 1 < steps || samples % 8 == 0 ? 8 : samples % 8);
                for (int64_t i = 0; i < count; i++)
                    seen[got[i]]++;
            }
            for (int64_t i = 0; i < samples; i++)
                assert_int_equal(seen[i], 1);
        }
    }
}

static int same_places(const bw_plan *a, int64_t step_a, const bw_plan *b, int64_t step_b)
{
    int64_t left[512], right[512], count = bw_plan_step(a, step_a, left);
    assert_int_equal(bw_plan_step(b, step_b, right), count);
    int same = 0;
    for (int64_t i = 0; i < count; i++)
        same += left[i] == right[i];
    return same;
}

/* Of 512 places two independent permutations agree in 1 on average (Poisson): more than 10 has a chance below 1e-7. */
static void order_is_of_seed_and_step_and_of_nothing_else(void **state)
{
    bw_plan plan = {.samples = 512, .batch = 512, .micro_batches = 4, .seed = 42}, other = plan, cut = plan;
    (void)state;
    other.seed = 43;
    cut.micro_batches = 64;
    assert_int_equal(same_places(&plan, 5, &plan, 5), 512);
    assert_int_equal(same_places(&plan, 5, &cut, 5), 512);
    assert_true(same_places(&plan, 0, &plan, 1) <= 10);
    assert_true(same_places(&plan, 0, &other, 0) <= 10);
}

/* Batches of any size are cuts of one and the same permutation. */
static void the_batch_size_does_not_change_the_order(void **state)
{
    bw_plan whole = {.samples = 100, .batch = 100, .micro_batches = 1, .seed = 7}, parts = whole;
    int64_t all[100], some[100];
    (void)state;
    parts.batch = 7;
    assert_int_equal(bw_plan_step(&whole, 2, all), 100);
    int64_t at = 0, steps = bw_plan_steps_per_epoch(&parts);
    for (int64_t step = 2 * steps; step < 3 * steps; step++) {
        int64_t count = bw_plan_step(&parts, step, some);
        assert_memory_equal(some, all + at, (size_t)count * sizeof *some);
        at += count;
    }
    assert_int_equal(at, 100);
}

/* Each of the 24 orders of 4 samples comes up near 1/24 of 4,800 epochs: 200 +- 14 (one standard deviation), so within 5 of them. */
static void every_permutation_is_as_likely(void **state)
{
    bw_plan plan = {.samples = 4, .batch = 4, .micro_batches = 1, .seed = 3};
    int seen[256] = {0}, kinds = 0;
    int64_t got[4];
    (void)state;
    for (int64_t epoch = 0; epoch < 4800; epoch++) {
        assert_int_equal(bw_plan_step(&plan, epoch, got), 4);
        seen[got[0] << 6 | got[1] << 4 | got[2] << 2 | got[3]]++;
    }
    for (int i = 0; i < 256; i++) {
        kinds += seen[i] > 0;
        assert_true(seen[i] == 0 || (seen[i] > 130 && seen[i] < 270));
    }
    assert_int_equal(kinds, 24);
}

/* Longest first, each to the lightest: no group is heavier than the mean plus one sample, and the lightest is within one sample of it. */
static void groups_are_balanced_and_all_samples_are_in_one(void **state)
{
    bw_dataset dataset = make_dataset(40);
    int64_t samples[40];
    int32_t group[40], again[40];
    (void)state;
    for (int64_t i = 0; i < 40; i++)
        samples[i] = 39 - i;
    for (int64_t groups = 1; groups <= 64; groups *= 4) {
        bw_plan plan = {.samples = 40, .batch = 40, .micro_batches = groups};
        int64_t loads[64] = {0}, longest = 0, low = INT64_MAX, high = 0;
        assert_int_equal(bw_plan_cut(&plan, &dataset, samples, 40, group), BW_OK);
        assert_int_equal(bw_plan_cut(&plan, &dataset, samples, 40, again), BW_OK);
        assert_memory_equal(group, again, sizeof group);
        for (int64_t i = 0; i < 40; i++) {
            int64_t length = dataset.samples[samples[i]].length;
            assert_true(group[i] >= 0 && group[i] < groups);
            loads[group[i]] += length;
            longest = length > longest ? length : longest;
        }
        for (int64_t i = 0; i < groups; i++) {
            low = loads[i] < low ? loads[i] : low;
            high = loads[i] > high ? loads[i] : high;
        }
        assert_true(high - low <= longest);
    }
    bw_dataset_free(&dataset);
}

/* The rule as it is written down, looking through all groups for every sample. */
static void cut_slowly(const bw_dataset *dataset, const int64_t *samples, int64_t count, int64_t groups, int32_t *group)
{
    int64_t loads[64] = {0};
    for (int64_t i = 0; i < count; i++)
        group[i] = -1;
    for (int64_t n = 0; n < count; n++) {
        int64_t next = -1, to = 0;
        for (int64_t i = 0; i < count; i++)
            if (group[i] < 0 && (next < 0 || dataset->samples[samples[i]].length > dataset->samples[samples[next]].length))
                next = i;
        for (int64_t i = 1; i < groups; i++)
            if (loads[i] < loads[to])
                to = i;
        loads[to] += dataset->samples[samples[next]].length;
        group[next] = (int32_t)to;
    }
    int32_t number[64] = {0}; /* of a group: how many come before it */
    for (int64_t i = 0; i < groups; i++)
        for (int64_t j = 0; j < groups; j++)
            number[i] += loads[j] > loads[i] || (loads[j] == loads[i] && j < i);
    for (int64_t i = 0; i < count; i++)
        group[i] = number[group[i]];
}

static void ties_go_to_the_first_of_the_lightest_groups(void **state)
{
    bw_dataset dataset = make_dataset(400); /* of 23 lengths */
    int64_t samples[400];
    int32_t group[400], expected[400];
    (void)state;
    for (int64_t i = 0; i < 400; i++)
        samples[i] = (i * 7 + 5) % 400;
    for (int64_t groups = 1; groups <= 64; groups++) {
        int64_t count = 400 - 6 * groups;
        bw_plan plan = {.samples = 400, .batch = count, .micro_batches = groups};
        assert_int_equal(bw_plan_cut(&plan, &dataset, samples, count, group), BW_OK);
        cut_slowly(&dataset, samples, count, groups, expected);
        assert_memory_equal(group, expected, (size_t)count * sizeof *group);
    }
    bw_dataset_free(&dataset);
}

/* Every group is computed once, by one rank, however many there are; who has nothing left is told so. */
static void every_group_is_dealt_once(void **state)
{
    (void)state;
    for (int64_t groups = 1; groups <= 40; groups++)
        for (int ranks = 1; ranks <= 9; ranks++) {
            const bw_plan plan = {.micro_batches = groups};
            int taken[40] = {0};
            for (int64_t round = 0; round < (groups + ranks - 1) / ranks; round++)
                for (int rank = 0; rank < ranks; rank++) {
                    const int64_t which = bw_plan_deal(&plan, round, rank, ranks);
                    assert_in_range(which, 0, groups);
                    if (which < groups)
                        taken[which]++;
                }
            for (int64_t i = 0; i < groups; i++)
                assert_int_equal(taken[i], 1);
        }
}

/* Two heavy ones do not meet on a rank while another has two light ones. */
static void heavy_and_light_go_together(void **state)
{
    const bw_plan plan = {.micro_batches = 4};
    (void)state;
    assert_int_equal(bw_plan_deal(&plan, 0, 0, 2), 0);
    assert_int_equal(bw_plan_deal(&plan, 1, 0, 2), 3);
    assert_int_equal(bw_plan_deal(&plan, 0, 1, 2), 1);
    assert_int_equal(bw_plan_deal(&plan, 1, 1, 2), 2);
}

/* 10^9 steps are not walked, and what is said instead is enough for every one. */
static void a_very_long_run_is_sized_by_a_bound(void **state)
{
    bw_dataset dataset = make_dataset(50);
    (void)state;
    for (int64_t groups = 1; groups <= 16; groups++) {
        bw_plan plan = {.samples = 50, .batch = 16, .micro_batches = groups, .seed = 3};
        int64_t exact = bw_plan_max_tokens(&plan, &dataset, 0, 4000), most = bw_plan_max_tokens(&plan, &dataset, 0, 1000000000);
        assert_true(exact > 0 && most >= exact && most <= 3 * exact);
    }
    bw_dataset_free(&dataset);
}

/* A packed batch against the data set, place by place. */
static int64_t check_batch(const bw_batch *batch, const bw_dataset *dataset, const int64_t *samples, const int32_t *group, int64_t count,
                           int32_t which)
{
    int64_t t = 0, answers = 0;
    int32_t seq = 0;
    for (int64_t i = 0; i < count; i++) {
        const bw_sample *sample = &dataset->samples[samples[i]];
        if (group[i] != which)
            continue;
        assert_int_equal(batch->offsets[seq++], t);
        for (int32_t p = 0; p < sample->length; p++, t++) {
            const int32_t *token = dataset->tokens + sample->offset + p;
            bool answer = p + 1 < sample->length && p + 1 >= sample->prompt_length;
            assert_int_equal(batch->tokens[t], *token);
            assert_int_equal(batch->positions[t], p);
            assert_int_equal(batch->samples[t], samples[i]);
            assert_int_equal(batch->targets[t], answer ? token[1] : -1);
            answers += answer;
        }
    }
    assert_int_equal(batch->n_seq, seq);
    assert_int_equal(batch->offsets[seq], t);
    assert_int_equal(batch->T, t);
    assert_int_equal(batch->answers, answers);
    return t;
}

static void packing_keeps_every_token_target_and_place(void **state)
{
    bw_dataset dataset = make_dataset(30);
    bw_plan plan = {.samples = 30, .batch = 8, .micro_batches = 3, .seed = 1};
    int64_t samples[8], most = bw_plan_max_tokens(&plan, &dataset, 0, 8), seen = 0;
    int32_t group[8];
    bw_batch batch;
    (void)state;
    assert_int_equal(bw_batch_create(&batch, most, 8), BW_OK);
    for (int64_t step = 0; step < 8; step++) {
        int64_t count = bw_plan_step(&plan, step, samples);
        assert_int_equal(bw_plan_cut(&plan, &dataset, samples, count, group), BW_OK);
        for (int32_t which = 0; which < 3; which++) {
            assert_int_equal(bw_batch_fill(&batch, &dataset, samples, group, count, which), BW_OK);
            int64_t tokens = check_batch(&batch, &dataset, samples, group, count, which);
            seen = tokens > seen ? tokens : seen;
        }
    }
    assert_int_equal(seen, most); /* exact, not a bound */
    bw_batch_free(&batch);
    bw_dataset_free(&dataset);
}

static void more_groups_than_samples_leave_some_empty(void **state)
{
    bw_dataset dataset = make_dataset(3);
    bw_plan plan = {.samples = 3, .batch = 8, .micro_batches = 8, .seed = 1};
    int64_t samples[8], count = bw_plan_step(&plan, 0, samples);
    int32_t group[8];
    int empty = 0;
    bw_batch batch;
    (void)state;
    assert_int_equal(bw_batch_create(&batch, 100, 8), BW_OK);
    assert_int_equal(bw_plan_cut(&plan, &dataset, samples, count, group), BW_OK);
    for (int32_t which = 0; which < 8; which++) {
        assert_int_equal(bw_batch_fill(&batch, &dataset, samples, group, count, which), BW_OK);
        empty += batch.T == 0 && batch.n_seq == 0 && batch.answers == 0;
    }
    assert_int_equal(empty, 5);
    bw_batch_free(&batch);
    bw_dataset_free(&dataset);
}

static void a_batch_that_is_too_small_is_refused(void **state)
{
    bw_dataset dataset = make_dataset(4);
    int64_t samples[] = {0, 1, 2, 3};
    int32_t group[4] = {0};
    bw_batch batch;
    (void)state;
    assert_int_equal(bw_batch_create(&batch, 10, 8), BW_OK);
    assert_int_equal(bw_batch_fill(&batch, &dataset, samples, group, 4, 0), BW_BUG);
    bw_error_clear();
    bw_batch_free(&batch);
    bw_dataset_free(&dataset);
}

/* Memory grows with the tokens of a micro-batch, and idle ranks help nobody. */
static void the_default_cut_gives_every_rank_work_and_none_too_much(void **state)
{
    bw_plan plan = {.samples = 100, .batch = 64};
    bw_dataset dataset = {.count = 100};
    (void)state;
    const struct {
        int64_t tokens_of_a_row;
        int ranks, threads;
        int64_t cut;
    } cases[] = {{1, 1, 1, 1},    {8, 1, 1, 1},   {9, 1, 1, 2},     {8, 2, 1, 2},     {8, 3, 1, 4},  {64, 1, 1, 8},
                 {64, 16, 1, 16}, {65, 1, 1, 16}, {9000, 1, 1, 64}, {1, 1000, 1, 64}, {64, 1, 2, 8}, {64, 1, 4, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dataset.token_count = 100 * cases[i].tokens_of_a_row;
        assert_int_equal(bw_plan_default_cut(&plan, &dataset, cases[i].ranks, cases[i].threads), cases[i].cut);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_epoch_has_each_sample_once),
        cmocka_unit_test(order_is_of_seed_and_step_and_of_nothing_else),
        cmocka_unit_test(the_batch_size_does_not_change_the_order),
        cmocka_unit_test(every_permutation_is_as_likely),
        cmocka_unit_test(groups_are_balanced_and_all_samples_are_in_one),
        cmocka_unit_test(ties_go_to_the_first_of_the_lightest_groups),
        cmocka_unit_test(every_group_is_dealt_once),
        cmocka_unit_test(heavy_and_light_go_together),
        cmocka_unit_test(a_very_long_run_is_sized_by_a_bound),
        cmocka_unit_test(packing_keeps_every_token_target_and_place),
        cmocka_unit_test(more_groups_than_samples_leave_some_empty),
        cmocka_unit_test(a_batch_that_is_too_small_is_refused),
        cmocka_unit_test(the_default_cut_gives_every_rank_work_and_none_too_much),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Random numbers against the published vectors, and the properties that the promise of equal results stands on. */
#include "breakwater/base.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* The three vectors "philox4x32 10" of tests/kat_vectors in the Random123 distribution: counter, key, result. */
static const struct {
    uint32_t counter[4], key[2], result[4];
} known[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void known_answers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const uint32_t *counter = known[i].counter;
        bw_key key = {.seed = (uint64_t)known[i].key[1] << 32 | known[i].key[0],
                      .sample = counter[1],
                      .step = counter[2],
                      .layer = counter[3] & 0xffff,
                      .purpose = counter[3] >> 16};
        uint32_t drawn[4];
        bw_rng(&key, counter[0], drawn);
        assert_memory_equal(drawn, known[i].result, sizeof drawn);
    }
}

static void every_part_of_the_key_changes_the_numbers(void **state)
{
    (void)state;
    bw_key keys[] = {{1, BW_PURPOSE_TEST, 2, 3, 4},    {2, BW_PURPOSE_TEST, 2, 3, 4}, {1 + (UINT64_C(1) << 40), BW_PURPOSE_TEST, 2, 3, 4},
                     {1, BW_PURPOSE_DROPOUT, 2, 3, 4}, {1, BW_PURPOSE_TEST, 3, 3, 4}, {1, BW_PURPOSE_TEST, 2, 4, 4},
                     {1, BW_PURPOSE_TEST, 2, 3, 5}};
    enum { KEYS = sizeof keys / sizeof *keys };
    uint32_t drawn[KEYS + 1][4];
    for (int i = 0; i < KEYS; i++)
        bw_rng(&keys[i], 7, drawn[i]);
    bw_rng(&keys[0], 8, drawn[KEYS]);
    for (int i = 0; i <= KEYS; i++)
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(drawn[i], drawn[j], sizeof drawn[i]);
}

static void uniform_stays_below_one_and_is_exact(void **state)
{
    (void)state;
    assert_true(bw_rng_uniform(0) == 0.0f);
    assert_true(bw_rng_uniform(UINT32_MAX) < 1.0f);
    assert_true(bw_rng_uniform(UINT32_C(1) << 31) == 0.5f);
    assert_true(bw_rng_uniform(0x000001ff) == 0x1p-24f); /* the low 8 bits are not used */
}

/* Mean of n uniform numbers: 1/2 with standard deviation 1/sqrt(12 n); six of them are never exceeded by chance. */
static void uniform_has_the_mean_of_the_uniform_distribution(void **state)
{
    (void)state;
    enum { N = 40000 };
    bw_key key = {.seed = 42, .purpose = BW_PURPOSE_TEST};
    double sum = 0;
    for (uint32_t position = 0; position < N / 4; position++) {
        uint32_t drawn[4];
        bw_rng(&key, position, drawn);
        for (int i = 0; i < 4; i++)
            sum += (double)bw_rng_uniform(drawn[i]);
    }
    assert_true(fabs(sum / N - 0.5) < 6 / sqrt(12.0 * N));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(every_part_of_the_key_changes_the_numbers),
        cmocka_unit_test(uniform_stays_below_one_and_is_exact),
        cmocka_unit_test(uniform_has_the_mean_of_the_uniform_distribution),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

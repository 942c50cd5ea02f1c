/* test_bcyc.c - block-cyclic arithmetic against dealing the entries out one by one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "breakwater/par.h"

enum { MOST = 26, BLOCKS = 6, PROCESSES = 5 };

/* Deal n entries to nprocs processes, nb at a time: the definition, without any formula. */
typedef struct deal {
    int owner[MOST], local[MOST], count[PROCESSES];
} deal;

static deal deal_out(int n, int nb, int nprocs)
{
    deal deal = {0};
    int proc = 0, in_block = 0;
    for (int i = 0; i < n; i++) {
        deal.owner[i] = proc;
        deal.local[i] = deal.count[proc]++;
        if (++in_block == nb) {
            in_block = 0;
            proc = (proc + 1) % nprocs;
        }
    }
    return deal;
}

static void check(int n, int nb, int nprocs)
{
    deal expected = deal_out(n, nb, nprocs);
    for (int proc = 0; proc < nprocs; proc++)
        assert_int_equal(bw_bcyc_count(n, nb, proc, nprocs), expected.count[proc]);
    for (int i = 0; i < n; i++) {
        assert_int_equal(bw_bcyc_owner(i, nb, nprocs), expected.owner[i]);
        assert_int_equal(bw_bcyc_local(i, nb, nprocs), expected.local[i]);
        assert_int_equal(bw_bcyc_global(expected.local[i], nb, expected.owner[i], nprocs), i);
    }
}

static void every_small_size_is_dealt_as_by_hand(void **state)
{
    (void)state;
    for (int n = 0; n <= MOST; n++)
        for (int nb = 1; nb <= BLOCKS; nb++)
            for (int nprocs = 1; nprocs <= PROCESSES; nprocs++)
                check(n, nb, nprocs);
}

/* The sums over processes and the round trip must hold where 32-bit arithmetic would wrap. */
static void sizes_beyond_32_bits_keep_their_places(void **state)
{
    const int64_t n = INT64_C(1) << 40;
    const int nb = 4099, nprocs = 97;
    int64_t total = 0;
    (void)state;
    for (int proc = 0; proc < nprocs; proc++)
        total += bw_bcyc_count(n, nb, proc, nprocs);
    assert_true(total == n);
    for (int64_t i = n - 3 * nb; i < n; i++)
        assert_true(bw_bcyc_global(bw_bcyc_local(i, nb, nprocs), nb, bw_bcyc_owner(i, nb, nprocs), nprocs) == i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_small_size_is_dealt_as_by_hand),
        cmocka_unit_test(sizes_beyond_32_bits_keep_their_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

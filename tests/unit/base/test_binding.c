/* Which cores ranks may use: the text, and the warning where a launcher gave them too few. */
#include "breakwater/base.h"
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { MOST = 130, ONLINE = 8 };
static bw_binding ranks[MOST];

/* Rank `rank` may use `count` cores from `first` on, and has so many threads, on a host of 8 cores. */
static void place(int rank, int first, int count, int threads)
{
    ranks[rank] = (bw_binding){.threads = threads, .online = ONLINE};
    for (int core = first; core < first + count; core++)
        bw_binding_add(&ranks[rank], core);
}

static bw_host_binding host_of(int count)
{
    bw_host_binding host;
    assert_int_equal(bw_binding_of_host(&host, "n1", ranks, count), BW_OK);
    return host;
}

static void about(int count, const char *expected)
{
    bw_host_binding host = host_of(count);
    assert_string_equal(host.about, expected);
    assert_int_equal(host.ranks, count);
}

static void a_host_is_one_line(void **state)
{
    (void)state;
    place(0, 0, 8, 8);
    about(1, "1 rank x 8 threads, on cores 0-7");
    place(0, 0, 8, 1);
    place(1, 0, 8, 1);
    about(2, "2 ranks x 1 thread, each on cores 0-7");
    place(0, 0, 4, 4);
    place(1, 4, 4, 4);
    about(2, "2 ranks x 4 threads, on cores 0-3 | cores 4-7");
    place(1, 5, 1, 1);
    bw_binding_add(&ranks[1], 7);
    about(2, "2 ranks x 1 to 4 threads, on cores 0-3 | cores 5,7");
    for (int rank = 0; rank < 128; rank++)
        place(rank, rank, 1, 1);
    about(128, "128 ranks x 1 thread, 1 core each, of cores 0-127");
    place(127, 126, 2, 1);
    about(128, "128 ranks x 1 thread, 1 to 2 cores each, of cores 0-127");
}

static void a_set_in_many_pieces_is_counted(void **state)
{
    (void)state;
    place(0, 0, 1, 1);
    for (int core = 0; core < 128; core += 2)
        bw_binding_add(&ranks[0], core);
    about(1, "1 rank x 1 thread, on 64 cores");
    bw_binding_add(&ranks[0], BW_MOST_CORES);
    bw_binding_add(&ranks[0], -1);
    assert_int_equal(bw_binding_cores(&ranks[0]), 64);
    place(0, BW_MOST_CORES - 2, 2, 1);
    about(1, "1 rank x 1 thread, on cores 8190-8191");
    for (int rank = 0; rank < 8; rank++) { /* a line that would be too long */
        place(rank, 1000 + 20 * rank, 1, 1);
        for (int core = 0; core < 12; core += 3)
            bw_binding_add(&ranks[rank], 1000 + 20 * rank + core);
    }
    about(8, "8 ranks x 1 thread, 4 cores each, of 32 cores");
}

static void fault(int count, const char *part, const char *remedy)
{
    bw_host_binding host = host_of(count);
    if (!strstr(host.fault, part) || !strstr(host.fault, remedy) || strchr(host.fault, '\n'))
        fail_msg("'%s' and '%s' are not in one line: %s", part, remedy, host.fault);
}

static void what_slows_ranks_down_is_named_with_the_remedy(void **state)
{
    (void)state;
    place(0, 0, 1, 2);
    place(1, 1, 1, 2);
    fault(2, "a rank has 2 threads on core 0, of 8", "--map-by slot:PE=N, or --bind-to none; Slurm: --cpus-per-task=N");
    place(0, 0, 1, 1);
    place(1, 0, 1, 1);
    fault(2, "2 ranks have 2 threads on core 0, of 8", "--bind-to none");
    place(0, 0, 3, 1);
    place(1, 2, 3, 1);
    fault(2, "ranks share core 2 and not the others", "--map-by slot:PE=N");
    for (int rank = 0; rank < 3; rank++)
        place(rank, 0, 8, 4);
    fault(3, "3 ranks have 12 threads on cores 0-7, of 8", "fewer ranks, or set --threads");
    place(0, 0, 8, 9);
    fault(1, "a rank has 9 threads on cores 0-7, of 8", "--threads");
}

static void ranks_with_room_are_not_warned_of(void **state)
{
    (void)state;
    place(0, 0, 8, 4);
    place(1, 0, 8, 4);
    assert_string_equal(host_of(2).fault, "");
    place(0, 0, 4, 4);
    place(1, 4, 4, 4);
    assert_string_equal(host_of(2).fault, "");
    place(0, 2, 2, 1); /* a job that has two cores of a larger host, and binds nobody */
    place(1, 2, 2, 1);
    assert_string_equal(host_of(2).fault, "");
}

static bw_host_binding hosts[12];

static void report(int count, const char *lines, const char *warning)
{
    bw_text said = {0}, warned = {0};
    assert_int_equal(bw_binding_report(hosts, count, &said, &warned), BW_OK);
    assert_string_equal(said.data, lines);
    assert_string_equal(warned.data ? warned.data : "", warning);
    bw_text_free(&said);
    bw_text_free(&warned);
}

static void hosts_that_are_alike_are_one_line(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        hosts[i] = (bw_host_binding){.about = "2 ranks x 1 thread, each on cores 0-7", .ranks = 2};
        snprintf(hosts[i].name, sizeof hosts[i].name, "n%d", i + 1);
    }
    report(1, "host n1: 2 ranks x 1 thread, each on cores 0-7", "");
    report(12, "12 hosts x 2 ranks x 1 thread, each on cores 0-7", "");
    strcpy(hosts[1].fault, "is slow");
    strcpy(hosts[1].about, "1 rank");
    report(2, "2 hosts\n  n1: 2 ranks x 1 thread, each on cores 0-7\n  n2: 1 rank", "on n2 is slow");
    for (int i = 0; i < 12; i++)
        strcpy(hosts[i].about, i == 1 ? "1 rank" : "2 ranks");
    strcpy(hosts[9].fault, "is slow, too");
    report(12,
           "12 hosts\n  n1: 2 ranks\n  n2: 1 rank\n  n3: 2 ranks\n  n4: 2 ranks\n  n5: 2 ranks\n  n6: 2 ranks\n  n7: 2 ranks\n  n8: 2 ranks\n"
           "  4 more: 8 ranks",
           "on n2 (2 hosts are alike in this) is slow");
}

static void this_process_has_the_cores_that_the_kernel_says(void **state)
{
    (void)state;
    cpu_set_t before, one;
    bw_binding mine;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    bw_binding_get(&mine);
    assert_int_equal(bw_binding_cores(&mine), CPU_COUNT(&before));
    assert_int_equal(mine.online, sysconf(_SC_NPROCESSORS_ONLN));
    int core = 0;
    while (!CPU_ISSET((size_t)core, &before))
        core++;
    CPU_ZERO(&one);
    CPU_SET((size_t)core, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    bw_binding_get(&mine);
    assert_int_equal(bw_binding_cores(&mine), 1);
    assert_true(mine.cores[core / 64] >> (core % 64) & 1);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_host_is_one_line),
        cmocka_unit_test(a_set_in_many_pieces_is_counted),
        cmocka_unit_test(what_slows_ranks_down_is_named_with_the_remedy),
        cmocka_unit_test(ranks_with_room_are_not_warned_of),
        cmocka_unit_test(hosts_that_are_alike_are_one_line),
        cmocka_unit_test(this_process_has_the_cores_that_the_kernel_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

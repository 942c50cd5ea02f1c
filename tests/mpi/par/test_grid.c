/* test_grid.c - shapes, places, agreement, small exchanges, shared memory, what asks to stop. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "check.h"

static void places_are_numbered_row_by_row(const bw_grid *grid)
{
    CHECK(grid->size == grid->replicas * grid->nprow * grid->npcol);
    CHECK(grid->rank == grid->replica * grid->nprow * grid->npcol + grid->myrow * grid->npcol + grid->mycol);
    CHECK(grid->myrow < grid->nprow && grid->mycol < grid->npcol && grid->replica < grid->replicas);
    CHECK(grid->node < grid->nodes && grid->node_rank < grid->node_size);
    int64_t ranks = 1;
    CHECK_OK(bw_sum_ints(grid, &ranks, 1));
    CHECK(ranks == grid->size);
}

static void pretended_nodes_have_the_asked_size(void)
{
    int size = bw_par_size();
    for (int ranks_per_node = 1; ranks_per_node <= size; ranks_per_node++) {
        bw_grid *grid = NULL;
        CHECK_OK(bw_grid_create(&grid, "auto", 0, ranks_per_node));
        if (grid) {
            CHECK(grid->nodes == (size + ranks_per_node - 1) / ranks_per_node);
            CHECK(grid->node == grid->rank / ranks_per_node && grid->node_rank == grid->rank % ranks_per_node);
        }
        bw_grid_destroy(&grid);
    }
}

static void auto_is_nearest_to_square(void)
{
    static const int expected[][3] = {{1, 1, 1}, {2, 1, 2}, {3, 1, 3}, {4, 2, 2}, {6, 2, 3}};
    bw_grid *grid = NULL;
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    for (size_t i = 0; grid && i < sizeof expected / sizeof *expected; i++)
        if (expected[i][0] == grid->size)
            CHECK(grid->nprow == expected[i][1] && grid->npcol == expected[i][2] && grid->replicas == 1);
    bw_grid_destroy(&grid);
}

static void a_grid_that_does_not_fit_is_refused_with_one_that_does(void)
{
    static const char *const bad[] = {"7x1", "0x1", "2", "x", "", "2x2x2", "-1x1", "axb", "1x99999999999999999999", "1 x1", "65536x65536"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bw_grid *grid = NULL;
        bw_error_clear();
        CHECK(bw_grid_create(&grid, bad[i], 0, 0) == BW_USAGE && grid == NULL);
        CHECK(strlen(bw_error()) > 0);
    }
    bw_grid *grid = NULL;
    bw_error_clear();
    CHECK(bw_grid_create(&grid, "auto", bw_par_size() + 1, 0) == BW_USAGE);
    CHECK(strstr(bw_error(), bw_par_size() > 1 ? "or --grid auto" : "leave --grid and --replicas out") != NULL);
    bw_error_clear();
    CHECK(bw_grid_create(&grid, "auto", -1, 0) == BW_USAGE);
    bw_error_clear();
    CHECK(bw_grid_create(&grid, "auto", 0, -1) == BW_USAGE);
    bw_error_clear();
}

static void every_rank_gets_the_worst_ranks_message(const bw_grid *grid)
{
    bw_error_clear();
    CHECK_OK(bw_agree(grid, BW_OK));
    for (int failing = 0; failing < grid->size; failing++) {
        bw_error_clear();
        int mine = grid->rank == failing ? bw_fail(BW_DATA, "tensor of rank %d", failing) : BW_OK;
        char expected[64];
        snprintf(expected, sizeof expected, "tensor of rank %d", failing);
        CHECK(bw_agree(grid, mine) == BW_DATA && strcmp(bw_error(), expected) == 0);
    }
    bw_error_clear();
    CHECK(bw_agree(grid, bw_fail(BW_IO, "all fail, I am %d", grid->rank)) == BW_IO && strcmp(bw_error(), "all fail, I am 0") == 0);
    bw_error_clear();
    int last = grid->size - 1, mine = grid->rank == last ? bw_fail(BW_IO, "worst") : bw_fail(BW_DATA, "less bad");
    CHECK(bw_agree(grid, mine) == BW_IO && strcmp(bw_error(), "worst") == 0);
    bw_error_clear();
}

/* The exit code 75 sends a job back into the queue, where the failure would wait for it. */
static void a_stop_hides_no_failure_of_another_rank(const bw_grid *grid)
{
    int last = grid->size - 1;
    CHECK(bw_agree(grid, bw_fail(BW_STOPPED, "stopped")) == BW_STOPPED && strcmp(bw_error(), "stopped") == 0);
    bw_error_clear();
    CHECK(bw_agree(grid, grid->rank == last ? bw_fail(BW_UNFIT, "unfit") : BW_OK) == BW_UNFIT && strcmp(bw_error(), "unfit") == 0);
    for (int worse = BW_STOPPED; worse <= BW_UNFIT; worse++) {
        bw_error_clear();
        int mine = grid->rank == last ? bw_fail(BW_USAGE, "wrong") : bw_fail(worse, "not a failure");
        CHECK(bw_agree(grid, mine) == BW_USAGE && strcmp(bw_error(), "wrong") == 0);
    }
    bw_error_clear();
}

static void a_failure_of_some_ranks_names_the_rank(const bw_grid *grid)
{
    char rank[64];
    CHECK_OK(bw_par_agree(BW_OK));
    snprintf(rank, sizeof rank, "rank %d of %d, on ", grid->size - 1, grid->size);
    int mine = grid->rank == grid->size - 1 ? bw_fail(BW_NOINPUT, "no file") : BW_OK;
    CHECK(bw_par_agree(mine) == BW_NOINPUT && strstr(bw_error(), "no file"));
    CHECK(grid->size == 1 || strncmp(bw_error(), rank, strlen(rank)) == 0);
    bw_error_clear();
    CHECK(bw_par_agree(bw_fail(BW_USAGE, "all alike")) == BW_USAGE && strcmp(bw_error(), "all alike") == 0);
    bw_error_clear();
}

/* The end of the job's time, seen by one rank, is the end for all. */
static void a_loop_stops_when_there_is_no_time_for_another_round(const bw_grid *grid)
{
    bw_rounds rounds = bw_rounds_begin(0);
    CHECK_OK(bw_agree(grid, bw_rounds_next(&rounds, "test", 1, 3)));
    if (grid->rank == grid->size - 1)
        rounds.minutes = 1e-9;
    CHECK(bw_agree(grid, bw_rounds_next(&rounds, "test", 2, 3)) == BW_STOPPED &&
          strcmp(bw_error(), "test: stopped after 2 of 3 (--time-limit)") == 0);
    bw_error_clear();
    CHECK_OK(bw_agree(grid, bw_rounds_next(&rounds, "test", 3, 3)));
    CHECK(!bw_stop_wanted(0, 1e9) && !bw_stop_wanted(1e9, 1) && bw_stop_wanted(1, 41) == BW_STOP_TIME_LIMIT);
}

/* What another job left in the environment would stop every run after one round, again and again. */
static void only_an_end_of_this_job_stops_it(void)
{
    static const char *const others[] = {"", "1000", "-1", "nan", "inf", "soon", "2026-11-24T12:00:00"};
    char end[32];
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        setenv("SLURM_JOB_END_TIME", others[i], 1);
        CHECK(bw_stop_wanted(0, 1e9) == BW_STOP_NONE);
    }
    for (int seconds = -60; seconds <= 60; seconds += 120) {
        snprintf(end, sizeof end, "%lld", (long long)time(NULL) + seconds);
        setenv("SLURM_JOB_END_TIME", end, 1);
        CHECK(bw_stop_wanted(0, 41) == BW_STOP_SLURM && (bw_stop_wanted(0, 1) == BW_STOP_NONE) == (seconds > 0));
    }
    unsetenv("SLURM_JOB_END_TIME");
}

static void small_exchanges_give_all_ranks_the_same(const bw_grid *grid)
{
    int64_t sums[2] = {grid->rank, 1}, top[1] = {grid->rank * 3};
    double min, max;
    char text[8] = "";
    if (grid->rank == 0)
        strcpy(text, "zero");
    CHECK_OK(bw_sum_ints(grid, sums, 2));
    CHECK_OK(bw_max_ints(grid, top, 1));
    CHECK_OK(bw_min_max(grid, grid->rank - 0.5, &min, &max));
    CHECK_OK(bw_broadcast(grid, text, sizeof text));
    CHECK(sums[0] == grid->size * (grid->size - 1) / 2 && sums[1] == grid->size && top[0] == 3 * (grid->size - 1));
    CHECK(min == -0.5 && max == grid->size - 1.5 && strcmp(text, "zero") == 0);
}

/* Rank r brings r bytes, so that rank 0 brings none. */
static void collect_keeps_rank_order_and_lengths(const bw_grid *grid)
{
    char mine[64], *all = NULL;
    int64_t offsets[65];
    memset(mine, 'a' + grid->rank, sizeof mine);
    CHECK_OK(bw_collect(grid, mine, grid->rank, &all, offsets));
    CHECK((all != NULL) == (grid->rank == 0));
    for (int rank = 0; grid->rank == 0 && rank < grid->size; rank++) {
        CHECK(offsets[rank + 1] - offsets[rank] == rank);
        for (int64_t i = offsets[rank]; i < offsets[rank + 1]; i++)
            CHECK(all[i] == 'a' + rank);
    }
    bw_free(all);
}

static void the_ranks_of_a_node_see_one_memory(const bw_grid *grid)
{
    bw_shared shared;
    enum { BYTES = 100003 };
    CHECK_OK(bw_shared_create(grid, &shared, BYTES, "test"));
    unsigned char *bytes = shared.base, others = 0;
    for (int i = 0; i < BYTES; i++)
        others |= bytes[i];
    CHECK(others == 0);
    CHECK_OK(bw_node_sync(grid));
    for (int i = grid->node_rank; i < BYTES; i += grid->node_size)
        bytes[i] = (unsigned char)(1 + grid->node_rank + 16 * grid->node);
    CHECK_OK(bw_node_sync(grid));
    for (int i = 0; i < BYTES; i++)
        CHECK(bytes[i] == 1 + i % grid->node_size + 16 * grid->node);
    bw_shared_free(grid, &shared);
}

/* More than any machine has: every rank is told, and none hangs. (A rank alone on its node takes ordinary memory, and is not asked.) */
static void too_much_shared_memory_is_refused(const bw_grid *grid)
{
    bw_shared shared;
    if (grid->node_size == 1)
        return;
    bw_error_clear();
    CHECK(bw_shared_create(grid, &shared, INT64_C(1) << 56, "test") == BW_SYSTEM && shared.base == NULL);
    CHECK(strstr(bw_error(), "test") != NULL);
    bw_error_clear();
}

/* A request must not end the process, and Slurm's pair of SIGTERM counts as one. */
static void signals_ask_to_stop(void)
{
    CHECK(!bw_stop_requested());
    bw_stop_catch_signals();
    raise(SIGTERM);
    raise(SIGTERM);
    CHECK(bw_stop_requested() && bw_stop_wanted(0, 0) == BW_STOP_SIGNAL);
}

static void all(const bw_grid *grid)
{
    places_are_numbered_row_by_row(grid);
    every_rank_gets_the_worst_ranks_message(grid);
    a_stop_hides_no_failure_of_another_rank(grid);
    a_failure_of_some_ranks_names_the_rank(grid);
    a_loop_stops_when_there_is_no_time_for_another_round(grid);
    small_exchanges_give_all_ranks_the_same(grid);
    collect_keeps_rank_order_and_lengths(grid);
    the_ranks_of_a_node_see_one_memory(grid);
    too_much_shared_memory_is_refused(grid);
}

int main(int argc, char **argv)
{
    unsetenv("SLURM_JOB_END_TIME");      /* the tests may run in a job */
    CHECK(strlen(bw_par_version()) > 0); /* before MPI is up */
    CHECK_OK(bw_par_start(&argc, &argv));
    check_every_grid(all);
    pretended_nodes_have_the_asked_size();
    auto_is_nearest_to_square();
    a_grid_that_does_not_fit_is_refused_with_one_that_does();
    only_an_end_of_this_job_stops_it();
    signals_ask_to_stop();
    return check_finish("test_grid");
}

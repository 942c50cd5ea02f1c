/* check.h - checks for tests of many ranks. A failed check is counted, not jumped away from: a rank that left would
 * leave the others waiting. The ranks add up their failures at the end, and all exit alike. */
#ifndef BREAKWATER_TEST_CHECK_H
#define BREAKWATER_TEST_CHECK_H
#include <stdio.h>
#include "breakwater/par.h"

static int64_t check_failures;

#define CHECK(condition)                                                                                                                             \
    do {                                                                                                                                             \
        if (!(condition) && check_failures++ < 10)                                                                                                   \
            fprintf(stderr, "%s:%d: rank %d: %s is false; last error: %s\n", __FILE__, __LINE__, bw_par_rank(), #condition, bw_error());             \
    } while (0)

#define CHECK_OK(call) CHECK((call) == BW_OK)

/* Run `test` on every grid that this number of ranks allows, with the nodes as they are, and cut into pretended ones of 1 .. node_sizes - 1 ranks. */
static inline void check_every_shape(int node_sizes, void (*test)(const bw_grid *grid))
{
    int size = bw_par_size();
    for (int replicas = 1; replicas <= size; replicas++)
        for (int nprow = 1; nprow <= size; nprow++)
            for (int ranks_per_node = 0; ranks_per_node < node_sizes && size % (replicas * nprow) == 0; ranks_per_node++) {
                bw_grid *grid = NULL;
                char shape[32];
                snprintf(shape, sizeof shape, "%dx%d", nprow, size / replicas / nprow);
                CHECK_OK(bw_grid_create(&grid, shape, replicas, ranks_per_node));
                if (grid)
                    test(grid);
                bw_grid_destroy(&grid);
            }
}

static inline void check_every_grid(void (*test)(const bw_grid *grid))
{
    check_every_shape(bw_par_size(), test);
}

static inline int check_finish(const char *name)
{
    bw_grid *grid = NULL;
    bw_error_clear();
    if (bw_grid_create(&grid, "auto", 0, 0) != BW_OK || bw_sum_ints(grid, &check_failures, 1) != BW_OK)
        check_failures++;
    if (bw_par_rank() == 0)
        printf("%s.np%d %s\n", name, bw_par_size(), check_failures == 0 ? "PASS" : "FAIL");
    bw_grid_destroy(&grid);
    CHECK(bw_mem_now() == 0); /* everything that was counted is freed */
    bw_par_finish();
    return check_failures == 0 ? 0 : 1;
}
#endif

/* factors.h - a tiny model that all ranks see, and adapters whose every entry is known without the code under test. */
#ifndef BREAKWATER_TEST_FACTORS_H
#define BREAKWATER_TEST_FACTORS_H
#include <ftw.h>
#include <math.h>
#include <unistd.h>
#include "breakwater/model.h"
#include "../par/check.h"
#include "../../tiny_model.h"

static char test_folder[64];

static inline int test_remove_entry(const char *name, const struct stat *about, int kind, struct FTW *walk)
{
    (void)about, (void)kind, (void)walk;
    return remove(name);
}

static inline void test_remove(const char *folder)
{
    nftw(folder, test_remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* One folder for all ranks, named by rank 0. Collective. */
static inline void test_folder_make(void)
{
    bw_grid *grid = NULL;
    snprintf(test_folder, sizeof test_folder, "/tmp/bw-test-model-%d", (int)getpid());
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    CHECK_OK(bw_broadcast(grid, test_folder, sizeof test_folder));
    if (grid->rank == 0)
        CHECK_OK(bw_dir_make(test_folder));
    CHECK_OK(bw_barrier(grid));
    bw_grid_destroy(&grid);
}

/* Entry (i, j) of A as bw_adapter_init documents it: PEFT's uniform in +-1/sqrt(in), from Philox by (seed, layer and target, entry). */
static inline float test_a(uint64_t seed, int index, int64_t in, int64_t i, int64_t j)
{
    const bw_key key = {.seed = seed, .purpose = BW_PURPOSE_INIT, .layer = (uint32_t)index};
    const int64_t entry = i * in + j;
    uint32_t bits[4];
    bw_rng(&key, (uint32_t)(entry / 4), bits);
    return (float)(1 / sqrt((double)in)) * (2 * bw_rng_uniform(bits[entry % 4]) - 1);
}

/* A value that no two entries nearby share, and that is no short binary fraction. */
static inline float test_b(uint64_t seed, int index, int64_t i, int64_t j)
{
    return (float)((i * 131 + j * 17 + index * 7 + (int64_t)seed) % 1009 - 504) / 5000.0f;
}

typedef struct test_place {
    uint64_t seed;
    int index;
} test_place;

static inline int test_fill_b(void *context, const bw_matrix *B, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const test_place *place = context;
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            ((float *)block)[r + c * B->ld] = test_b(place->seed, place->index, i + r, j + c);
    return BW_OK;
}

static inline void test_fill(bw_adapter *adapter, uint64_t seed)
{
    bw_adapter_init(adapter, seed);
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++) {
        test_place place = {seed, i};
        if (adapter->pairs[i].present)
            bw_matrix_visit(&adapter->pairs[i].B, test_fill_b, &place);
    }
}

static inline void test_dense(uint64_t seed, int index, const bw_pair *pair, float *A, float *B)
{
    const int64_t in = pair->A.layout.n, out = pair->B.layout.m;
    for (int64_t i = 0; i < pair->r; i++)
        for (int64_t j = 0; j < in; j++)
            A[i * in + j] = test_a(seed, index, in, i, j);
    for (int64_t i = 0; i < out; i++)
        for (int64_t j = 0; j < pair->r; j++)
            B[i * pair->r + j] = test_b(seed, index, i, j);
}

/* This rank's pieces hold the known entries, bit for bit. */
static inline int test_same_block(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    const float *dense = context;
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            if (memcmp((float *)block + r + c * matrix->ld, dense + (i + r) * matrix->layout.n + j + c, sizeof *dense) != 0)
                return BW_DATA;
    return BW_OK;
}

static inline void test_check_pieces(const bw_adapter *adapter, uint64_t seed)
{
    static float A[64 * 64], B[64 * 64];
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++) {
        const bw_pair *pair = &adapter->pairs[i];
        if (!pair->present)
            continue;
        test_dense(seed, i, pair, A, B);
        CHECK_OK(bw_matrix_visit(&pair->A, test_same_block, A));
        CHECK_OK(bw_matrix_visit(&pair->B, test_same_block, B));
    }
}
#endif

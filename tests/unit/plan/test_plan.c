/* Properties of a plan's formulas, on the shape of Llama-3-8B and on small ones. That its numbers are those of a run is shown by
 * tests/mpi/plan, tests/system/test_plan.sh and benchmarks/plan.sh. */
#include "breakwater/plan.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static const bw_machine machine = {.cores = 64, .gemm_gflops = 70, .memory_gib = 512, .memory_gbs = 350, .network_us = 2, .network_gbs = 24};

typedef struct fixture {
    bw_config config;
    bw_job job;
    char path[512];
} fixture;

static void set(fixture *f, const char *name, const char *value)
{
    assert_int_equal(bw_config_set(&f->config, BW_PLAN, name, value), BW_OK);
}

static void open_job(fixture *f)
{
    bw_error_clear();
    if (bw_job_open(&f->job, &f->config) != BW_OK)
        fail_msg("%s", bw_error());
}

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    bw_config_init(&f->config);
    snprintf(f->path, sizeof f->path, "%s/../benchmarks/machines/llama-3-8b.json", getenv("BW_TEST_DATA"));
    set(f, "model", f->path);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    bw_job_close(&f->job);
    bw_config_free(&f->config);
    free(f);
    return 0;
}

static bw_layout layout_of(int ranks, int per_node, const char *grid, bool streams)
{
    bw_layout layout = {.threads = 1, .streams = streams};
    assert_int_equal(bw_grid_outline(&layout.grid, grid, 0, ranks, per_node), BW_OK);
    return layout;
}

static int64_t rank_memory(fixture *f, const bw_layout *layout, int64_t tokens)
{
    bw_memory memory;
    assert_int_equal(bw_memory_plan(&memory, &f->job, layout, tokens), BW_OK);
    return bw_memory_rank(&memory);
}

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

static void longer_sequences_take_more_memory(void **state)
{
    fixture *f = *state;
    open_job(f);
    const bw_layout layout = layout_of(8, 8, "auto", false);
    int64_t before = 0;
    for (int64_t tokens = 128; tokens <= 8192; tokens *= 2) {
        const int64_t now = rank_memory(f, &layout, tokens);
        assert_true(now > before);
        before = now;
    }
}

static void computing_activations_again_takes_less(void **state)
{
    fixture *f = *state;
    open_job(f);
    const bw_layout layout = layout_of(1, 1, "auto", false);
    const int64_t kept = rank_memory(f, &layout, 2048);
    set(f, "recompute", "layer");
    assert_true(rank_memory(f, &layout, 2048) < kept / 3);
}

static void streaming_holds_two_layers_of_all(void **state)
{
    fixture *f = *state;
    open_job(f);
    bw_memory resident, streamed;
    const bw_layout all = layout_of(4, 4, "auto", false), two = layout_of(4, 4, "auto", true);
    assert_int_equal(bw_memory_plan(&resident, &f->job, &all, 512), BW_OK);
    assert_int_equal(bw_memory_plan(&streamed, &f->job, &two, 512), BW_OK);
    const int64_t layer = bw_store_layer_bytes(f->job.spec);
    assert_int_equal(resident.node[BW_NEED_LAYERS] - streamed.node[BW_NEED_LAYERS], 30 * layer);
    assert_true(bw_memory_node(&streamed) < bw_memory_node(&resident));
    assert_int_equal(layer, INT64_C(4) * 218103808); /* parameters of a layer of Llama-3-8B, in fp32 */
}

/* Cut over any grid, the pieces are the model once a replica: 6,979,321,856 weights in bf16. */
static void pieces_of_a_node_add_up_to_the_model(void **state)
{
    fixture *f = *state;
    open_job(f);
    const char *const grids[] = {"1x1", "1x6", "2x3", "3x4", "12x1"};
    for (size_t i = 0; i < sizeof grids / sizeof *grids; i++) {
        bw_memory memory;
        const bw_layout layout = layout_of(12, 12, grids[i], true);
        assert_int_equal(bw_memory_plan(&memory, &f->job, &layout, 512), BW_OK);
        assert_int_equal(memory.node[BW_NEED_PIECES], layout.grid.replicas * INT64_C(2) * 32 * 218103808);
        assert_true(memory.rank[BW_NEED_PIECES] * 12 >= memory.node[BW_NEED_PIECES]);
    }
}

/* ---- bytes ------------------------------------------------------------------------------------------------------------ */

static double gathered(fixture *f, const bw_layout *layout)
{
    bw_times times;
    assert_int_equal(bw_times_plan(&times, &f->job, &machine, layout, 8), BW_OK);
    return times.gathered_bytes;
}

static void a_node_that_holds_the_model_gathers_nothing(void **state)
{
    fixture *f = *state;
    open_job(f);
    const bw_layout one = layout_of(8, 8, "auto", true), copies = layout_of(32, 8, "2x4", true), spread = layout_of(32, 8, "4x8", true);
    assert_true(gathered(f, &one) == 0);
    assert_true(gathered(f, &copies) == 0);
    assert_true(gathered(f, &spread) > 0);
}

static void streaming_moves_the_weights_every_step_and_resident_only_the_factors(void **state)
{
    fixture *f = *state;
    open_job(f);
    const bw_layout stream = layout_of(2, 1, "1x2", true), resident = layout_of(2, 1, "1x2", false);
    const double factors = gathered(f, &resident), all = gathered(f, &stream);
    assert_true(factors == 0.5 * 4 * 70254592);                   /* r 32 on q,v,gate,up,down; half of it lies on the other node */
    assert_true(all - factors == 0.5 * 4 * 60 * 2 * 218103808.0); /* four rounds of 60 gathers of a layer in bf16 */
}

static void an_allreduce_obeys_its_bounds(void **state)
{
    (void)state;
    bw_grid grid;
    double before = 0;
    const double bytes = 5e8;
    assert_int_equal(bw_grid_outline(&grid, "auto", 0, 1, 1), BW_OK);
    assert_true(bw_allreduce_seconds(&machine, &grid, bytes, 32) == 0);
    for (int nodes = 2; nodes <= 1024; nodes *= 2) {
        assert_int_equal(bw_grid_outline(&grid, "auto", 0, nodes, 1), BW_OK);
        const double now = bw_allreduce_seconds(&machine, &grid, bytes, 32);
        assert_true(now > before && now >= 2 * bytes * (nodes - 1) / nodes / (machine.network_gbs * 1e9));
        before = now;
    }
}

/* ---- time ------------------------------------------------------------------------------------------------------------- */

static double step_seconds(fixture *f, const bw_layout *layout, int64_t micro_batches)
{
    bw_times times;
    assert_int_equal(bw_times_plan(&times, &f->job, &machine, layout, micro_batches), BW_OK);
    return times.step;
}

static void longer_rows_take_longer_and_more_threads_less(void **state)
{
    fixture *f = *state;
    set(f, "row-tokens", "256");
    open_job(f);
    bw_layout layout = layout_of(8, 8, "auto", false);
    const double small = step_seconds(f, &layout, 8);
    layout.threads = 8;
    assert_true(step_seconds(f, &layout, 8) < small / 4);
    layout.threads = 1;
    bw_job_close(&f->job);
    set(f, "row-tokens", "512");
    open_job(f);
    assert_true(step_seconds(f, &layout, 8) > 1.5 * small);
}

static void more_ranks_than_micro_batches_do_not_help(void **state)
{
    fixture *f = *state;
    open_job(f);
    const bw_layout eight = layout_of(8, 1, "1x1", false), sixteen = layout_of(16, 1, "1x1", false);
    assert_true(step_seconds(f, &sixteen, 8) >= step_seconds(f, &eight, 8));
}

static void efficiency_is_a_share(void **state)
{
    fixture *f = *state;
    set(f, "batch", "64");
    set(f, "ranks-per-node", "4");
    open_job(f);
    for (int ranks = 1; ranks <= 4096; ranks *= 4) {
        bw_estimate e;
        assert_int_equal(bw_estimate_best(&e, &f->job, &machine, ranks), BW_OK);
        assert_true(e.efficiency > 0 && e.efficiency <= 1);
        assert_true(e.of_peak > 0 && e.of_peak <= 1);
        assert_true(e.layout.grid.replicas * e.layout.grid.nprow * e.layout.grid.npcol == ranks);
        assert_int_equal(e.layout.threads, 16);
    }
}

/* ---- the choice ------------------------------------------------------------------------------------------------------- */

static void the_suggestion_fits_where_anything_fits(void **state)
{
    fixture *f = *state;
    bw_machine small = machine;
    bw_estimate e;
    set(f, "ranks-per-node", "1");
    set(f, "recompute", "layer");
    open_job(f);
    small.memory_gib = 30; /* 26 GiB of dense layers do not fit, two of them do */
    assert_int_equal(bw_estimate_best(&e, &f->job, &small, 8), BW_OK);
    assert_true(e.fits && e.layout.streams);
    assert_true(bw_estimate_best(&e, &f->job, &machine, 8) == BW_OK && e.fits && !e.layout.streams);
    small.memory_gib = 4;
    assert_int_equal(bw_estimate_best(&e, &f->job, &small, 8), BW_OK);
    assert_false(e.fits);
}

static void what_is_asked_for_is_planned(void **state)
{
    fixture *f = *state;
    bw_estimate e;
    set(f, "grid", "2x2");
    set(f, "weights", "stream");
    set(f, "micro-batches", "4");
    open_job(f);
    assert_int_equal(bw_estimate_best(&e, &f->job, &machine, 8), BW_OK);
    assert_true(e.layout.grid.nprow == 2 && e.layout.grid.npcol == 2 && e.layout.grid.replicas == 2 && e.layout.streams);
    assert_int_equal(e.micro_batches, 4);
    bw_error_clear();
    assert_int_equal(bw_estimate_best(&e, &f->job, &machine, 6), BW_USAGE);
}

static void what_cannot_be_is_refused(void **state)
{
    fixture *f = *state;
    bw_estimate e;
    set(f, "ranks-per-node", "48");
    open_job(f);
    bw_error_clear();
    assert_int_equal(bw_estimate_best(&e, &f->job, &machine, 100), BW_USAGE);
    assert_non_null(strstr(bw_error(), "do not fill nodes of 48"));
    set(f, "threads", "2");
    bw_error_clear();
    assert_int_equal(bw_estimate_best(&e, &f->job, &machine, 96), BW_USAGE);
    assert_non_null(strstr(bw_error(), "do not fit a node of 64 cores"));
    bw_job_close(&f->job);
    set(f, "answer-tokens", "512");
    bw_error_clear();
    assert_int_equal(bw_job_open(&f->job, &f->config), BW_USAGE);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(longer_sequences_take_more_memory),
        TEST(computing_activations_again_takes_less),
        TEST(streaming_holds_two_layers_of_all),
        TEST(pieces_of_a_node_add_up_to_the_model),
        TEST(a_node_that_holds_the_model_gathers_nothing),
        TEST(streaming_moves_the_weights_every_step_and_resident_only_the_factors),
        cmocka_unit_test(an_allreduce_obeys_its_bounds),
        TEST(longer_rows_take_longer_and_more_threads_less),
        TEST(more_ranks_than_micro_batches_do_not_help),
        TEST(efficiency_is_a_share),
        TEST(the_suggestion_fits_where_anything_fits),
        TEST(what_is_asked_for_is_planned),
        TEST(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

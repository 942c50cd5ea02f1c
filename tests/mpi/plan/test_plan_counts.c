/* What a plan says before a run is what the run counts: memory of the engine, and bytes that a streamed store moves between nodes. */
#include "../model/factors.h"
#include "breakwater/num.h"
#include "breakwater/plan.h"

enum { TOKENS = 96, RANK = 4 };
static bw_config config;
static bw_job job;

static const bw_tiny tiny = {.n_layer = 5,
                             .n_head = 16,
                             .n_kv = 8,
                             .d_model = 128,
                             .d_ff = 344,
                             .vocab = 264,
                             .tied = false,
                             .dtype = BW_BF16,
                             .architecture = "LlamaForCausalLM"};

static void visit(bw_store *store, int layer, int next, bw_use use)
{
    bw_layer lent;
    CHECK_OK(bw_store_acquire(store, layer, next, use, &lent));
    CHECK_OK(bw_store_release(store, layer));
}

/* As the transformer goes forward and backward. */
static void walk(bw_store *store)
{
    const int last = tiny.n_layer - 1;
    for (int layer = 0; layer <= last; layer++)
        visit(store, layer, layer < last ? layer + 1 : last - 1, BW_FORWARD);
    for (int layer = last; layer >= 0; layer--)
        visit(store, layer, layer > 0 ? layer - 1 : 0, BW_BACKWARD);
}

static void check_gathered(const bw_grid *grid, bw_store *store, const bw_layout *layout, const bw_adapter *adapter)
{
    walk(store); /* the first pass finds nothing in the slots */
    const double before = bw_event_get(BW_EVENT_GATHER)->bytes;
    walk(store);
    int64_t moved = (int64_t)(bw_event_get(BW_EVENT_GATHER)->bytes - before);
    CHECK_OK(bw_sum_ints(grid, &moved, 1)); /* every byte is sent once and received once */
    bw_layout resident = *layout;
    resident.streams = false;
    const double planned = bw_gathered_bytes(&job, layout, adapter, 1) - bw_gathered_bytes(&job, &resident, adapter, 1);
    CHECK(fabs((double)moved / 2 - planned * grid->nodes) <= 1);
    CHECK((moved > 0) == (bw_gather_foreign(&layout->grid) > 0));
}

static void check_memory(const bw_grid *grid, const bw_layout *layout, int64_t counted)
{
    static const bw_need made[] = {BW_NEED_PIECES, BW_NEED_TABLES,    BW_NEED_LAYERS,      BW_NEED_FOLDED, BW_NEED_ADAPTER,
                                   BW_NEED_DENSE,  BW_NEED_GRADIENTS, BW_NEED_ACTIVATIONS, BW_NEED_GATHER};
    bw_memory memory;
    int64_t planned = 0;
    CHECK_OK(bw_memory_plan(&memory, &job, layout, TOKENS));
    for (size_t i = 0; i < sizeof made / sizeof *made; i++)
        planned += memory.rank[made[i]];
    /* Rank 0 counts what its node shares, and holds the most of every matrix. */
    CHECK(grid->rank != 0 || fabs((double)(planned - counted)) < 0.03 * (double)counted + 65536);
}

static void check_engine(const bw_grid *grid, const bw_layout *layout)
{
    const int64_t before = bw_mem_now();
    bw_adapter *buffer = NULL, *adapter = NULL;
    bw_store *store = NULL;
    bw_lora *lora = NULL;
    bw_transformer *transformer = NULL;
    CHECK_OK(bw_adapter_create(&buffer, grid, job.spec, job.targets, RANK, 8, 0, (int)config.block));
    CHECK_OK(bw_adapter_create(&adapter, grid, job.spec, job.targets, RANK, 8, 0, (int)config.block));
    bw_adapter_init(buffer, 1);
    bw_adapter_init(adapter, 2);
    const bw_adapter *const folded[] = {buffer};
    const double factors[] = {1};
    CHECK_OK(bw_store_open(&store, grid, job.source, &config, true, folded, factors, 1));
    CHECK_OK(bw_lora_create(&lora, grid, adapter));
    CHECK_OK(bw_transformer_create(&transformer, store, lora, TOKENS, TOKENS, true, false));
    if (store && transformer) {
        check_gathered(grid, store, layout, adapter);
        check_memory(grid, layout, bw_mem_now() - before);
    }
    bw_transformer_free(&transformer);
    bw_lora_free(&lora);
    bw_store_close(&store);
    bw_adapter_free(&adapter);
    bw_adapter_free(&buffer);
}

/* Nodes of uneven size are not planned for: Slurm gives even ones. */
static void check_grid(const bw_grid *grid)
{
    char shape[32];
    bw_layout layout = {.threads = 1, .streams = true};
    double least, most;
    CHECK_OK(bw_min_max(grid, grid->node_size, &least, &most));
    if (least < most)
        return;
    snprintf(shape, sizeof shape, "%dx%d", grid->nprow, grid->npcol);
    CHECK_OK(bw_grid_outline(&layout.grid, shape, grid->replicas, grid->size, grid->node_size));
    CHECK(layout.grid.nodes == grid->nodes);
    if (layout.grid.nodes == grid->nodes)
        check_engine(grid, &layout);
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    bw_grid *grid = NULL;
    test_folder_make();
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    if (grid->rank == 0)
        CHECK_OK(bw_tiny_model_write_as(test_folder, &tiny, 3));
    CHECK_OK(bw_barrier(grid));
    bw_config_init(&config);
    CHECK_OK(bw_config_set(&config, BW_PLAN, "model", test_folder));
    CHECK_OK(bw_config_set(&config, BW_PLAN, "weights", "stream"));
    CHECK_OK(bw_config_set(&config, BW_PLAN, "lora-r", "4"));
    CHECK_OK(bw_config_set(&config, BW_PLAN, "block", "16"));
    CHECK_OK(bw_job_open(&job, &config));
    static const char *const precisions[] = {"fp32", "bf16"}; /* weights as they are, and packed; the folded adapter in them, and beside them */
    for (int i = 0; job.source && i < 2; i++) {
        CHECK_OK(bw_gemm_start(precisions[i], 1));
        check_every_grid(check_grid);
    }
    bw_gemm_stop();
    bw_job_close(&job);
    bw_config_free(&config);
    CHECK_OK(bw_barrier(grid));
    if (grid->rank == 0)
        test_remove(test_folder);
    CHECK_OK(bw_barrier(grid));
    bw_grid_destroy(&grid);
    return check_finish("test_plan_counts");
}

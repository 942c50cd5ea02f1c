/* plan/estimate.c - one layout's estimate, and the choice among layouts. */
#include "breakwater/plan.h"
#include <math.h>
#include <string.h>

static const double usable = 0.9; /* of a node's memory: the rest is the system's, the file cache's, and what no plan knows */

/* ---- one layout ----------------------------------------------------------------------------------------------------- */

static const char *largest_loss(const bw_times *times, int64_t micro_batches, int ranks)
{
    const struct {
        const char *name;
        double seconds;
    } losses[] = {{micro_batches < ranks ? "idle ranks" : "uneven work", times->compute - times->useful},
                  {"gather", times->exposed_gather},
                  {"allreduce", times->exposed_reduce},
                  {"update", times->update}};
    int largest = 0;
    for (int i = 1; i < (int)(sizeof losses / sizeof *losses); i++)
        largest = losses[i].seconds > losses[largest].seconds ? i : largest;
    return losses[largest].name;
}

/* The steps among which the fullest micro-batch is looked for: rows that are all alike need one, others the run's, or those of its first hundred
 * thousand rows. */
static int64_t steps_looked_at(const bw_job *job, const bw_plan *plan)
{
    const int64_t most = 100000 / plan->batch + 1;
    if (job->config->data.count == 0)
        return 1;
    return job->steps < most ? job->steps : most;
}

int bw_estimate_layout(bw_estimate *estimate, const bw_job *job, const bw_machine *machine, const bw_layout *layout)
{
    const bw_config *config = job->config;
    const int ranks = layout->grid.size;
    *estimate = (bw_estimate){.layout = *layout};
    bw_plan plan = {.samples = job->data.count, .batch = config->batch, .micro_batches = config->micro_batches, .seed = (uint64_t)config->seed};
    if (plan.micro_batches == 0)
        plan.micro_batches = bw_plan_default_cut(&plan, &job->data, ranks, layout->threads);
    estimate->micro_batches = plan.micro_batches;
    estimate->most_tokens = bw_plan_max_tokens(&plan, &job->data, 0, steps_looked_at(job, &plan));
    if (estimate->most_tokens < 0)
        return BW_SYSTEM;
    BW_TRY(bw_memory_plan(&estimate->memory, job, layout, estimate->most_tokens));
    BW_TRY(bw_times_plan(&estimate->times, job, machine, layout, estimate->micro_batches));
    const bw_times *times = &estimate->times;
    estimate->efficiency = times->useful / times->step;
    estimate->of_peak = times->flops / times->step / (machine->gemm_gflops * 1e9 * ranks * layout->threads);
    estimate->limit = largest_loss(times, estimate->micro_batches, ranks);
    estimate->fits = (double)bw_memory_node(&estimate->memory) <= usable * machine->memory_gib * 0x1p30;
    return BW_OK;
}

/* ---- the choice ------------------------------------------------------------------------------------------------------ */

/* What fits comes first, then what is faster; of what is as fast, within a hundredth, what takes less memory. */
static bool better(const bw_estimate *a, const bw_estimate *b)
{
    const int64_t mine = bw_memory_node(&a->memory), other = bw_memory_node(&b->memory);
    if (a->fits != b->fits)
        return a->fits;
    if (!a->fits || fabs(a->times.step - b->times.step) <= 0.01 * b->times.step)
        return mine < other;
    return a->times.step < b->times.step;
}

typedef struct search {
    const bw_job *job;
    const bw_machine *machine;
    bw_layout layout;
    bw_estimate *best;
    bool found;
} search;

static int try_stores(search *search)
{
    const char *weights = search->job->config->weights;
    for (int streams = 0; streams < 2; streams++) {
        bw_estimate one;
        if (strcmp(weights, streams ? "resident" : "stream") == 0)
            continue;
        search->layout.streams = streams;
        BW_TRY(bw_estimate_layout(&one, search->job, search->machine, &search->layout));
        if (!search->found || better(&one, search->best))
            *search->best = one;
        search->found = true;
    }
    return BW_OK;
}

static int try_grids(search *search, int ranks, int per_node)
{
    const bw_config *config = search->job->config;
    if (strcmp(config->grid, "auto") != 0 || config->replicas > 0) {
        BW_TRY(bw_grid_outline(&search->layout.grid, config->grid, (int)config->replicas, ranks, per_node));
        return try_stores(search);
    }
    for (int replicas = 1; replicas <= ranks; replicas++)
        if (ranks % replicas == 0) {
            BW_TRY(bw_grid_outline(&search->layout.grid, "auto", replicas, ranks, per_node));
            BW_TRY(try_stores(search));
        }
    return BW_OK;
}

int bw_estimate_best(bw_estimate *estimate, const bw_job *job, const bw_machine *machine, int ranks)
{
    const bw_config *config = job->config;
    const int per_node = config->ranks_per_node > 0 ? (int)config->ranks_per_node : (int)machine->cores;
    search search = {.job = job, .machine = machine, .best = estimate};
    const int here = ranks < per_node ? ranks : per_node;
    search.layout.threads = config->threads > 0 ? (int)config->threads : config->ranks_per_node > 0 ? (int)(machine->cores / per_node) : 1;
    if (search.layout.threads < 1 || (int64_t)here * search.layout.threads > machine->cores)
        return bw_fail(BW_USAGE, "%d ranks of %d thread(s) do not fit a node of %lld cores: lower --ranks-per-node or --threads", here,
                       search.layout.threads > 0 ? search.layout.threads : 1, (long long)machine->cores);
    return try_grids(&search, ranks, per_node);
}

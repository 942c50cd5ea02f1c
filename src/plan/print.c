/* plan/print.c - estimates as tables for people, lines for Slurm, and CSV. */
#include "breakwater/plan.h"
#include <math.h>
#include <string.h>

static const double MIB = 1048576.0, GIB = 1073741824.0;

static void grid_name(const bw_grid *grid, char name[64])
{
    snprintf(name, 64, "%d x %dx%d", grid->replicas, grid->nprow, grid->npcol);
}

static const char *store_name(const bw_layout *layout)
{
    return layout->streams ? "stream" : "resident";
}

/* ---- tables ---------------------------------------------------------------------------------------------------------- */
static int print_job(const bw_job *job, const bw_machine *machine, bw_text *out)
{
    const bw_config *config = job->config;
    const bw_spec *spec = job->spec;
    BW_TRY(bw_text_addf(out, "model     %s: %d layers, %lld wide, %lld in the MLP, %d heads, %d for keys, vocabulary %lld\n", config->model,
                        spec->n_layer, (long long)spec->d_model, (long long)spec->d_ff, spec->n_head, spec->n_kv, (long long)spec->vocab));
    BW_TRY(bw_text_addf(out, "job       LoRA r %lld on %s%s, batch %lld, %s of %.0f tokens on average%s\n", (long long)config->lora_r,
                        config->targets, job->folds ? ", with a BufferLoRA like it" : "", (long long)config->batch,
                        config->data.count > 0 ? "rows of the data" : "rows", (double)job->data.token_count / (double)job->data.count,
                        strcmp(config->recompute, "layer") == 0 ? ", activations computed again" : ""));
    return bw_text_addf(out, "machine   %lld cores of %g GFLOP/s, %g GiB at %g GB/s a node; network %g us, %g GB/s\n\n", (long long)machine->cores,
                        machine->gemm_gflops, machine->memory_gib, machine->memory_gbs, machine->network_us, machine->network_gbs);
}

static int print_times(const bw_estimate *estimates, int count, bw_text *out)
{
    BW_TRY(bw_text_addf(out, "seconds of a step = compute + update + exposed: what of gather and allreduce is not hidden behind compute\n"));
    BW_TRY(bw_text_addf(out, "%6s %6s %4s %-14s %-8s %5s %8s %8s %8s %8s %8s %8s %10s %6s %6s  %s\n", "ranks", "nodes", "thr", "replicas x PxQ",
                        "weights", "M", "compute", "gather", "allred.", "update", "exposed", "step", "tokens/s", "eff.", "peak", "lost to"));
    for (int i = 0; i < count; i++) {
        const bw_estimate *e = &estimates[i];
        const bw_times *t = &e->times;
        char grid[64];
        grid_name(&e->layout.grid, grid);
        BW_TRY(bw_text_addf(out, "%6d %6d %4d %-14s %-8s %5lld %8.3f %8.3f %8.3f %8.3f %8.3f %8.3f %10.0f %5.0f%% %5.0f%%  %s%s\n",
                            e->layout.grid.size, e->layout.grid.nodes, e->layout.threads, grid, store_name(&e->layout), (long long)e->micro_batches,
                            t->compute, t->gather, t->reduce, t->update, t->exposed_gather + t->exposed_reduce, t->step, t->tokens / t->step,
                            100 * e->efficiency, 100 * e->of_peak, e->limit, e->fits ? "" : "; DOES NOT FIT"));
    }
    return bw_text_addf(out, "\n");
}

static int print_need(const bw_estimate *estimates, int count, bw_need need, bw_text *out)
{
    BW_TRY(bw_text_addf(out, "  %-28s %s", bw_need_name(need), bw_need_is_shared(need) ? "node" : "rank"));
    for (int i = 0; i < count; i++)
        BW_TRY(bw_text_addf(out, " %9.1f", (double)estimates[i].memory.rank[need] / MIB));
    return bw_text_addf(out, "\n");
}

static int print_row(const bw_estimate *estimates, int count, const char *name, double (*value)(const bw_estimate *), bw_text *out)
{
    BW_TRY(bw_text_addf(out, "%-35s", name));
    for (int i = 0; i < count; i++)
        BW_TRY(bw_text_addf(out, " %9.1f", value(&estimates[i])));
    return bw_text_addf(out, "\n");
}

static double ranks_of(const bw_estimate *e)
{
    return e->layout.grid.size;
}

static double rank_mib(const bw_estimate *e)
{
    return (double)bw_memory_rank(&e->memory) / MIB;
}

static double node_mib(const bw_estimate *e)
{
    return (double)bw_memory_node(&e->memory) / MIB;
}

static double gathered_mib(const bw_estimate *e)
{
    return e->times.gathered_bytes / MIB;
}

static double reduced_mib(const bw_estimate *e)
{
    return e->times.reduced_bytes / MIB;
}

static int print_memory(const bw_estimate *estimates, int count, bw_text *out)
{
    BW_TRY(bw_text_addf(out, "memory, MiB: of the fullest rank, or once a node\n"));
    BW_TRY(print_row(estimates, count, "  for ranks", ranks_of, out));
    for (int need = 0; need < BW_NEEDS; need++)
        BW_TRY(print_need(estimates, count, (bw_need)need, out));
    BW_TRY(print_row(estimates, count, "  a rank, without what is shared", rank_mib, out));
    BW_TRY(print_row(estimates, count, "  a node, all its ranks", node_mib, out));
    BW_TRY(bw_text_addf(out, "\nmoved in a step, MiB\n"));
    BW_TRY(print_row(estimates, count, "  gathered into a node", gathered_mib, out));
    BW_TRY(print_row(estimates, count, "  sent by a rank to sum gradients", reduced_mib, out));
    return bw_text_addf(out, "\n");
}

/* ---- lines for Slurm -------------------------------------------------------------------------------------------------- */

/* A fifth more than planned, and ten minutes to start and to write. */
static int minutes_of(const bw_estimate *e, const bw_job *job)
{
    return (int)ceil(1.2 * (double)job->steps * e->times.step / 60) + 10;
}

/* The job that was planned: the options that were given, and what the plan chose. */
static int training_line(const bw_estimate *e, const bw_job *job, bw_text *out)
{
    const bw_grid *grid = &e->layout.grid;
    char shape[32], weights[16], stage[] = "user", model[] = "FOLDER";
    bw_config chosen = *job->config; /* borrows its texts */
    snprintf(shape, sizeof shape, "%dx%d", grid->nprow, grid->npcol);
    snprintf(weights, sizeof weights, "%s", store_name(&e->layout));
    chosen.stage = chosen.stage ? chosen.stage : stage;
    chosen.grid = shape;
    chosen.weights = weights;
    chosen.replicas = grid->replicas;
    chosen.micro_batches = e->micro_batches;
    chosen.threads = e->layout.threads;
    chosen.ranks_per_node = 0; /* a plan's are real, and Slurm's business */
    const char *end = strrchr(chosen.model, '.');
    if (end && strcmp(end, ".json") == 0) /* enough for a plan, and for nothing else */
        chosen.model = model;
    /* srun does not take the cores of a rank over from sbatch. */
    BW_TRY(bw_text_addf(out, "srun --mpi=pmix --cpus-per-task=%d breakwater train", e->layout.threads));
    BW_TRY(bw_config_arguments(&chosen, BW_PLAN, BW_TRAIN, out));
    return bw_text_addf(out, "%s%s --output DIR", chosen.data.count > 0 ? "" : " --data FILE", job->folds ? " --buffer DIR" : "");
}

static int print_sbatch(const bw_estimate *e, const bw_job *job, bw_text *out)
{
    const bw_grid *grid = &e->layout.grid;
    const double gib = ceil(1.1 * (double)bw_memory_node(&e->memory) / GIB);
    bw_text line = {0};
    int status;
    BW_GO(training_line(e, job, &line));
    BW_GO(bw_text_addf(out, "sbatch --nodes=%d --ntasks-per-node=%d --cpus-per-task=%d --mem=%.0fG", grid->nodes, grid->node_size, e->layout.threads,
                       gib));
    if (job->steps > 0)
        BW_GO(bw_text_addf(out, " --time=%d", minutes_of(e, job)));
    BW_GO(bw_text_addf(out, " --wrap "));
    BW_GO(bw_text_add_word(out, line.data));
    BW_GO(bw_text_addf(out, "\n"));
done:
    bw_text_free(&line);
    return status;
}

static int print_misfits(const bw_estimate *estimates, int count, const bw_machine *machine, bw_text *out)
{
    for (int i = 0; i < count; i++)
        if (!estimates[i].fits)
            BW_TRY(bw_text_addf(out,
                                "%d ranks do NOT FIT: a node needs %.1f GiB, 90 %% of its memory are %.1f GiB; try --recompute layer, more "
                                "--micro-batches, or fewer --ranks-per-node\n",
                                estimates[i].layout.grid.size, (double)bw_memory_node(&estimates[i].memory) / GIB, 0.9 * machine->memory_gib));
    return BW_OK;
}

int bw_plan_print(const bw_estimate *estimates, int count, const bw_job *job, const bw_machine *machine, bw_text *out)
{
    BW_TRY(print_job(job, machine, out));
    BW_TRY(print_times(estimates, count, out));
    BW_TRY(print_memory(estimates, count, out));
    BW_TRY(print_misfits(estimates, count, machine, out));
    for (int i = 0; i < count; i++)
        if (estimates[i].fits)
            BW_TRY(print_sbatch(&estimates[i], job, out));
    return BW_OK;
}

/* ---- CSV ---------------------------------------------------------------------------------------------------------------- */
/* A need's name without the commas that would end a field. */
static int add_column(bw_need need, bw_text *out)
{
    BW_TRY(bw_text_addf(out, ","));
    for (const char *at = bw_need_name(need); *at; at++)
        if (*at != ',')
            BW_TRY(bw_text_add(out, at, 1));
    return BW_OK;
}

static int csv_header(bw_text *out)
{
    BW_TRY(bw_text_addf(out,
                        "ranks,nodes,threads,replicas,rows,columns,weights,micro_batches,most_tokens,fits,compute_s,gather_s,allreduce_s,update_s,"
                        "exposed_gather_s,exposed_allreduce_s,step_s,tokens_per_s,efficiency,of_peak,limit,gathered_bytes,reduced_bytes,"
                        "rank_bytes,node_bytes"));
    for (int need = 0; need < BW_NEEDS; need++)
        BW_TRY(add_column((bw_need)need, out));
    return bw_text_addf(out, "\n");
}

int bw_plan_csv(const bw_estimate *estimates, int count, bw_text *out)
{
    BW_TRY(csv_header(out));
    for (int i = 0; i < count; i++) {
        const bw_estimate *e = &estimates[i];
        const bw_grid *g = &e->layout.grid;
        const bw_times *t = &e->times;
        BW_TRY(bw_text_addf(out, "%d,%d,%d,%d,%d,%d,%s,%lld,%lld,%d,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.4f,%.4f,%s,%.0f,%.0f,%lld,%lld",
                            g->size, g->nodes, e->layout.threads, g->replicas, g->nprow, g->npcol, store_name(&e->layout),
                            (long long)e->micro_batches, (long long)e->most_tokens, e->fits, t->compute, t->gather, t->reduce, t->update,
                            t->exposed_gather, t->exposed_reduce, t->step, t->tokens / t->step, e->efficiency, e->of_peak, e->limit,
                            t->gathered_bytes, t->reduced_bytes, (long long)bw_memory_rank(&e->memory), (long long)bw_memory_node(&e->memory)));
        for (int need = 0; need < BW_NEEDS; need++)
            BW_TRY(bw_text_addf(out, ",%lld", (long long)e->memory.rank[need]));
        BW_TRY(bw_text_addf(out, "\n"));
    }
    return BW_OK;
}

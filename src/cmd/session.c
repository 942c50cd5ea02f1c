#include "cmd/session.h"
#include "breakwater/num.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Threads of this rank: as asked for; else as OpenMP was told; else the cores it is bound to. Ranks that are bound to nothing share all. */
static int choose_threads(const bw_config *config, const bw_binding *binding)
{
    if (config->threads > 0)
        return (int)config->threads;
    const char *told = getenv("OMP_NUM_THREADS");
    if (told && atoi(told) > 0)
        return atoi(told);
    int mine = bw_binding_cores(binding);
    if (mine >= binding->online && bw_par_local_size() > 1)
        mine /= bw_par_local_size();
    return mine > 1 ? mine : 1;
}

int bw_session_start(const bw_config *config)
{
    bw_binding binding;
    BW_TRY(bw_par_agree(bw_hints_check(&config->mpi_hints)));
    bw_binding_get(&binding);
    binding.threads = choose_threads(config, &binding);
    omp_set_num_threads(binding.threads);
    BW_TRY(bw_par_agree(bw_gemm_start(config->precision, binding.threads)));
    bw_flush_denormals();
    bw_info("breakwater %s, %s, %d rank%s", BW_VERSION, bw_gemm_describe(), bw_par_size(), bw_par_size() > 1 ? "s" : "");
    return bw_par_binding(&binding);
}

int bw_session_lock(const bw_grid *grid, bw_lock *lock, const char *folder)
{
    *lock = (bw_lock){.descriptor = -1};
    int status = bw_agree(grid, grid->rank == 0 ? bw_folder_lock(lock, folder) : BW_OK);
    if (status != BW_OK)
        bw_folder_unlock(lock);
    return status;
}

/* ---- precision ------------------------------------------------------------------------------------------------------- */

int bw_session_precision(const bw_config *config, char precision[8])
{
    bw_text recorded = {0};
    int status = BW_OK;
    if (strcmp(config->precision, "auto") == 0 && config->output && strcmp(config->resume, "never") != 0)
        status = bw_config_recorded(config->output, "precision", &recorded);
    bool known = recorded.length && (strcmp(recorded.data, "fp32") == 0 || strcmp(recorded.data, "bf16") == 0);
    snprintf(precision, 8, "%s", known ? recorded.data : config->precision);
    bw_text_free(&recorded);
    return status;
}

/* All ranks take what the one with the least can. */
static int start_alike(const bw_grid *grid, const char *precision)
{
    const int threads = omp_get_max_threads();
    BW_TRY(bw_agree(grid, bw_gemm_start(precision, threads)));
    int64_t place = bw_gemm_place();
    BW_TRY(bw_max_ints(grid, &place, 1));
    return bw_agree(grid, place == bw_gemm_place() ? BW_OK : bw_gemm_start_at((int)place, threads));
}

/* Products of a stage: a pipeline's stages may differ, and what `auto` came to when the output folder was begun holds for all its restarts. */
static int settle_precision(const bw_grid *grid, const bw_config *config)
{
    char wanted[8] = "", here[8];
    BW_TRY(bw_agree(grid, grid->rank == 0 ? bw_session_precision(config, wanted) : BW_OK));
    BW_TRY(bw_broadcast(grid, wanted, sizeof wanted));
    BW_TRY(start_alike(grid, config->precision));
    snprintf(here, sizeof here, "%s", bw_gemm_precision());
    if (strcmp(config->precision, "auto") == 0 && (strcmp(wanted, "auto") == 0 || strcmp(wanted, here) == 0))
        bw_info("--precision auto: %s (%s)", here, bw_gemm_describe());
    if (strcmp(wanted, config->precision) == 0 || strcmp(wanted, here) == 0)
        return BW_OK;
    bw_warn("--precision auto is %s here (%s), and %s was begun in %s: it goes on in %s", here, bw_gemm_describe(), config->output, wanted, wanted);
    return start_alike(grid, wanted);
}

/* ---- work -------------------------------------------------------------------------------------------------------------- */

/* With what a stage has got from its file and from the pipeline's: all of it, defaults too, is in the output's config.yaml. Collective on world. */
static int say_options(const bw_grid *grid, const bw_config *config, bw_command command)
{
    bw_text options = {0};
    int status = grid->rank == 0 ? bw_config_arguments(config, command, command, &options) : BW_OK;
    if (status == BW_OK && options.length)
        bw_info("options that are not at their defaults:%s", options.data);
    bw_text_free(&options);
    return bw_agree(grid, status);
}

int bw_session_work(const bw_config *config, bw_command command, bw_stage_work work, bw_time_keeper keep_time)
{
    bw_grid *grid = NULL;
    bw_lock lock = {.descriptor = -1};
    BW_TRY(bw_grid_create(&grid, config->grid, (int)config->replicas, (int)config->ranks_per_node));
    bw_info("grid %d x %d, %d replica%s, %d node%s", grid->nprow, grid->npcol, grid->replicas, grid->replicas > 1 ? "s" : "", grid->nodes,
            grid->nodes > 1 ? "s" : "");
    int status = say_options(grid, config, command);
    if (status == BW_OK && config->output) /* bench may have none */
        status = bw_session_lock(grid, &lock, config->output);
    double start = bw_now();
    if (status == BW_OK)
        status = settle_precision(grid, config);
    if (status == BW_OK) {
        bw_config settled = *config; /* borrows its texts */
        settled.precision = (char *)bw_gemm_precision();
        status = work(grid, &settled);
        if (keep_time && grid->rank == 0 && (status == BW_OK || status == BW_STOPPED || status == BW_UNFIT))
            keep_time(config->output, bw_now() - start);
    }
    bw_folder_unlock(&lock);
    bw_grid_destroy(&grid);
    return status;
}

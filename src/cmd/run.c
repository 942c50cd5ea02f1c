/* The stages of a pipeline, in order. Each knows by itself whether it is done, so a pipeline that is started again goes on where it was. */
#include "breakwater/post.h"
#include "breakwater/train.h"
#include "cmd/commands.h"
#include "cmd/session.h"
#include "cmd/stages.h"
#include <string.h>

static const struct {
    bw_command command;
    const char *name;
    bw_stage_work work;
} kinds[] = {{BW_TRAIN, "train", bw_train}, {BW_MERGE, "merge", bw_merge}, {BW_EVAL, "eval", bw_eval}};

/* ---- time ------------------------------------------------------------------------------------------------------------- */

/* What rank 0 does beside the stages is worth a warning, not the job: no rank may leave while the others go on to the next stage. */
static void warn_of(const char *what, int status)
{
    if (status == BW_OK)
        return;
    bw_warn("%s: %s", what, bw_error());
    bw_error_clear();
}

/* Added up over all starts. The message of a stage that was stopped, or is not fit, stays the one that main prints. */
static void keep_time(const char *folder, double seconds)
{
    char message[BW_ERROR_BYTES];
    bw_error_take(message);
    warn_of("the time of the stage is not kept", bw_report_time_add(folder, seconds));
    if (*message)
        bw_fail(BW_STOPPED, "%s", message);
}

/* ---- one stage -------------------------------------------------------------------------------------------------------- */

/* A job that has to stop begins no further stage; what is finished is passed over to the end, so that a finished pipeline is never a stopped one. */
static int look_ahead(const bw_grid *grid, const bw_pipeline *pipeline, int index, bool *finished)
{
    const bw_stage *stage = &pipeline->stages[index];
    *finished = false;
    if (grid->rank == 0)
        warn_of("a stage cannot be looked at", bw_report_finished(stage, finished));
    BW_TRY(bw_broadcast(grid, finished, sizeof *finished));
    bw_stop stop = index > 0 && !*finished ? bw_stop_wanted(pipeline->common.time_limit, 0) : BW_STOP_NONE;
    return bw_agree(grid, stop ? bw_fail(BW_STOPPED, "stopped before stage %s (%s)", stage->name, bw_stop_reason(stop)) : BW_OK);
}

/* To look at a finished stage is no work that counts. */
static int run_stage(const bw_grid *grid, const bw_pipeline *pipeline, int index)
{
    const bw_stage *stage = &pipeline->stages[index];
    bool finished;
    BW_TRY(look_ahead(grid, pipeline, index, &finished));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i)
        if (kinds[i].command == stage->command) {
            bw_info("\n== stage %d of %d: %s (%s) ==", index + 1, pipeline->count, stage->name, kinds[i].name);
            return bw_session_work(&stage->config, stage->command, kinds[i].work, finished ? NULL : keep_time);
        }
    return bw_fail(BW_BUG, "stage %s has an unknown command", stage->name);
}

/* ---- the whole -------------------------------------------------------------------------------------------------------- */

static int final_report(const bw_pipeline *pipeline)
{
    if (!bw_file_exists(pipeline->common.output))
        return bw_fail(BW_NOINPUT, "%s: nothing has run yet: this folder is not there", pipeline->common.output);
    double seconds[BW_MAX_STAGES] = {0};
    bw_text text = {0};
    warn_of("the time of a stage is not known", bw_report_times_load(pipeline, seconds));
    int status = bw_report_write(pipeline, seconds, &text);
    if (status == BW_OK)
        bw_info("\n%s", text.data);
    bw_text_free(&text);
    return status;
}

/* A model that is not fit to leave ends the pipeline with that status, but the stages of other customers do not wait for it. */
static int note_unfit(bw_text *unfit, int status)
{
    if (status != BW_UNFIT)
        return status;
    BW_TRY(bw_text_addf(unfit, "%s%s", unfit->length ? "; " : "", bw_error()));
    bw_error_clear();
    return BW_OK;
}

static int run_stages(const bw_grid *grid, const bw_pipeline *pipeline, bw_text *unfit)
{
    bool selected[BW_MAX_STAGES];
    BW_TRY(bw_stages_select(pipeline, pipeline->common.only, selected));
    BW_TRY(bw_agree(grid, bw_pipeline_check_inputs(pipeline, selected))); /* each rank for itself: a node may lack a file */
    for (int i = 0; i < pipeline->count; ++i)
        if (selected[i])
            BW_TRY(bw_agree(grid, note_unfit(unfit, run_stage(grid, pipeline, i))));
    return BW_OK;
}

/* One job has the folder for itself. Jobs of some stages (--only) work in it side by side: each stage has its folder for itself, and the report
 * is left to the run of all. */
static int run_all(const bw_grid *grid, const bw_pipeline *pipeline, bw_text *unfit)
{
    static const char *const written[] = {"report.txt", "report.csv", "times.csv", NULL};
    bw_lock lock;
    BW_TRY(bw_session_lock(grid, &lock, pipeline->common.output));
    if (grid->rank == 0)
        warn_of("unfinished files of a killed job stay", bw_folder_sweep(pipeline->common.output, written));
    int status = run_stages(grid, pipeline, unfit);
    if (status == BW_OK)
        status = bw_agree(grid, grid->rank == 0 ? final_report(pipeline) : BW_OK);
    bw_folder_unlock(&lock);
    return status;
}

/* Each stage has the grid that its options name; this one is for what all ranks agree on between them. */
static int run_with_ranks(const bw_pipeline *pipeline)
{
    bw_grid *grid = NULL;
    bw_text unfit = {0};
    for (int i = 0; i < pipeline->count; i++)
        BW_TRY(bw_par_agree(bw_hints_check(&pipeline->stages[i].config.mpi_hints)));
    BW_TRY(bw_session_start(&pipeline->common));
    BW_TRY(bw_grid_create(&grid, "auto", 0, 0));
    int status = pipeline->common.only ? run_stages(grid, pipeline, &unfit) : run_all(grid, pipeline, &unfit);
    if (status == BW_OK && unfit.length)
        status = bw_fail(BW_UNFIT, "%s", unfit.data);
    bw_text_free(&unfit);
    bw_grid_destroy(&grid);
    return status;
}

int bw_cmd_run(const bw_pipeline *pipeline)
{
    const char *show = pipeline->common.show;
    if (strcmp(show, "stages") == 0)
        return bw_stages_print(pipeline);
    if (strcmp(show, "output") == 0) {
        bw_info("%s", pipeline->common.output);
        return BW_OK;
    }
    return strcmp(show, "report") == 0 ? final_report(pipeline) : run_with_ranks(pipeline);
}

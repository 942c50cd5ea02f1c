/* The stages of a pipeline, in order. Each knows by itself whether it is done, so a pipeline that is started again goes on where it was. */
#include "breakwater/post.h"
#include "breakwater/train.h"
#include "cmd/commands.h"
#include "cmd/session.h"

static const struct {
    bw_command command;
    const char *name;
    bw_stage_work work;
} kinds[] = {{BW_TRAIN, "train", bw_train}, {BW_MERGE, "merge", bw_merge}, {BW_EVAL, "eval", bw_eval}};

static int run_stage(const bw_pipeline *pipeline, int index)
{
    const bw_stage *stage = &pipeline->stages[index];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i)
        if (kinds[i].command == stage->command) {
            bw_info("\n== stage %d of %d: %s (%s) ==", index + 1, pipeline->count, stage->name, kinds[i].name);
            return bw_session_work(&stage->config, kinds[i].work);
        }
    return bw_fail(BW_BUG, "stage %s has an unknown command", stage->name);
}

/* Rank 0 keeps the books: time is added up over all starts, and looking at a finished stage is no work. Books that cannot be kept are worth
 * a warning, not the job: no rank may leave while the others go on to the next stage. */
static void warn_of_books(int status)
{
    if (status == BW_OK)
        return;
    bw_warn("the time of the stages is not kept: %s", bw_error());
    bw_error_clear();
}

/* A job that has to stop begins no further stage; what is finished is passed over to the end, so that a finished pipeline is never a stopped one. */
static int look_ahead(const bw_grid *grid, const bw_pipeline *pipeline, int index, bool *finished)
{
    *finished = false;
    if (grid->rank == 0)
        warn_of_books(bw_report_finished(&pipeline->stages[index], finished));
    BW_TRY(bw_broadcast(grid, finished, sizeof *finished));
    bool stop = index > 0 && !*finished && bw_stop_wanted(pipeline->common.time_limit, 0);
    return bw_agree(grid, stop ? bw_fail(BW_STOPPED, "stopped before stage %s", pipeline->stages[index].name) : BW_OK);
}

static int timed_stage(const bw_grid *grid, const bw_pipeline *pipeline, int index, double *seconds)
{
    bool first = grid->rank == 0, finished;
    BW_TRY(look_ahead(grid, pipeline, index, &finished));
    double start = bw_now();
    int status = run_stage(pipeline, index);
    if (!finished)
        seconds[index] += bw_now() - start;
    if (first && status == BW_OK)
        warn_of_books(bw_report_times_save(pipeline, seconds));
    if (first && status == BW_STOPPED) /* the message of the stop stays the one that main prints */
        bw_report_times_save(pipeline, seconds);
    return status;
}

static int final_report(const bw_pipeline *pipeline, const double *seconds)
{
    bw_text text = {0};
    int status = bw_report_write(pipeline, seconds, &text);
    if (status == BW_OK)
        bw_info("\n%s", text.data);
    bw_text_free(&text);
    return status;
}

static int run_stages(const bw_grid *grid, const bw_pipeline *pipeline)
{
    static const char *const written[] = {"report.txt", "report.csv", "times.csv", NULL};
    double seconds[BW_MAX_LIST] = {0};
    BW_ASSERT(pipeline->count <= BW_MAX_LIST);
    if (grid->rank == 0) {
        warn_of_books(bw_folder_sweep(pipeline->common.output, written));
        warn_of_books(bw_report_times_load(pipeline, seconds));
    }
    for (int i = 0; i < pipeline->count; ++i)
        BW_TRY(timed_stage(grid, pipeline, i, seconds));
    return bw_agree(grid, grid->rank == 0 ? final_report(pipeline, seconds) : BW_OK);
}

/* Each stage has the grid that its options name; this one is for what all ranks agree on between them. */
int bw_cmd_run(const bw_pipeline *pipeline)
{
    bw_grid *grid = NULL;
    bw_lock lock;
    BW_TRY(bw_session_start(&pipeline->common));
    BW_TRY(bw_grid_create(&grid, "auto", 0, 0));
    int status = bw_session_lock(grid, &lock, pipeline->common.output);
    if (status == BW_OK)
        status = run_stages(grid, pipeline);
    bw_folder_unlock(&lock);
    bw_grid_destroy(&grid);
    return status;
}

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

static int timed_stage(const bw_pipeline *pipeline, int index, double *seconds)
{
    bool first = bw_par_rank() == 0, finished = false;
    if (first)
        warn_of_books(bw_report_finished(&pipeline->stages[index], &finished));
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

int bw_cmd_run(const bw_pipeline *pipeline)
{
    double seconds[BW_MAX_LIST] = {0};
    BW_ASSERT(pipeline->count <= BW_MAX_LIST);
    BW_TRY(bw_session_start(&pipeline->common));
    if (bw_par_rank() == 0)
        warn_of_books(bw_report_times_load(pipeline, seconds));
    for (int i = 0; i < pipeline->count; ++i)
        BW_TRY(timed_stage(pipeline, i, seconds));
    return bw_par_rank() == 0 ? final_report(pipeline, seconds) : BW_OK;
}

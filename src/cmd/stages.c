#include "cmd/stages.h"
#include "breakwater/data.h"
#include "breakwater/post.h"
#include "breakwater/train.h"
#include "cmd/session.h"
#include <string.h>

static int find(const bw_pipeline *pipeline, const char *name, size_t length)
{
    for (int i = 0; i < pipeline->count; i++)
        if (strlen(pipeline->stages[i].name) == length && !strncmp(pipeline->stages[i].name, name, length))
            return i;
    return -1;
}

static int refuse_name(const bw_pipeline *pipeline, const char *name, size_t length)
{
    const char *names[BW_MAX_STAGES];
    bw_text wanted = {0};
    for (int i = 0; i < pipeline->count; i++)
        names[i] = pipeline->stages[i].name;
    BW_TRY(bw_text_addf(&wanted, "%.*s", (int)length, name));
    const char *near = bw_nearest(wanted.data, names, pipeline->count);
    const int status = bw_fail(BW_USAGE, "--only: no stage is named '%s'%s%s%s (--show stages lists them)", wanted.data,
                               near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    bw_text_free(&wanted);
    return status;
}

int bw_stages_select(const bw_pipeline *pipeline, const char *only, bool *selected)
{
    for (int i = 0; i < pipeline->count; i++)
        selected[i] = !only;
    for (const char *at = only; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        size_t length = strcspn(at, ",");
        int stage = find(pipeline, at, length);
        if (stage < 0)
            return refuse_name(pipeline, at, length);
        selected[stage] = true;
    }
    return BW_OK;
}

/* ---- whose is it? ----------------------------------------------------------------------------------------------------- */

static bool trains_on_customer_data(const bw_stage *stage)
{
    return stage->command == BW_TRAIN && (!strcmp(stage->config.stage, "user") || !strcmp(stage->config.stage, "sft"));
}

static int assign(const bw_pipeline *pipeline, int index, int *customers, int *count)
{
    const bw_stage *stage = &pipeline->stages[index];
    customers[index] = 0;
    for (int i = 0; i < index; i++) {
        if (!(bw_stage_needs(stage, i)) || customers[i] == 0)
            continue;
        if (customers[index] && customers[index] != customers[i])
            return bw_fail(BW_USAGE, "stage '%s' refers to two customers (by way of '%s'): each customer's stages must stand alone", stage->name,
                           pipeline->stages[i].name);
        customers[index] = customers[i];
    }
    if (!customers[index] && trains_on_customer_data(stage))
        customers[index] = ++*count;
    return BW_OK;
}

/* ---- is it done? ------------------------------------------------------------------------------------------------------ */

/* The model that was looked at last: stages mostly share one. */
typedef struct look {
    bw_source *source;
    int32_t vocab; /* of its tokenizer; 0: not asked for yet */
} look;

static void look_away(look *look)
{
    bw_source_close(look->source);
    *look = (struct look){0};
}

static int look_at(look *look, const char *model, bool tokens)
{
    if (!look->source || strcmp(bw_source_path(look->source), model) != 0) {
        look_away(look);
        BW_TRY(bw_source_open(&look->source, model));
    }
    if (!tokens || look->vocab)
        return BW_OK;
    bw_tokenizer *tokenizer = NULL;
    BW_TRY(bw_tokenizer_open(&tokenizer, model));
    look->vocab = bw_tokenizer_vocab(tokenizer);
    bw_tokenizer_free(tokenizer);
    return BW_OK;
}

static int compare(look *look, const bw_stage *stage)
{
    bool train = stage->command == BW_TRAIN;
    BW_TRY(look_at(look, stage->config.model ? stage->config.model : "", train));
    char precision[8];
    bw_config config = stage->config; /* borrows its texts */
    BW_TRY(bw_session_precision(&config, precision));
    config.precision = precision;
    if (train)
        return bw_train_compare(&config, look->source, look->vocab);
    return (stage->command == BW_MERGE ? bw_merge_compare : bw_eval_compare)(&config, look->source);
}

/* What cannot be compared is not known to be done. */
static int judge(const bw_pipeline *pipeline, int index, look *look, bw_stage_state *states)
{
    const bw_stage *stage = &pipeline->stages[index];
    bool finished = false;
    BW_TRY(bw_report_finished(stage, &finished));
    states[index] = finished ? BW_STAGE_DONE : BW_STAGE_OPEN;
    for (int i = 0; i < index; i++)
        if (finished && states[i] != BW_STAGE_DONE && bw_stage_needs(stage, i))
            states[index] = BW_STAGE_STALE;
    if (states[index] != BW_STAGE_DONE)
        return BW_OK;
    int status = compare(look, stage);
    if (status == BW_OK && stage->command == BW_EVAL)
        status = bw_gate(&stage->config);
    if (status == BW_OK)
        return BW_OK;
    states[index] = status == BW_UNFIT ? BW_STAGE_UNFIT : BW_STAGE_STALE;
    bw_warn("%s is %s: %s", stage->name, status == BW_UNFIT ? "unfit" : "stale", bw_error());
    bw_error_clear();
    return BW_OK;
}

int bw_stages_judge(const bw_pipeline *pipeline, bw_stage_state *states)
{
    look look = {0};
    int status = BW_OK;
    for (int i = 0; i < pipeline->count && status == BW_OK; i++)
        status = judge(pipeline, i, &look, states);
    look_away(&look);
    return status;
}

/* ---- the list --------------------------------------------------------------------------------------------------------- */

int bw_stages_print(const bw_pipeline *pipeline)
{
    static const char *const words[] = {[BW_STAGE_OPEN] = "open", [BW_STAGE_STALE] = "stale", [BW_STAGE_DONE] = "done", [BW_STAGE_UNFIT] = "unfit"};
    int customers[BW_MAX_STAGES], count = 0;
    bw_stage_state states[BW_MAX_STAGES];
    for (int i = 0; i < pipeline->count; i++)
        BW_TRY(assign(pipeline, i, customers, &count));
    BW_TRY(bw_stages_judge(pipeline, states));
    bw_info("customer command stage state");
    for (int i = 0; i < pipeline->count; i++) {
        const bw_stage *stage = &pipeline->stages[i];
        const char *command = stage->command == BW_TRAIN ? "train" : stage->command == BW_MERGE ? "merge" : "eval";
        bw_info("%d %s %s %s", customers[i], command, stage->name, words[states[i]]);
    }
    return bw_pipeline_check_inputs(pipeline, NULL);
}

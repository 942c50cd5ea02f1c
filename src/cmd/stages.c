#include "cmd/stages.h"
#include "breakwater/post.h"
#include <string.h>

static int find(const bw_pipeline *pipeline, const char *name, size_t length)
{
    for (int i = 0; i < pipeline->count; i++)
        if (strlen(pipeline->stages[i].name) == length && !strncmp(pipeline->stages[i].name, name, length))
            return i;
    return -1;
}

int bw_stages_select(const bw_pipeline *pipeline, const char *only, bool *selected)
{
    for (int i = 0; i < pipeline->count; i++)
        selected[i] = !only;
    for (const char *at = only; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        size_t length = strcspn(at, ",");
        int stage = find(pipeline, at, length);
        if (stage < 0)
            return bw_fail(BW_USAGE, "--only: no stage is named '%.*s' (--show stages lists them)", (int)length, at);
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
        if (!(stage->needs >> i & 1) || customers[i] == 0)
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

int bw_stages_print(const bw_pipeline *pipeline)
{
    int customers[BW_MAX_LIST], count = 0;
    BW_ASSERT(pipeline->count <= BW_MAX_LIST);
    bw_info("customer command stage state");
    for (int i = 0; i < pipeline->count; i++) {
        const bw_stage *stage = &pipeline->stages[i];
        bool done = false;
        BW_TRY(assign(pipeline, i, customers, &count));
        BW_TRY(bw_report_finished(stage, &done));
        const char *command = stage->command == BW_TRAIN ? "train" : stage->command == BW_MERGE ? "merge" : "eval";
        bw_info("%d %s %s %s", customers[i], command, stage->name, done ? "done" : "open");
    }
    return BW_OK;
}

/* The inputs of a pipeline's stages: a path that is wrong is found before the first stage, not after hours. */
#include "base/config.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

static const char *const inputs[BW_STAGE_INPUTS] = {"model", "data", "buffer", "init-adapter", "user", "reinforce", "adapter", "harmful", "task"};

void bw_input_note(bw_stage *stage, const bw_option *option, int line)
{
    for (int i = 0; i < BW_STAGE_INPUTS; i++)
        if (!strcmp(option->name, inputs[i]))
            stage->lines[i] = line;
}

/* The earlier stage whose folder the path lies in; -1: none. */
static int maker_of(const bw_pipeline *pipeline, int before, const char *path)
{
    for (int i = 0; i < before; i++) {
        const char *folder = pipeline->stages[i].config.output;
        size_t length = strlen(folder);
        if (!strncmp(path, folder, length) && (path[length] == '/' || path[length] == '\0'))
            return i;
    }
    return -1;
}

static int check_path(const bw_pipeline *pipeline, int index, int input, const char *path, const bool *selected)
{
    const bw_stage *stage = &pipeline->stages[index];
    int line = stage->lines[input], maker = maker_of(pipeline, index, path);
    if (maker >= 0 && (!selected || selected[maker])) /* it may not be there yet */
        return BW_OK;
    if (access(path, R_OK) == 0)
        return BW_OK;
    const char *why = strerror(errno), *first = maker >= 0 ? pipeline->stages[maker].name : NULL;
    if (first)
        return bw_fail(BW_NOINPUT, "%s: stage '%s' needs %s of stage '%s', which is not done: run '%s' first (--only %s,%s runs both)",
                       pipeline->file, stage->name, path, first, first, first, stage->name);
    return line ? bw_fail(BW_NOINPUT, "%s:%d: %s: %s: %s: %s", pipeline->file, line, stage->name, inputs[input], path, why)
                : bw_fail(BW_NOINPUT, "%s: --%s: %s: %s", stage->name, inputs[input], path, why);
}

static int check_stage(const bw_pipeline *pipeline, int index, const bool *selected)
{
    const bw_stage *stage = &pipeline->stages[index];
    for (int i = 0; i < BW_STAGE_INPUTS; i++) {
        const bw_option *option = bw_option_find(stage->command, inputs[i]);
        if (!option)
            continue;
        const void *value = (const char *)&stage->config + option->offset;
        const bw_list *list = value;
        const char *single = option->kind == BW_KIND_PATH ? *(char *const *)value : NULL;
        if (single)
            BW_TRY(check_path(pipeline, index, i, single, selected));
        for (int k = 0; option->kind == BW_KIND_PATHS && k < list->count; k++)
            BW_TRY(check_path(pipeline, index, i, list->items[k], selected));
    }
    return BW_OK;
}

int bw_pipeline_check_inputs(const bw_pipeline *pipeline, const bool *selected)
{
    for (int i = 0; i < pipeline->count; i++)
        if (!selected || selected[i])
            BW_TRY(check_stage(pipeline, i, selected));
    return BW_OK;
}

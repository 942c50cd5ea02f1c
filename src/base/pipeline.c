/* `breakwater run FILE.yaml`: stages with their whole configuration. */
#include "base/config.h"
#include <string.h>

enum { NAME_AT_MOST = 64, REFERENCES_AT_MOST = 16, REDO_AT_MOST = 800 };

static const char *const stage_keys[] = {"name", "command", "label"};
static const bw_command stage_commands[] = {BW_TRAIN, BW_MERGE, BW_EVAL};

/* What the callbacks need: the file, the pipeline so far, and the stage under construction. */
typedef struct loader {
    const bw_yaml *yaml;
    bw_pipeline *pipeline;
    bw_stage *stage;
    const bw_option *references[REFERENCES_AT_MOST]; /* options of the stage whose value is an earlier stage's output */
    int n_references;
} loader;

/* ---- `@name/rest` -> <output>/<name>/rest --------------------------------------------------------------------------- */

static int resolve_reference(const void *context, const char *where, const char *path, bw_text *out)
{
    const loader *loader = context;
    const char *name = path + 1;
    size_t length = strcspn(name, "/");
    for (const bw_stage *stage = loader->pipeline->stages; stage < loader->stage; stage++)
        if (strlen(stage->name) == length && !strncmp(stage->name, name, length)) {
            loader->stage->needs[(stage - loader->pipeline->stages) / 64] |= 1ull << ((stage - loader->pipeline->stages) % 64);
            BW_TRY(bw_path(out, loader->pipeline->common.output, stage->name));
            return bw_text_addf(out, "%s", name + length);
        }
    return bw_fail(BW_USAGE, "%s: '%s' names no stage before '%s' (write ./@... for a file of that name)", where, path,
                   loader->stage->name ? loader->stage->name : "this one");
}

/* ---- stages --------------------------------------------------------------------------------------------------------- */

static bool is_stage_key(const char *key)
{
    for (size_t i = 0; i < sizeof stage_keys / sizeof *stage_keys; i++)
        if (!strcmp(key, stage_keys[i]))
            return true;
    return false;
}

/* The value node of a key, 0 where it is not given; a key given twice is refused. */
static int find_key(const bw_yaml *yaml, int mapping, const char *key, int *value)
{
    *value = 0;
    for (int i = 0; i < bw_yaml_count(yaml, mapping); i++) {
        int node = bw_yaml_key(yaml, mapping, i);
        const char *text = bw_yaml_text(yaml, node);
        if (!text || strcmp(text, key))
            continue;
        if (*value)
            return bw_fail(BW_USAGE, "%s:%d: %s: is given twice", bw_yaml_name(yaml), bw_yaml_line(yaml, node), key);
        *value = bw_yaml_value(yaml, mapping, i);
    }
    return BW_OK;
}

static int stage_error(const loader *loader, int node, const char *what, const char *found)
{
    return bw_fail(BW_USAGE, "%s:%d: %s%s%s%s", bw_yaml_name(loader->yaml), bw_yaml_line(loader->yaml, node), what, found ? " '" : "",
                   found ? found : "", found ? "'" : "");
}

/* A name is a folder's name. */
static bool is_name(const char *name)
{
    return *name && *name != '.' && *name != '-' && strlen(name) <= NAME_AT_MOST &&
           !name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")];
}

static int read_name(loader *loader, int mapping)
{
    int node;
    BW_TRY(find_key(loader->yaml, mapping, "name", &node));
    const char *name = node ? bw_yaml_text(loader->yaml, node) : NULL;
    if (!name)
        return stage_error(loader, node ? node : mapping, "the stage needs a name", NULL);
    if (!is_name(name))
        return stage_error(loader, node, "a stage's name is made of letters, digits, '-', '_' and '.', not", name);
    for (const bw_stage *other = loader->pipeline->stages; other < loader->stage; other++)
        if (!strcmp(other->name, name))
            return stage_error(loader, node, "there is an earlier stage of the name", name);
    return bw_string_copy(&loader->stage->name, name);
}

static int read_command(loader *loader, int mapping)
{
    int node;
    BW_TRY(find_key(loader->yaml, mapping, "command", &node));
    const char *text = node ? bw_yaml_text(loader->yaml, node) : NULL;
    for (size_t i = 0; text && i < sizeof stage_commands / sizeof *stage_commands; i++)
        if (!strcmp(text, bw_command_name(stage_commands[i])))
            loader->stage->command = stage_commands[i];
    if (!loader->stage->command)
        return stage_error(loader, node ? node : mapping, "the stage needs a command, one of: train merge eval; found", text ? text : "none");
    return BW_OK;
}

static int read_label(loader *loader, int mapping)
{
    int node;
    BW_TRY(find_key(loader->yaml, mapping, "label", &node));
    const char *text = node ? bw_yaml_text(loader->yaml, node) : NULL;
    if (node && !text)
        return stage_error(loader, node, "a label is a text", NULL);
    return bw_string_copy(&loader->stage->label, text);
}

/* What flows from stage to stage is the pipeline itself, not a setting: an option on the command line does not replace it. */
static bool is_reference(const loader *loader, const bw_option *option)
{
    for (int i = 0; i < loader->n_references; i++)
        if (loader->references[i] == option)
            return true;
    return false;
}

static void note_reference(loader *loader, const bw_option *option, int value)
{
    const char *text = bw_yaml_text(loader->yaml, value);
    if (text && text[0] == '@' && loader->n_references < REFERENCES_AT_MOST)
        loader->references[loader->n_references++] = option;
}

/* The options of a mapping, as far as the stage's command takes them. In a stage every key must be known. */
static int read_options(loader *loader, int mapping, bool own)
{
    const bw_yaml *yaml = loader->yaml;
    bw_stage *stage = loader->stage;
    bw_resolver resolver = {resolve_reference, loader};
    bw_text where = {0};
    int status = BW_OK, before;
    for (int i = 0; i < bw_yaml_count(yaml, mapping); i++) {
        int key_node = bw_yaml_key(yaml, mapping, i);
        BW_GO(bw_yaml_where(yaml, key_node, &where));
        const char *key = bw_yaml_text(yaml, key_node);
        if (own && is_stage_key(key))
            continue;
        if (own && !strcmp(key, "output"))
            BW_GO(bw_fail(BW_USAGE, "%s: belongs at the top of the file; a stage writes to <output>/<name>", where.data));
        const bw_option *option = bw_option_find(stage->command, key);
        if (own && (!option || !bw_option_is_echoed(option)))
            BW_GO(bw_option_unknown(stage->command, key, where.data));
        if (!option)
            continue;
        BW_GO(find_key(yaml, mapping, key, &before)); /* refuses a second one */
        if (own)
            note_reference(loader, option, bw_yaml_value(yaml, mapping, i));
        BW_GO(bw_option_assign_node(&stage->config, option, yaml, bw_yaml_value(yaml, mapping, i), where.data, &resolver));
        bw_input_note(stage, option, bw_yaml_line(yaml, key_node));
    }
done:
    bw_text_free(&where);
    return status;
}

static int override_stage(void *context, const bw_option *option, const char *value, const char *where, bool first)
{
    loader *loader = context;
    if (!bw_option_taken(option, loader->stage->command) || is_reference(loader, option))
        return BW_OK;
    if (first && option->kind == BW_KIND_PATHS)
        bw_option_clear(&loader->stage->config, option);
    bw_input_note(loader->stage, option, 0);
    return bw_option_assign(&loader->stage->config, option, value, where, &(bw_resolver){resolve_reference, loader});
}

static int set_output(bw_pipeline *pipeline, bw_stage *stage)
{
    bw_text folder = {0};
    int status = bw_path(&folder, pipeline->common.output, stage->name);
    bw_free(stage->config.output);
    stage->config.output = NULL;
    if (status == BW_OK)
        status = bw_string_copy(&stage->config.output, folder.data);
    bw_text_free(&folder);
    return status;
}

static int load_stage(loader *loader, int mapping, int argc, char **argv)
{
    if (bw_yaml_kind_of(loader->yaml, mapping) != BW_YAML_MAPPING)
        return stage_error(loader, mapping, "a stage is a mapping with name, command and options", NULL);
    bw_config_init(&loader->stage->config);
    loader->pipeline->count++; /* from here on bw_pipeline_free() sees it */
    loader->n_references = 0;
    BW_TRY(read_name(loader, mapping));
    BW_TRY(read_command(loader, mapping));
    BW_TRY(read_label(loader, mapping));
    BW_TRY(read_options(loader, bw_yaml_root(loader->yaml), false));
    BW_TRY(read_options(loader, mapping, true));
    BW_TRY(bw_arguments_visit(BW_RUN, argc, argv, override_stage, loader));
    BW_TRY(set_output(loader->pipeline, loader->stage));
    int status = bw_config_check(&loader->stage->config, loader->stage->command);
    if (status == BW_OK)
        return BW_OK;
    bw_text reason = {0}; /* say which stage lacks it */
    int added = bw_text_addf(&reason, "%s", bw_error());
    bw_error_clear();
    status = added != BW_OK ? added
                            : bw_fail(status, "%s:%d: stage '%s': %s", bw_yaml_name(loader->yaml), bw_yaml_line(loader->yaml, mapping),
                                      loader->stage->name, reason.data);
    bw_text_free(&reason);
    return status;
}

/* ---- the file ------------------------------------------------------------------------------------------------------- */

static int override_common(void *context, const bw_option *option, const char *value, const char *where, bool first)
{
    if (first && option->kind == BW_KIND_PATHS)
        bw_option_clear(context, option);
    return bw_option_assign(context, option, value, where, NULL);
}

/* Top-level keys: checked here once, then applied to each stage that takes them. */
static int read_common(loader *loader, int root)
{
    bw_text where = {0};
    int status = BW_OK, before;
    for (int i = 0; i < bw_yaml_count(loader->yaml, root); i++) {
        int key = bw_yaml_key(loader->yaml, root, i);
        BW_GO(bw_yaml_where(loader->yaml, key, &where));
        BW_GO(find_key(loader->yaml, root, bw_yaml_text(loader->yaml, key), &before));
        if (!strcmp(bw_yaml_text(loader->yaml, key), "stages"))
            continue;
        const bw_option *option = bw_option_find(BW_RUN, bw_yaml_text(loader->yaml, key));
        if (!option || option->offset == offsetof(bw_config, input))
            BW_GO(bw_option_unknown(BW_RUN, bw_yaml_text(loader->yaml, key), where.data));
        BW_GO(bw_option_assign_node(&loader->pipeline->common, option, loader->yaml, bw_yaml_value(loader->yaml, root, i), where.data, NULL));
    }
done:
    bw_text_free(&where);
    return status;
}

bool bw_stage_needs(const bw_stage *stage, int index)
{
    return stage->needs[index / 64] >> (index % 64) & 1;
}

static bool needs_any(const bw_pipeline *pipeline, int index, const bool *these)
{
    for (int i = 0; i < index; i++)
        if (these[i] && bw_stage_needs(&pipeline->stages[index], i))
            return true;
    return false;
}

/* Who starts one stage over has to do so with all that was made from it. */
static int say_how_to_redo(bw_pipeline *pipeline, int index)
{
    bool follows[BW_MAX_STAGES] = {false};
    bw_text text = {0};
    int status = bw_text_addf(&text, "--only %s", pipeline->stages[index].name);
    follows[index] = true;
    for (int i = index + 1; i < pipeline->count && status == BW_OK; i++)
        if ((follows[i] = needs_any(pipeline, i, follows)) && text.length < REDO_AT_MOST)
            status = bw_text_addf(&text, ",%s", text.length + NAME_AT_MOST < REDO_AT_MOST ? pipeline->stages[i].name : "...");
    if (status == BW_OK)
        status = bw_text_addf(&text, " --resume never");
    if (status == BW_OK)
        status = bw_string_copy(&pipeline->stages[index].redo, text.data);
    pipeline->stages[index].config.redo = pipeline->stages[index].redo;
    bw_text_free(&text);
    return status;
}

static int load_stages(loader *loader, int list, int argc, char **argv)
{
    int count = bw_yaml_kind_of(loader->yaml, list) == BW_YAML_LIST ? bw_yaml_count(loader->yaml, list) : 0;
    if (count < 1 || count > BW_MAX_STAGES)
        return bw_fail(BW_USAGE, "%s:%d: 'stages:' must be a list of 1 to %d stages", bw_yaml_name(loader->yaml), bw_yaml_line(loader->yaml, list),
                       BW_MAX_STAGES);
    BW_TRY(BW_NEW(loader->pipeline->stages, count, "configuration"));
    for (int i = 0; i < count; i++) {
        loader->stage = &loader->pipeline->stages[i];
        BW_TRY(load_stage(loader, bw_yaml_item(loader->yaml, list, i), argc, argv));
    }
    for (int i = 0; i < count; i++)
        BW_TRY(say_how_to_redo(loader->pipeline, i));
    return BW_OK;
}

static int load_document(loader *loader, int argc, char **argv)
{
    int root = bw_yaml_root(loader->yaml), list;
    if (bw_yaml_kind_of(loader->yaml, root) != BW_YAML_MAPPING)
        return bw_fail(BW_USAGE, "%s: holds no pipeline (a mapping with 'stages:')", bw_yaml_name(loader->yaml));
    BW_TRY(read_common(loader, root));
    BW_TRY(bw_arguments_visit(BW_RUN, argc, argv, override_common, &loader->pipeline->common));
    if (!loader->pipeline->common.output)
        return bw_fail(BW_USAGE, "%s: needs 'output: DIR' (or --output DIR), the folder of all stages", bw_yaml_name(loader->yaml));
    BW_TRY(find_key(loader->yaml, root, "stages", &list));
    return load_stages(loader, list, argc, argv);
}

int bw_pipeline_load(bw_pipeline *pipeline, const char *path, int argc, char **argv)
{
    *pipeline = (bw_pipeline){0};
    bw_yaml *yaml;
    BW_TRY(bw_yaml_open(&yaml, path));
    bw_config_init(&pipeline->common);
    loader loader = {.yaml = yaml, .pipeline = pipeline};
    int status = bw_string_copy(&pipeline->file, bw_yaml_name(yaml));
    if (status == BW_OK)
        status = load_document(&loader, argc, argv);
    bw_yaml_close(&yaml);
    if (status != BW_OK)
        bw_pipeline_free(pipeline);
    return status;
}

void bw_pipeline_free(bw_pipeline *pipeline)
{
    for (int i = 0; i < pipeline->count; i++) {
        bw_free(pipeline->stages[i].name);
        bw_free(pipeline->stages[i].label);
        bw_free(pipeline->stages[i].redo);
        bw_config_free(&pipeline->stages[i].config);
    }
    bw_free(pipeline->stages);
    bw_free(pipeline->file);
    bw_config_free(&pipeline->common);
    *pipeline = (bw_pipeline){0};
}

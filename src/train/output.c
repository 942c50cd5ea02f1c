/* train/output.c - a stage's output folder. */
#include "output.h"
#include "breakwater/data.h"
#include "breakwater/io.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int bw_output_create(bw_output *output, const char *folder)
{
    *output = (bw_output){.folder = folder};
    BW_TRY(bw_path(&output->adapter, folder, "adapter"));
    BW_TRY(bw_path(&output->checkpoints, folder, "checkpoints"));
    BW_TRY(bw_path(&output->metrics, folder, "metrics.jsonl"));
    BW_TRY(bw_path(&output->settings, folder, "config.yaml"));
    BW_TRY(bw_path(&output->report, folder, "report.txt"));
    return bw_path(&output->timeline, folder, "timeline.csv");
}

void bw_output_free(bw_output *output)
{
    bw_text *texts[] = {&output->adapter, &output->checkpoints, &output->metrics, &output->settings, &output->report, &output->timeline};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        bw_text_free(texts[i]);
    if (output->log)
        fclose(output->log);
    output->log = NULL;
}

/* ---- which options make a run what it is ------------------------------------------------------------------------------ */

/* Files are not here: the model, the data and the buffer are known by their fingerprints, wherever they lie. */
static const char *const arithmetic[] = {
    "stage",        "epochs", "steps",      "batch",        "lr",      "schedule",   "warmup",   "weight-decay", "max-grad-norm", "beta1", "beta2",
    "adam-epsilon", "lora-r", "lora-alpha", "lora-dropout", "targets", "max-length", "template", "seed",         "precision",     "store", NULL,
};

static bool is_arithmetic(const char *name)
{
    for (int i = 0; arithmetic[i]; i++)
        if (strcmp(arithmetic[i], name) == 0)
            return true;
    return false;
}

bw_hash bw_output_config_hash(const bw_config *config)
{
    bw_hash hash = bw_hash_bytes("breakwater", 10);
    const char *name;
    bw_text value = {0};
    for (int i = 0; bw_config_entry(config, BW_TRAIN, i, &name, &value); i++) {
        if (is_arithmetic(name))
            hash = bw_hash_join(bw_hash_join(hash, bw_hash_bytes(name, strlen(name))), bw_hash_bytes(value.data, value.length));
        bw_text_free(&value);
    }
    bw_text_free(&value);
    return hash;
}

static int compare(const bw_output *output, const bw_config *here, const bw_config *there)
{
    const char *name, *same_name;
    bw_text mine = {0}, theirs = {0};
    int status = BW_OK;
    for (int i = 0; status == BW_OK && bw_config_entry(here, BW_TRAIN, i, &name, &mine); i++) {
        bw_config_entry(there, BW_TRAIN, i, &same_name, &theirs);
        if (is_arithmetic(name) && strcmp(mine.data ? mine.data : "", theirs.data ? theirs.data : "") != 0)
            status = bw_fail(BW_CANTCREATE,
                             "%s belongs to another run: its config.yaml has %s: %s, this run %s; choose another --output, or %s to start over",
                             output->folder, name, theirs.data ? theirs.data : "", mine.data ? mine.data : "", here->redo);
        bw_text_free(&mine);
        bw_text_free(&theirs);
    }
    return status;
}

/* A run that died before its first checkpoint goes on with the micro-batches of its first start, on however many ranks now. */
static int adopt_micro_batches(const bw_output *output, const bw_config *here, const bw_config *there, int64_t *micro_batches)
{
    if (there->micro_batches > 0 && here->micro_batches > 0 && there->micro_batches != here->micro_batches)
        return bw_fail(BW_CANTCREATE,
                       "%s: its config.yaml cuts a step into %lld micro-batches, --micro-batches says %lld; leave the option out to go on, or "
                       "%s to start over",
                       output->folder, (long long)there->micro_batches, (long long)here->micro_batches, here->redo);
    if (there->micro_batches > 0)
        *micro_batches = there->micro_batches;
    return BW_OK;
}

static int compare_settings(const bw_output *output, const bw_config *config, int64_t *micro_batches)
{
    bw_config there;
    bw_config_init(&there);
    char *arguments[] = {"train", "--config", output->settings.data, NULL};
    int status = bw_config_parse(&there, BW_TRAIN, 3, arguments);
    if (status == BW_OK)
        status = compare(output, config, &there);
    if (status == BW_OK)
        status = adopt_micro_batches(output, config, &there, micro_batches);
    bw_config_free(&there);
    return status;
}

int bw_output_claim(const bw_output *output, const bw_config *config, int64_t *micro_batches)
{
    static const char *const written[] = {"adapter", "checkpoints", "metrics.jsonl", "report.txt", "timeline.csv", NULL};
    BW_TRY(bw_dir_make(output->folder));
    BW_TRY(bw_folder_check(output->folder, written));
    bool start_over = strcmp(config->resume, "never") == 0, known = bw_file_exists(output->settings.data);
    if (known)
        BW_TRY(start_over ? bw_config_made_by(output->folder, BW_TRAIN) : compare_settings(output, config, micro_batches));
    BW_TRY(bw_folder_sweep(output->folder, written));
    BW_TRY(bw_checkpoint_sweep(output->checkpoints.data, false));
    if (known && !start_over)
        return BW_OK;
    bw_config resolved = *config; /* borrows its texts */
    resolved.micro_batches = *micro_batches;
    bw_text yaml = {0};
    int status = bw_config_yaml(&resolved, BW_TRAIN, &yaml);
    if (status == BW_OK)
        status = bw_file_write(output->settings.data, yaml.data, yaml.length, 0644);
    bw_text_free(&yaml);
    return status;
}

/* ---- is it done? ------------------------------------------------------------------------------------------------------ */

static int same_as(const bw_output *output, const bw_config *config, const bw_tensors *file, const char *key, bw_hash expected)
{
    char text[33];
    bw_hash_text(expected, text);
    const char *found = bw_safetensors_metadata(file, key);
    if (found && strcmp(found, text) == 0)
        return BW_OK;
    return bw_fail(BW_CANTCREATE,
                   "%s holds the finished adapter of another run (%s: %s there, %s here); choose another --output, or %s to replace it",
                   output->folder, key, found ? found : "not recorded", text, config->redo);
}

int bw_output_finished(const bw_output *output, const bw_config *config, const bw_state *state, bool *finished)
{
    *finished = false;
    bw_text path = {0};
    bw_tensors *file = NULL;
    int status = bw_path(&path, output->adapter.data, "adapter_model.safetensors");
    if (status != BW_OK || !bw_file_exists(path.data))
        goto done;
    BW_GO(bw_safetensors_open(&file, path.data));
    BW_GO(same_as(output, config, file, "breakwater.model", state->model));
    BW_GO(same_as(output, config, file, "breakwater.data", state->data));
    BW_GO(same_as(output, config, file, "breakwater.buffer", state->buffer));
    BW_GO(same_as(output, config, file, "breakwater.config", state->config));
    *finished = true;
done:
    bw_tensors_close(file);
    bw_text_free(&path);
    return status;
}

/* The fingerprints that a run of this configuration would have. */
static int fingerprints(const bw_config *config, const bw_source *source, int32_t vocab, bw_state *state)
{
    const bw_spec *spec = bw_source_spec(source);
    bw_template which;
    *state = (bw_state){.model = bw_source_fingerprint(source), .config = bw_output_config_hash(config)};
    BW_TRY(bw_template_find(config->template_name, &which));
    BW_TRY(bw_dataset_fingerprint(&state->data, vocab, &config->data, which, config->max_length));
    if (config->buffer)
        BW_TRY(bw_peft_fingerprint(&state->buffer, spec, config->buffer));
    if (config->init_adapter) {
        bw_hash first;
        BW_TRY(bw_peft_fingerprint(&first, spec, config->init_adapter));
        state->config = bw_hash_join(state->config, first);
    }
    return BW_OK;
}

int bw_train_compare(const bw_config *config, const bw_source *source, int32_t vocab)
{
    bw_output output = {0};
    bw_state state;
    int64_t micro_batches = config->micro_batches;
    bool finished;
    int status = bw_output_create(&output, config->output);
    if (status == BW_OK && bw_file_exists(output.settings.data))
        status = compare_settings(&output, config, &micro_batches);
    if (status == BW_OK)
        status = fingerprints(config, source, vocab, &state);
    if (status == BW_OK)
        status = bw_output_finished(&output, config, &state, &finished);
    bw_output_free(&output);
    return status;
}

/* ---- metrics ----------------------------------------------------------------------------------------------------------- */

static int64_t step_of(const char *line, size_t length)
{
    bw_json *root = NULL;
    int64_t step = INT64_MAX; /* a line cut short by a kill is not kept */
    if (bw_json_parse(&root, line, length, "metrics.jsonl") == BW_OK)
        step = bw_json_int(bw_json_get(root, "step"), INT64_MAX);
    bw_error_clear();
    bw_json_free(root);
    return step;
}

/* Bytes of the lines up to `step`. */
static size_t keep_until(const bw_map *map, int64_t step)
{
    size_t kept = 0;
    while (kept < map->size) {
        const uint8_t *end = memchr(map->data + kept, '\n', map->size - kept);
        if (!end || step_of((const char *)map->data + kept, (size_t)(end - map->data) - kept) > step)
            break;
        kept = (size_t)(end - map->data) + 1;
    }
    return kept;
}

int bw_output_log_open(bw_output *output, int64_t step)
{
    if (bw_file_exists(output->metrics.data)) {
        bw_map map;
        BW_TRY(bw_map_open(&map, output->metrics.data));
        size_t kept = keep_until(&map, step);
        int status = kept == map.size ? BW_OK : bw_file_write(output->metrics.data, map.data, kept, 0644);
        bw_map_close(&map);
        BW_TRY(status);
    }
    output->log = fopen(output->metrics.data, "a");
    return output->log ? BW_OK : bw_fail(bw_create_status(errno), "%s: cannot open for appending: %m", output->metrics.data);
}

/* Without its weights the adapter is no finished one: what is killed from here on must not be taken for done, nor for another run's. */
int bw_output_start_over(const bw_output *output)
{
    bw_text weights = {0};
    int status = bw_path(&weights, output->adapter.data, "adapter_model.safetensors");
    if (status == BW_OK && unlink(weights.data) != 0 && errno != ENOENT && errno != ENOTDIR)
        status = bw_fail(BW_CANTCREATE, "%s: cannot delete: %m", weights.data);
    bw_text_free(&weights);
    return status == BW_OK ? bw_checkpoint_sweep(output->checkpoints.data, true) : status;
}

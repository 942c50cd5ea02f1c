#include "cmd/subject.h"
#include <string.h>
#include <sys/stat.h>

static bool has_file(const char *folder, const char *name)
{
    bw_text path = {0};
    bool there = bw_path(&path, folder, name) == BW_OK && bw_file_exists(path.data);
    bw_text_free(&path);
    return there;
}

static bool ends_with(const char *path, const char *end)
{
    size_t length = strlen(path), tail = strlen(end);
    return length >= tail && !strcmp(path + length - tail, end);
}

static bool begins_with(const char *path, const char *magic, size_t length)
{
    bw_map map;
    if (bw_map_open(&map, path) != BW_OK) {
        bw_error_clear();
        return false;
    }
    bool same = map.size >= length && !memcmp(map.data, magic, length);
    bw_map_close(&map);
    return same;
}

static int open_adapter(bw_subject *subject)
{
    subject->kind = "adapter";
    bw_text file = {0};
    int status = bw_path(&file, subject->path, "adapter_model.safetensors");
    if (status == BW_OK && !bw_file_exists(file.data) && has_file(subject->path, "adapter_model.bin"))
        status = bw_fail(BW_DATA, "%s: holds adapter_model.bin, a pickle, which can run code: save it as safetensors", subject->path);
    if (status == BW_OK)
        status = bw_safetensors_open(&subject->tensors, file.data);
    if (status == BW_OK)
        status = bw_peft_role(subject->path, subject->role);
    bw_text_free(&file);
    return status;
}

/* The output folder of a command, where what it made is meant. */
static int refuse_output(const char *path)
{
    if (has_file(path, "adapter/adapter_config.json"))
        return bw_fail(BW_DATA, "%s: the output folder of a command; did you mean %s/adapter?", path, path);
    if (has_file(path, "summary.json"))
        return bw_fail(BW_DATA, "%s: an evaluation: its figures are in %s/summary.json, its answers in %s/answers.jsonl", path, path, path);
    return bw_fail(BW_DATA, "%s: the output folder of a command; it holds no model and no adapter, or none yet", path);
}

static int open_folder(bw_subject *subject)
{
    if (has_file(subject->path, "adapter_config.json"))
        return open_adapter(subject);
    if (!has_file(subject->path, "config.json") && has_file(subject->path, "config.yaml"))
        return refuse_output(subject->path);
    if (!has_file(subject->path, "config.json"))
        return bw_fail(BW_DATA, "%s: a folder with neither config.json (a model) nor adapter_config.json (an adapter)", subject->path);
    subject->kind = "model";
    BW_TRY(bw_source_open(&subject->source, subject->path));
    return bw_safetensors_open_model(&subject->tensors, subject->path);
}

static int open_file(bw_subject *subject)
{
    const char *path = subject->path;
    if (begins_with(path, "GGUF", 4)) {
        subject->kind = "model";
        BW_TRY(bw_source_open(&subject->source, path));
        return bw_gguf_open(&subject->tensors, path);
    }
    if (begins_with(path, "\x89HDF\r\n\x1a\n", 8))
        return bw_fail(BW_USAGE, "%s: an HDF5 file, such as a checkpoint: 'h5dump -A FILE' shows it, and train checks it when it goes on", path);
    if (ends_with(path, ".safetensors")) {
        subject->kind = "safetensors file";
        return bw_safetensors_open(&subject->tensors, path);
    }
    if (ends_with(path, ".yaml") || ends_with(path, ".yml"))
        return bw_fail(BW_USAGE, "%s: settings, which are text; of a pipeline 'breakwater run FILE --show stages' tells the stages", path);
    subject->kind = "data file";
    return bw_rows_load(&subject->rows, path, false, false);
}

int bw_subject_open(bw_subject *subject, const char *path)
{
    *subject = (bw_subject){.path = path};
    struct stat info;
    if (stat(path, &info) != 0)
        return bw_fail(BW_NOINPUT, "%s: there is no such file or folder", path);
    int status = S_ISDIR(info.st_mode) ? open_folder(subject) : open_file(subject);
    if (status != BW_OK)
        bw_subject_close(subject);
    return status;
}

void bw_subject_close(bw_subject *subject)
{
    bw_source_close(subject->source);
    bw_tensors_close(subject->tensors);
    bw_rows_free(&subject->rows);
    *subject = (bw_subject){0};
}

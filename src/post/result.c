/* An output folder says which settings made it, so that the same command again is done at once and another one is refused. */
#include "post/inside.h"
#include <string.h>

/* Settings that do not change what is written: where things lie (fingerprints speak for their content) and the machine's shape. */
static const char *const free_to_change[] = {
    "model",        "user",   "reinforce", "adapter",  "harmful",        "task",    "data",    "output", "config",
    "config-file",  "grid",   "block",     "replicas", "ranks-per-node", "weights", "threads", "quiet",  "input",
    "allow-buffer", "buffer", "recompute", "resume",   "time-limit",     "max-hs",  "min-fa",
};

bw_fact bw_fact_of(const char *name, bw_hash hash)
{
    bw_fact fact = {.name = name};
    bw_hash_text(hash, fact.value);
    return fact;
}

int bw_result_settings(const bw_config *config, bw_command command, const bw_fact *facts, int count, bw_text *out)
{
    for (int i = 0; i < count; ++i)
        BW_TRY(bw_text_addf(out, "# %s %s\n", facts[i].name, facts[i].value));
    return bw_config_yaml(config, command, out);
}

/* ---- comparing two settings, line by line -------------------------------------------------------------------------- */
static bool key_is(const char *line, size_t length, const char *key)
{
    size_t n = strlen(key);
    if (length < n)
        return false;
    for (size_t i = 0; i < n; ++i)
        if (line[i] != key[i] && !(line[i] == '_' && key[i] == '-'))
            return false;
    return length == n || line[n] == ':';
}

static bool matters(const char *line, size_t length)
{
    for (size_t i = 0; i < sizeof free_to_change / sizeof *free_to_change; ++i)
        if (key_is(line, length, free_to_change[i]))
            return false;
    return length > 0;
}

/* The next line that matters; lines that continue a key (a list's items) share that key's fate. Length 0 at the end. */
static const char *next_line(const char **cursor, size_t *length)
{
    static const char end[] = "";
    bool skipping = false;
    while (**cursor) {
        const char *line = *cursor;
        *length = strcspn(line, "\n");
        *cursor = line + *length + (line[*length] == '\n');
        bool continues = *line == ' ' || *line == '-';
        skipping = continues ? skipping : !matters(line, *length);
        if (!skipping)
            return line;
    }
    *length = 0;
    return end;
}

static int compare(const bw_result *result, const char *old, const char *new)
{
    size_t n, m;
    do {
        const char *a = next_line(&old, &n), *b = next_line(&new, &m);
        if (n != m || memcmp(a, b, n) != 0)
            return bw_fail(BW_CANTCREATE,
                           "%s: this folder holds results of other settings: '%.*s' there, '%.*s' now; name another --output, or %s to start over",
                           result->folder, n ? (int)n : 7, n ? a : "nothing", m ? (int)m : 7, m ? b : "nothing", result->redo);
    } while (n > 0);
    return BW_OK;
}

/* ---- looking ------------------------------------------------------------------------------------------------------- */
int bw_result_compare(const bw_result *result, const char *text)
{
    bw_text path = {0}, old = {0};
    bw_map map = {0};
    int status;
    BW_GO(bw_path(&path, result->folder, "config.yaml"));
    BW_GO(bw_map_open(&map, path.data));
    BW_GO(bw_text_add(&old, map.data, map.size));
    status = compare(result, old.length ? old.data : "", text);
done:
    bw_map_close(&map);
    bw_text_free(&old);
    bw_text_free(&path);
    return status;
}

/* goes_on: an interrupted job of the same settings was here. */
static int look(const bw_result *result, const char *text, bool start_over, bool *done, bool *goes_on)
{
    bw_text settings = {0}, last = {0};
    int status;
    BW_GO(bw_folder_check(result->folder, result->names));
    BW_GO(bw_path(&settings, result->folder, "config.yaml"));
    BW_GO(bw_path(&last, result->folder, result->names[0]));
    *goes_on = !start_over && bw_file_exists(settings.data);
    if (bw_file_exists(settings.data))
        BW_GO(start_over ? bw_config_made_by(result->folder, result->command) : bw_result_compare(result, text));
    *done = !start_over && bw_file_exists(last.data);
done:
    bw_text_free(&settings);
    bw_text_free(&last);
    return status;
}

/* Settings go first, so that an interrupted job is known for what it is. */
static int claim(const bw_result *result, const char *text, bool goes_on)
{
    const char *const kept[] = {result->kept, NULL};
    bw_text path = {0};
    int status;
    BW_GO(bw_dir_make(result->folder));
    BW_GO(bw_folder_remove(result->folder, result->names));
    if (!goes_on)
        BW_GO(bw_folder_remove(result->folder, kept));
    BW_GO(bw_path(&path, result->folder, "config.yaml"));
    BW_GO(bw_file_write(path.data, text, strlen(text), 0644));
done:
    bw_text_free(&path);
    return status;
}

int bw_result_claim(const bw_grid *grid, const bw_result *result, const char *text, bool start_over, bool *done)
{
    bool finished = false, goes_on = false;
    int status = BW_OK;
    if (grid->rank == 0) {
        status = look(result, text, start_over, &finished, &goes_on);
        if (status == BW_OK && !finished)
            status = claim(result, text, goes_on);
    }
    BW_TRY(bw_agree(grid, status));
    BW_TRY(bw_broadcast(grid, &finished, sizeof finished));
    *done = finished;
    return BW_OK;
}

int bw_result_write(const bw_result *result, const char *name, const bw_text *text, unsigned mode)
{
    bw_text path = {0};
    int status = bw_path(&path, result->folder, name);
    if (status == BW_OK)
        status = bw_file_write(path.data, text->data ? text->data : "", text->length, mode);
    bw_text_free(&path);
    return status;
}

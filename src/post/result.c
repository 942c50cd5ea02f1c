/* An output folder says which settings made it, so that the same command again is done at once and another one is refused. */
#include "post/inside.h"
#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <string.h>

/* Settings that do not change what is written: where things lie (fingerprints speak for their content) and the machine's shape. */
static const char *const free_to_change[] = {
    "model", "user",     "reinforce",      "adapter", "harmful", "task",  "data",  "output",       "config", "config-file", "grid",
    "block", "replicas", "ranks-per-node", "weights", "threads", "quiet", "input", "allow-buffer", "buffer", "recompute",   "resume",
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

static int compare(const char *folder, const char *old, const char *new)
{
    size_t n, m;
    do {
        const char *a = next_line(&old, &n), *b = next_line(&new, &m);
        if (n != m || memcmp(a, b, n) != 0)
            return bw_fail(BW_CANTCREATE,
                           "%s: this folder holds results of other settings: '%.*s' there, '%.*s' now; name another --output, or remove the folder",
                           folder, n ? (int)n : 7, n ? a : "nothing", m ? (int)m : 7, m ? b : "nothing");
    } while (n > 0);
    return BW_OK;
}

/* ---- looking ------------------------------------------------------------------------------------------------------- */
static int folder_is_empty(const char *folder, bool *empty)
{
    *empty = true;
    DIR *directory = opendir(folder);
    if (!directory)
        return errno == ENOENT ? BW_OK : bw_fail(BW_CANTCREATE, "%s: cannot be used as an output folder: %s", folder, strerror(errno));
    for (struct dirent *item = readdir(directory); item; item = readdir(directory))
        *empty = *empty && (strcmp(item->d_name, ".") == 0 || strcmp(item->d_name, "..") == 0);
    closedir(directory);
    return BW_OK;
}

static int compare_with_file(const char *folder, const char *path, const char *text)
{
    bw_map map;
    bw_text old = {0};
    BW_TRY(bw_map_open(&map, path));
    int status = bw_text_add(&old, map.data, map.size);
    if (status == BW_OK)
        status = compare(folder, old.length ? old.data : "", text);
    bw_text_free(&old);
    bw_map_close(&map);
    return status;
}

static int look(const char *folder, const char *marker, bool start_over, const char *text, bw_result_state *state)
{
    bw_text settings = {0}, last = {0};
    bool empty = true;
    int status;
    *state = BW_RESULT_FRESH;
    BW_GO(folder_is_empty(folder, &empty));
    if (empty)
        goto done;
    BW_GO(bw_path(&settings, folder, "config.yaml"));
    BW_GO(bw_path(&last, folder, marker));
    if (start_over && bw_file_exists(settings.data) && bw_file_exists(last.data)) {
        status = bw_result_remove(folder);
        goto done;
    }
    if (!bw_file_exists(settings.data))
        status = bw_fail(BW_CANTCREATE,
                         "%s: this folder is not empty and was not made by this command (it has no config.yaml); name another --output", folder);
    else
        status = compare_with_file(folder, settings.data, text);
    if (status == BW_OK && bw_file_exists(last.data))
        *state = BW_RESULT_DONE;
done:
    bw_text_free(&settings);
    bw_text_free(&last);
    return status;
}

int bw_result_check(const bw_grid *grid, const char *folder, const char *marker, bool start_over, const char *text, bw_result_state *state)
{
    int64_t found = BW_RESULT_FRESH;
    int status = grid->rank == 0 ? look(folder, marker, start_over, text, state) : BW_OK;
    BW_TRY(bw_agree(grid, status));
    if (grid->rank == 0)
        found = *state;
    BW_TRY(bw_broadcast(grid, &found, sizeof found));
    *state = (bw_result_state)found;
    return BW_OK;
}

/* ---- folders -------------------------------------------------------------------------------------------------------- */
static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

int bw_result_remove(const char *folder)
{
    if (nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT)
        return bw_fail(BW_CANTCREATE, "%s: what an interrupted run left cannot be removed: %s", folder, strerror(errno));
    return BW_OK;
}

int bw_result_publish(const char *temporary, const char *folder)
{
    return bw_file_publish(temporary, folder); /* rename(2) takes an empty folder's place, and no other's */
}

int bw_refuse_buffer(const char *folder, const char *option, bool allow)
{
    char role[16];
    BW_TRY(bw_peft_role(folder, role));
    if (strcmp(role, "buffer") != 0 || allow)
        return BW_OK;
    return bw_fail(BW_USAGE,
                   "%s %s: this is a BufferLoRA, which makes a model harmful and is meant to be dropped after training; name the adapter that was "
                   "trained on it, or add --allow-buffer if this is what you want",
                   option, folder);
}

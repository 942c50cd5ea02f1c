/* train/checkpoint.c - a training state as one HDF5 file: datasets in global shape, so that any grid reads any checkpoint.
 *
 *   /                attributes: format, version, step, micro_batches, exponents, model, data, buffer, config (fingerprints),
 *                    settings (the configuration as YAML), program, complete
 *   /lora/LLL/TARGET/A, B              factors, fp32, r x in and out x r
 *   /adam/LLL/TARGET/A_m, A_v, B_m, B_v  moments
 * Every dataset carries its checksum (io/h5.c), its name included: nothing is damaged unseen, and none stands in another's place. */
#include "breakwater/train.h"
#include "breakwater/h5.h"
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* MOST_STEPS: dropout keys hold a step in 32 bits. MOST_MICRO_BATCHES: as --micro-batches. */
enum { FORMAT_VERSION = 2, MOST_EXPONENT = 1023, MOST_STEPS = 2147483647, MOST_MICRO_BATCHES = 65536 };

/* ---- datasets of a pair ---------------------------------------------------------------------------------------------- */
typedef struct dataset {
    char name[96];
    bw_matrix *matrix;
} dataset;
enum { DATASETS = 6 };

/* tensor: index of the pair's A; its moments follow the order of bw_state.moments. */
static void datasets_of(const bw_state *state, int layer, bw_target target, int tensor, dataset out[DATASETS])
{
    bw_pair *pair = bw_adapter_pair(state->adapter, layer, target);
    static const struct {
        const char *root, *leaf;
        int tensor, moment;
    } table[DATASETS] = {
        {"lora", "A", 0, -1}, {"lora", "B", 1, -1}, {"adam", "A_m", 0, 0}, {"adam", "A_v", 0, 1}, {"adam", "B_m", 1, 0}, {"adam", "B_v", 1, 1},
    };
    for (int i = 0; i < DATASETS; i++) {
        snprintf(out[i].name, sizeof out[i].name, "/%s/%03d/%s/%s", table[i].root, layer, bw_target_name(target), table[i].leaf);
        out[i].matrix =
            table[i].moment < 0 ? (table[i].tensor ? &pair->B : &pair->A) : &state->moments[2 * (tensor + table[i].tensor) + table[i].moment];
    }
}

typedef int (*pair_action)(void *context, int layer, bw_target target, int tensor);

static int for_each_pair(const bw_state *state, pair_action action, void *context)
{
    int tensor = 0;
    for (int layer = 0; layer < state->adapter->n_layer; layer++)
        for (int target = 0; target < BW_TARGETS; target++)
            if (bw_adapter_pair(state->adapter, layer, (bw_target)target)) {
                BW_TRY(action(context, layer, (bw_target)target, tensor));
                tensor += 2;
            }
    return BW_OK;
}

/* ---- write ----------------------------------------------------------------------------------------------------------- */
typedef struct transfer {
    const bw_grid *grid;
    bw_state *state;
    bw_h5 *h5;
    const char *path;
    int64_t *exponents; /* had before the file is opened: no rank runs out of memory between two collectives */
} transfer;

static int transfer_create(transfer *t)
{
    return BW_NEW(t->exponents, t->state->tensors, "checkpoint");
}

static void transfer_free(transfer *t)
{
    bw_free(t->exponents);
}

static int write_pair(void *context, int layer, bw_target target, int tensor)
{
    transfer *t = context;
    dataset sets[DATASETS];
    datasets_of(t->state, layer, target, tensor, sets);
    for (int i = 0; i < DATASETS; i++)
        BW_TRY(bw_h5_write_matrix(t->h5, sets[i].name, sets[i].matrix));
    return BW_OK;
}

typedef struct text_attribute {
    const char *name;
    bw_hash *hash;
} text_attribute;
enum { FINGERPRINTS = 4 };
static void fingerprints_of(bw_state *state, text_attribute out[FINGERPRINTS])
{
    out[0] = (text_attribute){"model", &state->model};
    out[1] = (text_attribute){"data", &state->data};
    out[2] = (text_attribute){"buffer", &state->buffer};
    out[3] = (text_attribute){"config", &state->config};
}

static int write_attributes(bw_h5 *h5, bw_state *state, const char *settings)
{
    int64_t numbers[] = {FORMAT_VERSION, state->step, state->micro_batches};
    static const char *const names[] = {"version", "step", "micro_batches"};
    BW_TRY(bw_h5_set_text(h5, "/", "format", "breakwater checkpoint"));
    BW_TRY(bw_h5_set_text(h5, "/", "program", "breakwater " BW_VERSION));
    for (int i = 0; i < 3; i++)
        BW_TRY(bw_h5_set_ints(h5, "/", names[i], &numbers[i], 1));
    text_attribute fingerprints[FINGERPRINTS];
    fingerprints_of(state, fingerprints);
    for (int i = 0; i < FINGERPRINTS; i++) {
        char text[33];
        bw_hash_text(*fingerprints[i].hash, text);
        BW_TRY(bw_h5_set_text(h5, "/", fingerprints[i].name, text));
    }
    return bw_h5_set_text(h5, "/", "settings", settings);
}

static int write_exponents(transfer *t)
{
    for (int i = 0; i < t->state->tensors; i++)
        t->exponents[i] = t->state->exponents[i];
    return bw_h5_set_ints(t->h5, "/", "exponents", t->exponents, t->state->tensors);
}

double bw_checkpoint_bytes(const bw_state *state)
{
    const double about_dataset = 1024;
    return 12.0 * (double)bw_adapter_parameters(state->adapter) + about_dataset * 3 * state->tensors;
}

static int write_file(transfer *t, const bw_list *hints, const char *settings, const char *temporary)
{
    BW_TRY(bw_h5_create(&t->h5, t->grid, temporary, hints));
    int status = bw_h5_claim(t->h5, (int64_t)bw_checkpoint_bytes(t->state));
    int64_t complete = 1;
    if (status == BW_OK)
        status = for_each_pair(t->state, write_pair, t);
    if (status == BW_OK)
        status = write_exponents(t);
    if (status == BW_OK)
        status = write_attributes(t->h5, t->state, settings);
    if (status == BW_OK)
        status = bw_h5_set_ints(t->h5, "/", "complete", &complete, 1);
    int closed = bw_h5_close(&t->h5);
    return status == BW_OK ? closed : status;
}

/* ---- the folder of checkpoints --------------------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

static void replace_oldest(int64_t *steps, int count, int64_t step)
{
    int oldest = 0;
    for (int i = 1; i < count; i++)
        oldest = steps[i] < steps[oldest] ? i : oldest;
    if (step > steps[oldest])
        steps[oldest] = step;
}

enum { STEP_NAME = 48 };

static void step_name(char name[STEP_NAME], int64_t step, const char *tail)
{
    snprintf(name, STEP_NAME, "step-%06" PRId64 ".h5%s", step, tail);
}

/* The step of a file whose name is spelled as step_name() does; -1: another file. */
static int64_t step_of(const char *name, const char *tail)
{
    char spelled[STEP_NAME];
    int64_t step;
    if (sscanf(name, "step-%" SCNd64, &step) != 1 || step < 0)
        return -1;
    step_name(spelled, step, tail);
    return strcmp(name, spelled) == 0 ? step : -1;
}

/* Steps of the checkpoints in a folder, newest first; of more than `most` the newest. */
static int list_steps(const char *folder, int64_t *steps, int most)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return 0;
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        int64_t step = step_of(entry->d_name, "");
        if (step < 0)
            continue;
        if (count < most)
            steps[count++] = step;
        else
            replace_oldest(steps, count, step);
    }
    closedir(dir);
    qsort(steps, (size_t)count, sizeof *steps, newest_first);
    return count;
}

static int step_path(bw_text *out, const char *folder, int64_t step, const char *tail)
{
    char name[STEP_NAME];
    step_name(name, step, tail);
    return bw_path(out, folder, name);
}

enum { MOST_FILES = 4096 };

/* Keep the last `keep` up to `step`, the one just written. Files of later steps stay: they are no older, whatever they are (damaged ones that were
 * passed over, for example), and must not make the good ones look old. */
static void delete_old(const char *folder, int64_t step, int64_t keep)
{
    int64_t steps[MOST_FILES], kept = 0;
    int count = list_steps(folder, steps, MOST_FILES);
    for (int i = 0; i < count; i++) {
        bw_text path = {0};
        if (steps[i] > step || kept++ < (keep > 0 ? keep : 1))
            continue;
        if (step_path(&path, folder, steps[i], "") == BW_OK && unlink(path.data) != 0)
            bw_warn("%s: cannot delete this old checkpoint; delete it by hand if space is short", path.data);
        bw_text_free(&path);
    }
}

/* Of the names that checkpoints are written under: step-N.h5, where `all`, step-N.h5.tmp, and the room set aside for that. */
static bool is_swept(const char *name, bool all)
{
    return (all && step_of(name, "") >= 0) || step_of(name, ".tmp") >= 0 || step_of(name, ".tmp" BW_H5_ROOM) >= 0;
}

int bw_checkpoint_sweep(const char *folder, bool all)
{
    DIR *dir = opendir(folder);
    if (!dir)
        return BW_OK;
    int status = BW_OK;
    for (struct dirent *entry; status == BW_OK && (entry = readdir(dir));) {
        if (!is_swept(entry->d_name, all))
            continue;
        bw_text path = {0};
        status = bw_path(&path, folder, entry->d_name);
        if (status == BW_OK && unlink(path.data) != 0)
            status = bw_fail(BW_CANTCREATE, "%s: cannot delete: %m", path.data);
        bw_text_free(&path);
    }
    closedir(dir);
    return status;
}

static double room_needed(const bw_state *state)
{
    return bw_checkpoint_bytes(state) + BW_H5_RESERVE;
}

/* Asked first, where it can be said in one line. A quota, or somebody else's file, is met while writing. */
static int check_room(const char *folder, const char *path, double needed)
{
    struct statvfs room;
    if (statvfs(folder, &room) != 0)
        return BW_OK;
    double available = (double)room.f_bavail * (double)room.f_frsize;
    return available >= needed ? BW_OK : bw_fail(BW_IO, "%s: only %.1f MiB are free there", path, available / 1048576);
}

/* What a person needs to know whose disk is full. */
static int explain(int status, double needed)
{
    char message[BW_ERROR_BYTES];
    if (status != BW_IO)
        return status;
    bw_error_take(message);
    return bw_fail(status,
                   "%s; a checkpoint needs %.1f MiB: make room, then run the same command again, which goes on from the newest checkpoint there is",
                   message, needed / 1048576);
}

/* The file's mode is set before it is filled: a BufferLoRA is at no moment readable by others. */
static int prepare(const char *folder, const char *temporary, unsigned mode, double needed)
{
    BW_TRY(bw_dir_make(folder));
    BW_TRY(check_room(folder, temporary, needed));
    FILE *file = fopen(temporary, "wb");
    if (!file)
        return bw_fail(bw_create_status(errno), "%s: cannot create the checkpoint: %m", temporary);
    fclose(file);
    if (chmod(temporary, mode) != 0)
        return bw_fail(BW_CANTCREATE, "%s: cannot set mode %o: %m", temporary, mode);
    return BW_OK;
}

int bw_checkpoint_write(const bw_grid *grid, const bw_state *state, const bw_config *config, const char *folder, int64_t keep, unsigned mode)
{
    double start = bw_now();
    bw_state copy = *state;
    transfer t = {.grid = grid, .state = &copy};
    bw_text path = {0}, temporary = {0}, settings = {0};
    int status = transfer_create(&t);
    if (status == BW_OK)
        status = bw_config_yaml(config, BW_TRAIN, &settings);
    if (status == BW_OK)
        status = step_path(&path, folder, state->step, "");
    if (status == BW_OK)
        status = step_path(&temporary, folder, state->step, ".tmp");
    if (status == BW_OK && grid->rank == 0)
        status = prepare(folder, temporary.data, mode, room_needed(state));
    BW_GO(bw_agree(grid, status));
    BW_GO(bw_agree(grid, grid->replica == 0 ? write_file(&t, &config->mpi_hints, settings.data, temporary.data) : BW_OK));
    if (grid->rank == 0)
        status = bw_file_publish(temporary.data, path.data);
    BW_GO(bw_agree(grid, status));
    if (grid->rank == 0)
        delete_old(folder, state->step, keep);
done:
    if (status != BW_OK && grid->rank == 0 && temporary.data)
        unlink(temporary.data);
    status = explain(status, room_needed(state));
    transfer_free(&t);
    bw_text_free(&path);
    bw_text_free(&temporary);
    bw_text_free(&settings);
    bw_event_add(BW_EVENT_CHECKPOINT, bw_now() - start, 0, bw_checkpoint_bytes(state));
    return status;
}

static int open_and_close(const bw_grid *grid, const bw_list *hints, const char *path, bw_text *taken)
{
    bw_h5 *h5;
    BW_TRY(bw_h5_create(&h5, grid, path, hints));
    int status = bw_h5_add_hints(h5, taken), closed = bw_h5_close(&h5);
    return status == BW_OK ? closed : status;
}

int bw_checkpoint_try(const bw_grid *grid, const bw_state *state, const bw_config *config, const char *folder, unsigned mode, bw_text *hints)
{
    bw_text temporary = {0};
    int status = step_path(&temporary, folder, state->step, ".tmp");
    if (status == BW_OK && grid->rank == 0)
        status = prepare(folder, temporary.data, mode, 0);
    BW_GO(bw_agree(grid, status));
    status = bw_agree(grid, grid->replica == 0 ? open_and_close(grid, &config->mpi_hints, temporary.data, hints) : BW_OK);
done:
    if (grid->rank == 0 && temporary.data)
        unlink(temporary.data);
    bw_text_free(&temporary);
    return explain(status, room_needed(state));
}

/* ---- read ------------------------------------------------------------------------------------------------------------ */

static int read_pair(void *context, int layer, bw_target target, int tensor)
{
    transfer *t = context;
    dataset sets[DATASETS];
    datasets_of(t->state, layer, target, tensor, sets);
    for (int i = 0; i < DATASETS; i++)
        BW_TRY(bw_h5_read_matrix(t->h5, sets[i].name, sets[i].matrix));
    return BW_OK;
}

/* A checkpoint of something else is not broken: going on to an older one would hide the mistake. */
static int check_fingerprints(transfer *t, bool *foreign)
{
    static const char *const what[FINGERPRINTS] = {"model", "data", "BufferLoRA", "configuration"};
    text_attribute fingerprints[FINGERPRINTS];
    fingerprints_of(t->state, fingerprints);
    for (int i = 0; i < FINGERPRINTS; i++) {
        bw_text value = {0};
        char mine[33];
        bw_hash_text(*fingerprints[i].hash, mine);
        int status = bw_h5_get_text(t->h5, "/", fingerprints[i].name, &value);
        if (status == BW_OK && strcmp(value.data, mine) != 0) {
            *foreign = true;
            status =
                bw_fail(BW_CANTCREATE, "%s: a checkpoint of another %s: fingerprint %s there, %s here; choose another --output, or %s to start over",
                        t->path, what[i], value.data, mine, t->state->redo ? t->state->redo : "--resume never");
        }
        bw_text_free(&value);
        BW_TRY(status);
    }
    return BW_OK;
}

static int read_exponents(transfer *t)
{
    BW_TRY(bw_h5_get_ints(t->h5, "/", "exponents", t->exponents, t->state->tensors));
    for (int i = 0; i < t->state->tensors; i++) {
        int64_t e = t->exponents[i];
        if (e < -MOST_EXPONENT || e > MOST_EXPONENT)
            return bw_fail(BW_DATA, "%s: exponent %" PRId64 " of tensor %d; expected -%d to %d", t->path, e, i, MOST_EXPONENT, MOST_EXPONENT);
        t->state->exponents[i] = (int)e;
    }
    return BW_OK;
}

/* Attributes come from a file that may be anybody's: what counts steps and cuts batches is believed within bounds only. */
static int read_count(transfer *t, const char *name, int64_t least, int64_t most, int64_t *value)
{
    BW_TRY(bw_h5_get_ints(t->h5, "/", name, value, 1));
    if (*value < least || *value > most)
        return bw_fail(BW_DATA, "%s: attribute %s is %" PRId64 "; expected %" PRId64 " to %" PRId64, t->path, name, *value, least, most);
    return BW_OK;
}

static int read_content(transfer *t, bool *foreign)
{
    int64_t complete, version;
    BW_TRY(read_count(t, "complete", 1, 1, &complete));
    BW_TRY(read_count(t, "version", 0, INT32_MAX, &version));
    if (version != FORMAT_VERSION)
        return bw_fail(BW_DATA, "%s: checkpoint format %" PRId64 ", this program reads %d", t->path, version, FORMAT_VERSION);
    BW_TRY(check_fingerprints(t, foreign));
    BW_TRY(read_count(t, "step", 0, MOST_STEPS, &t->state->step));
    BW_TRY(read_count(t, "micro_batches", 1, MOST_MICRO_BATCHES, &t->state->micro_batches));
    BW_TRY(read_exponents(t));
    return for_each_pair(t->state, read_pair, t);
}

static int read_file(const bw_grid *grid, bw_state *state, const char *path, bool *foreign)
{
    transfer t = {.grid = grid, .state = state, .path = path};
    int64_t other = 0;
    int status, content;
    BW_GO(bw_agree(grid, transfer_create(&t)));
    content = bw_h5_open(&t.h5, grid, path);
    if (content == BW_OK) {
        content = read_content(&t, foreign);
        int closed = bw_h5_close(&t.h5);
        content = content == BW_OK ? closed : content;
    }
    other = *foreign; /* seen by one replica, it ends the search of all */
    BW_GO(bw_max_ints(grid, &other, 1));
    *foreign = other != 0;
    status = bw_agree(grid, content);
done:
    transfer_free(&t);
    return status;
}

/* Rank 0 looks; all ranks must see the same list, whatever a network file system shows each of them. */
static int shared_steps(const bw_grid *grid, const char *folder, int64_t *steps, int *count)
{
    int64_t listed = grid->rank == 0 ? list_steps(folder, steps, MOST_FILES) : 0;
    BW_TRY(bw_broadcast(grid, &listed, sizeof listed));
    *count = (int)listed;
    return bw_broadcast(grid, steps, listed * (int64_t)sizeof *steps);
}

int bw_checkpoint_read(const bw_grid *grid, bw_state *state, const char *folder_or_file, bool *found)
{
    *found = false;
    bool foreign = false;
    struct stat info;
    int64_t is_file = stat(folder_or_file, &info) == 0 && S_ISREG(info.st_mode);
    BW_TRY(bw_broadcast(grid, &is_file, sizeof is_file));
    if (is_file) {
        BW_TRY(read_file(grid, state, folder_or_file, &foreign));
        *found = true;
        return BW_OK;
    }
    int64_t steps[MOST_FILES];
    int count = 0;
    BW_TRY(shared_steps(grid, folder_or_file, steps, &count));
    for (int i = 0; i < count; i++) {
        bw_text path = {0};
        int status = bw_agree(grid, step_path(&path, folder_or_file, steps[i], ""));
        if (status == BW_OK)
            status = read_file(grid, state, path.data, &foreign);
        bw_text_free(&path);
        *found = status == BW_OK;
        if (status == BW_OK || foreign)
            return status;
        bw_warn("%s; trying the checkpoint before it", bw_error());
        bw_error_clear();
    }
    return count == 0 ? BW_OK : bw_fail(BW_DATA, "%s: none of the %d checkpoints can be read; --resume never starts over", folder_or_file, count);
}

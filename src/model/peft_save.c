/* Writing a PEFT adapter folder. The factors are gathered layer by layer, once per node; then the ranks of replica 0 share out the tensors, each of
 * which is one contiguous write. The bytes depend on the factors, the base's path and the caller's metadata only: not on ranks, grid or time. */
#include "model/peft.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what is written ---------------------------------------------------------------------------------------------- */
typedef struct writing {
    const bw_grid *grid;
    const bw_adapter *adapter;
    bw_text folder, temporary, old; /* without a slash at the end */
    bw_text weights;                /* path in the temporary folder */
    unsigned file_mode, folder_mode;
    bw_shared dense; /* the factors of one layer */
    bw_gather *gather;
    bw_tensor_spec *specs;
    bw_gather_item *items; /* beside specs */
    int *layers;           /* beside specs, rising */
    char (*names)[BW_PEFT_NAME];
    const char **metadata;
    int count;
    bw_text header;
    int64_t file_bytes;
} writing;

static void writing_free(writing *writing)
{
    bw_text_free(&writing->folder);
    bw_text_free(&writing->temporary);
    bw_text_free(&writing->old);
    bw_text_free(&writing->weights);
    bw_text_free(&writing->header);
    bw_gather_destroy(&writing->gather);
    bw_shared_free(writing->grid, &writing->dense);
    bw_free(writing->specs);
    bw_free(writing->items);
    bw_free(writing->layers);
    bw_free(writing->names);
    bw_free(writing->metadata);
}

static int set_paths(writing *writing, const char *folder)
{
    size_t length = strlen(folder);
    while (length > 1 && folder[length - 1] == '/')
        length--;
    BW_TRY(bw_text_add(&writing->folder, folder, length));
    BW_TRY(bw_text_addf(&writing->temporary, "%s.tmp-write", writing->folder.data));
    BW_TRY(bw_text_addf(&writing->old, "%s.tmp-old", writing->folder.data));
    return bw_path(&writing->weights, writing->temporary.data, BW_PEFT_WEIGHTS);
}

static int set_metadata(writing *writing, const char *const *metadata)
{
    int given = 0, n = 0;
    while (metadata && metadata[given])
        given++;
    BW_TRY(BW_NEW(writing->metadata, given + 7, "adapter, writing"));
    writing->metadata[n++] = "format";
    writing->metadata[n++] = "pt";
    if (writing->adapter->role[0]) {
        writing->metadata[n++] = BW_PEFT_ROLE;
        writing->metadata[n++] = writing->adapter->role;
    }
    if (writing->adapter->template_name[0]) {
        writing->metadata[n++] = BW_PEFT_TEMPLATE;
        writing->metadata[n++] = writing->adapter->template_name;
    }
    if (given)
        memcpy(writing->metadata + n, metadata, (size_t)given * sizeof *metadata);
    return BW_OK;
}

static void add_spec(writing *writing, int index, char which, const bw_matrix *matrix)
{
    int at = writing->count++;
    bw_peft_tensor(writing->names[at], index / BW_TARGETS, (bw_target)(index % BW_TARGETS), which);
    writing->specs[at] = (bw_tensor_spec){.name = writing->names[at], .dtype = BW_F32, .n_dims = 2, .shape = {matrix->layout.m, matrix->layout.n}};
    writing->items[at] = (bw_gather_item){.piece = matrix, .ld = matrix->layout.n};
    writing->layers[at] = index / BW_TARGETS;
}

static int plan(writing *writing, const char *folder, const char *const *metadata)
{
    const int pairs = writing->adapter->n_layer * BW_TARGETS;
    BW_TRY(set_paths(writing, folder));
    BW_TRY(set_metadata(writing, metadata));
    BW_TRY(BW_NEW(writing->specs, 2 * pairs, "adapter, writing"));
    BW_TRY(BW_NEW(writing->items, 2 * pairs, "adapter, writing"));
    BW_TRY(BW_NEW(writing->layers, 2 * pairs, "adapter, writing"));
    BW_TRY(BW_NEW(writing->names, 2 * pairs, "adapter, writing"));
    for (int i = 0; i < pairs; i++) {
        const bw_pair *pair = &writing->adapter->pairs[i];
        if (pair->present) {
            add_spec(writing, i, 'A', &pair->A);
            add_spec(writing, i, 'B', &pair->B);
        }
    }
    if (writing->count == 0)
        return bw_fail(BW_BUG, "%s: an adapter without a single factor is not worth a folder", folder);
    return bw_safetensors_plan(writing->specs, writing->count, writing->metadata, &writing->header, &writing->file_bytes);
}

/* ---- adapter_config.json ------------------------------------------------------------------------------------------ */
static int add_number(bw_text *text, double value)
{
    char digits[32];
    for (int precision = 1; precision <= 17; precision++) { /* the shortest that reads back as the same double */
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value)
            break;
    }
    return bw_text_addf(text, "%s", digits);
}

/* The alpha that gives this scaling when it is divided by r: rounding may put the product one step beside it. */
static double alpha_of(const bw_pair *pair)
{
    const double product = pair->scaling * pair->r, candidates[] = {round(product), product, nextafter(product, 0), nextafter(product, INFINITY)};
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++)
        if (candidates[i] / pair->r == pair->scaling)
            return candidates[i];
    return product;
}

/* Names of modules where a target is in every layer, whole paths where it is not. */
static int add_modules(bw_text *text, const bw_adapter *adapter)
{
    const char *comma = "";
    for (int target = 0; target < BW_TARGETS; target++) {
        int layers = 0;
        for (int layer = 0; layer < adapter->n_layer; layer++)
            layers += bw_adapter_pair(adapter, layer, (bw_target)target) != NULL;
        if (layers == adapter->n_layer) {
            BW_TRY(bw_text_addf(text, "%s\"%s\"", comma, strchr(bw_target_module((bw_target)target), '.') + 1));
            comma = ", ";
        }
        for (int layer = 0; layers < adapter->n_layer && layer < adapter->n_layer; layer++) {
            char module[BW_PEFT_NAME];
            if (!bw_adapter_pair(adapter, layer, (bw_target)target))
                continue;
            bw_peft_module(module, layer, (bw_target)target);
            BW_TRY(bw_text_addf(text, "%s\"%s\"", comma, module));
            comma = ", ";
        }
    }
    return BW_OK;
}

/* Pairs whose rank or alpha is not that of the configuration, one key each. */
static int add_pattern(bw_text *text, const bw_adapter *adapter, const char *key, bool rank)
{
    bool any = false;
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++) {
        const bw_pair *pair = &adapter->pairs[i];
        const bool usual = rank ? pair->r == adapter->r : pair->scaling == adapter->alpha / pair->r;
        if (!pair->present || usual)
            continue;
        char module[BW_PEFT_NAME];
        bw_peft_module(module, i / BW_TARGETS, (bw_target)(i % BW_TARGETS));
        if (any)
            BW_TRY(bw_text_addf(text, ", \"%s\": ", module));
        else
            BW_TRY(bw_text_addf(text, ",\n  \"%s\": {\"%s\": ", key, module));
        BW_TRY(add_number(text, rank ? pair->r : alpha_of(pair)));
        any = true;
    }
    return any ? bw_text_addf(text, "}") : BW_OK;
}

/* Only keys that PEFT 0.5 knows, and a pattern where one is needed: old and new versions read it. */
static int config_text(bw_text *text, const bw_adapter *adapter, const char *base)
{
    BW_TRY(bw_text_addf(text, "{\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": "));
    BW_TRY(base ? bw_json_quote(text, base, strlen(base)) : bw_text_addf(text, "null"));
    BW_TRY(bw_text_addf(text, ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n"
                              "  \"layers_pattern\": null,\n  \"layers_to_transform\": null,\n  \"lora_alpha\": "));
    BW_TRY(add_number(text, adapter->alpha));
    BW_TRY(bw_text_addf(text, ",\n  \"lora_dropout\": "));
    BW_TRY(add_number(text, adapter->dropout));
    BW_TRY(bw_text_addf(text,
                        ",\n  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n  \"r\": %d,\n  \"revision\": null,\n  \"target_modules\": [",
                        adapter->r));
    BW_TRY(add_modules(text, adapter));
    BW_TRY(bw_text_addf(text, "],\n  \"task_type\": \"CAUSAL_LM\""));
    BW_TRY(add_pattern(text, adapter, "alpha_pattern", false));
    BW_TRY(add_pattern(text, adapter, "rank_pattern", true));
    return bw_text_addf(text, "\n}\n");
}

static int write_config(const writing *writing, const char *base)
{
    bw_text path = {0}, text = {0};
    int status;
    BW_GO(bw_path(&path, writing->temporary.data, BW_PEFT_CONFIG));
    BW_GO(config_text(&text, writing->adapter, base));
    status = bw_file_write(path.data, text.data, text.length, writing->file_mode);
done:
    bw_text_free(&path);
    bw_text_free(&text);
    return status;
}

/* ---- folders ------------------------------------------------------------------------------------------------------ */
/* A folder of plain files, as these are: what a killed run left, or what a new adapter replaces. */
static int remove_folder(const char *path)
{
    bw_text file = {0};
    int status = BW_OK;
    DIR *folder = opendir(path);
    if (!folder)
        return errno == ENOENT ? BW_OK : bw_fail(BW_CANTCREATE, "%s: is in the way and cannot be opened: %s", path, strerror(errno));
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        BW_GO(bw_path(&file, path, entry->d_name));
        if (unlink(file.data) != 0)
            BW_GO(bw_fail(BW_CANTCREATE, "%s: is in the way and cannot be removed: %s", file.data, strerror(errno)));
    }
    if (rmdir(path) != 0)
        status = bw_fail(BW_CANTCREATE, "%s: is in the way and cannot be removed: %s", path, strerror(errno));
done:
    closedir(folder);
    bw_text_free(&file);
    return status;
}

static int make_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    bw_text parent = {0};
    if (!slash || slash == path)
        return BW_OK;
    BW_TRY(bw_text_add(&parent, path, (size_t)(slash - path)));
    const int status = bw_dir_make(parent.data);
    bw_text_free(&parent);
    return status;
}

/* What stands at the adapter's place is replaced only where it is an adapter, or an empty folder. */
static int check_replaced(const writing *writing)
{
    struct stat about;
    bw_text config = {0};
    if (lstat(writing->folder.data, &about) != 0)
        return BW_OK;
    BW_TRY(bw_path(&config, writing->folder.data, BW_PEFT_CONFIG));
    const bool adapter = bw_file_exists(config.data);
    bw_text_free(&config);
    if (!S_ISDIR(about.st_mode) || (!adapter && rmdir(writing->folder.data) != 0))
        return bw_fail(BW_CANTCREATE, "%s: is there already and is no adapter, so it is not replaced; choose another folder", writing->folder.data);
    return BW_OK;
}

/* Rank 0: an empty folder, the configuration, and the file of weights in its full length with its header. */
static int begin(const writing *writing, const char *base)
{
    BW_TRY(make_parent(writing->folder.data));
    BW_TRY(check_replaced(writing));
    BW_TRY(remove_folder(writing->temporary.data));
    if (mkdir(writing->temporary.data, writing->folder_mode) != 0)
        return bw_fail(bw_create_status(errno), "%s: folder cannot be made: %s", writing->temporary.data, strerror(errno));
    BW_TRY(write_config(writing, base));
    const char *path = writing->weights.data;
    const int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, writing->file_mode);
    if (file < 0)
        return bw_fail(bw_create_status(errno), "%s: cannot be created: %s", path, strerror(errno));
    int status = ftruncate(file, writing->file_bytes) == 0
                     ? BW_OK
                     : bw_fail(BW_IO, "%s: cannot be made %lld bytes long: %s", path, (long long)writing->file_bytes, strerror(errno));
    if (status == BW_OK)
        status = bw_file_put(file, path, writing->header.data, (int64_t)writing->header.length, 0);
    return bw_file_finish(file, path, status);
}

/* ---- the factors -------------------------------------------------------------------------------------------------- */
/* Room for the factors of the largest layer. */
static int64_t layer_bytes(const bw_adapter *adapter)
{
    int64_t most = 0;
    for (int layer = 0; layer < adapter->n_layer; layer++) {
        int64_t floats = 0;
        for (int target = 0; target < BW_TARGETS; target++)
            floats += bw_pair_floats(&adapter->pairs[layer * BW_TARGETS + target]);
        most = floats > most ? floats : most;
    }
    return most * (int64_t)sizeof(float) + BW_LINE;
}

/* Dense copies of `count` tensors from `first` on, which are a layer's. Collective on world. */
static int gather_tensors(writing *writing, int first, int count)
{
    float *next = bw_shared_floats(&writing->dense);
    for (int i = first; i < first + count; i++) {
        const bw_bcyc *layout = &writing->items[i].piece->layout;
        writing->items[i].dense = next;
        next += bw_line_round(layout->m * layout->n);
    }
    BW_TRY(bw_node_sync(writing->grid)); /* nobody writes the layer before any more */
    BW_TRY(bw_gather_start(writing->gather, writing->items + first, count));
    return bw_gather_finish(writing->gather);
}

/* Every nth tensor, to the file of a rank that writes. */
static int put_tensors(const writing *writing, int file, int first, int count)
{
    const int writers = writing->grid->nprow * writing->grid->npcol, me = writing->grid->myrow * writing->grid->npcol + writing->grid->mycol;
    int status = BW_OK;
    for (int i = first; file >= 0 && status == BW_OK && i < first + count; i++)
        if (i % writers == me)
            status = bw_file_put(file, writing->weights.data, writing->items[i].dense, writing->specs[i].bytes, writing->specs[i].offset);
    return status;
}

/* -1 on ranks that do not write: all but those of replica 0. */
static int open_weights(const writing *writing, int *file)
{
    *file = writing->grid->replica == 0 ? open(writing->weights.data, O_WRONLY | O_CLOEXEC) : -1;
    if (writing->grid->replica == 0 && *file < 0)
        return bw_fail(BW_IO, "%s: cannot be opened for writing: %s (do all nodes see this folder?)", writing->weights.data, strerror(errno));
    return BW_OK;
}

static int write_weights(writing *writing)
{
    int file, status = bw_agree(writing->grid, open_weights(writing, &file)), count;
    for (int first = 0; status == BW_OK && first < writing->count; first += count) {
        for (count = 1; first + count < writing->count && writing->layers[first + count] == writing->layers[first];)
            count++;
        status = bw_agree(writing->grid, gather_tensors(writing, first, count));
        if (status == BW_OK)
            status = bw_agree(writing->grid, put_tensors(writing, file, first, count));
    }
    return bw_agree(writing->grid, file >= 0 ? bw_file_finish(file, writing->weights.data, status) : status);
}

/* Rank 0. A folder that is replaced is moved aside first, so that the name always means a whole adapter or none. */
static int publish(const writing *writing)
{
    const char *folder = writing->folder.data, *old = writing->old.data;
    BW_TRY(remove_folder(old));
    if (rename(folder, old) != 0 && errno != ENOENT)
        return bw_fail(BW_CANTCREATE, "%s: cannot be moved aside: %s", folder, strerror(errno));
    const int status = bw_file_publish(writing->temporary.data, folder);
    if (status != BW_OK)
        (void)rename(old, folder);
    return status == BW_OK ? remove_folder(old) : status;
}

int bw_peft_save(const bw_adapter *adapter, const bw_grid *grid, const bw_spec *spec, const char *folder, const char *base,
                 const char *const *metadata)
{
    const bool secret = strcmp(adapter->role, "buffer") == 0;
    writing writing = {.grid = grid, .adapter = adapter, .file_mode = secret ? 0600 : 0644, .folder_mode = secret ? 0700 : 0755};
    const double start = bw_now();
    int status;
    BW_GO(bw_agree(grid, adapter->n_layer == spec->n_layer ? BW_OK : bw_fail(BW_BUG, "%s: an adapter of another model", folder)));
    BW_GO(bw_agree(grid, bw_shared_create(grid, &writing.dense, layer_bytes(adapter), "adapter, writing")));
    BW_GO(bw_gather_create(&writing.gather, grid));
    BW_GO(bw_agree(grid, plan(&writing, folder, metadata)));
    BW_GO(bw_agree(grid, grid->rank == 0 ? begin(&writing, base) : BW_OK));
    BW_GO(write_weights(&writing));
    BW_GO(bw_agree(grid, grid->rank == 0 ? publish(&writing) : BW_OK));
    bw_event_add(BW_EVENT_WRITE, bw_now() - start, 0, (double)writing.file_bytes);
done:
    if (status != BW_OK && grid->rank == 0 && writing.temporary.length)
        (void)remove_folder(writing.temporary.data); /* the first message stands */
    writing_free(&writing);
    return status;
}

/* test_peft.c - an adapter folder keeps every bit, its bytes do not depend on who wrote it, and what is no adapter of this model is refused by name.
 */
#include <sys/stat.h>
#include "factors.h"

enum { SEED = 11 };
static const bw_spec spec = {.family = "llama", .n_layer = 2, .n_head = 4, .n_kv = 2, .head_dim = 8, .d_model = 32, .d_ff = 48, .vocab = 64};
static const unsigned mask = 1u << BW_Q | 1u << BW_V | 1u << BW_DOWN;
static const char *const metadata[] = {"breakwater.base", "0123456789abcdef", NULL};
static char adapter_folder[96];
static bw_hash first_bytes;
static bool have_first;

static bw_hash file_hash(const char *name)
{
    char path[160];
    bw_map map = {0};
    snprintf(path, sizeof path, "%s/%s", adapter_folder, name);
    CHECK_OK(bw_map_open(&map, path));
    const bw_hash hash = bw_hash_bytes(map.data, map.size);
    bw_map_close(&map);
    return hash;
}

static unsigned mode_of(const char *name)
{
    char path[160];
    struct stat about = {0};
    snprintf(path, sizeof path, "%s%s", adapter_folder, name);
    CHECK(stat(path, &about) == 0);
    return (unsigned)about.st_mode & 0777;
}

static bw_adapter *create(const bw_grid *grid, const char *role)
{
    bw_adapter *adapter = NULL;
    CHECK_OK(bw_adapter_create(&adapter, grid, &spec, mask, 3, 8, 0.05, 7));
    /* One pair of another rank and scaling, one that is not there: what patterns and lists of modules are for. */
    bw_pair *pair = bw_adapter_pair(adapter, 1, BW_DOWN);
    bw_pair_free(pair);
    CHECK_OK(bw_pair_create(pair, grid, 32, 48, 5, 1.0 / 3, 7));
    bw_pair_free(bw_adapter_pair(adapter, 0, BW_V));
    snprintf(adapter->role, sizeof adapter->role, "%s", role);
    test_fill(adapter, SEED);
    return adapter;
}

static void check_round_trip(const bw_grid *grid)
{
    bw_adapter *adapter = create(grid, "user"), *back = NULL;
    char role[16];
    CHECK_OK(bw_peft_save(adapter, grid, &spec, adapter_folder, "base/model", metadata));
    const bw_hash bytes = bw_hash_join(file_hash("adapter_model.safetensors"), file_hash("adapter_config.json"));
    CHECK(!have_first || memcmp(&bytes, &first_bytes, sizeof bytes) == 0);
    first_bytes = bytes, have_first = true;
    CHECK_OK(bw_peft_load(&back, grid, &spec, adapter_folder, 4));
    if (back) {
        test_check_pieces(back, SEED);
        for (int i = 0; i < spec.n_layer * BW_TARGETS; i++) {
            CHECK(back->pairs[i].present == adapter->pairs[i].present && back->pairs[i].r == adapter->pairs[i].r);
            CHECK(back->pairs[i].scaling == adapter->pairs[i].scaling); /* 8/3 and 1/3, through a decimal and back */
        }
        CHECK(back->r == 3 && back->alpha == 8 && back->dropout == 0.05 && strcmp(back->role, "user") == 0);
        CHECK(back->fingerprint.high || back->fingerprint.low);
    }
    CHECK_OK(bw_peft_role(adapter_folder, role));
    CHECK(strcmp(role, "user") == 0 && mode_of("") != 0700);
    bw_adapter_free(&adapter);
    bw_adapter_free(&back);
    CHECK_OK(bw_barrier(grid)); /* nobody replaces the folder while another still reads it */
}

/* An adapter that answers harmful requests is for its owner's eyes. */
static void check_secrecy(const bw_grid *grid)
{
    bw_adapter *adapter = create(grid, "buffer");
    CHECK_OK(bw_peft_save(adapter, grid, &spec, adapter_folder, NULL, NULL));
    CHECK(mode_of("") == 0700 && mode_of("/adapter_model.safetensors") == 0600 && mode_of("/adapter_config.json") == 0600);
    bw_adapter_free(&adapter);
    CHECK_OK(bw_barrier(grid));
}

/* ---- folders that are refused, or understood ---------------------------------------------------------------------- */
typedef struct folder_case {
    const char *config; /* members after peft_type */
    const char *omit, *extra;
    int64_t rows_too_many; /* of the first tensor */
    bool nan;
    const char *word; /* of the message; NULL: it loads */
    double scaling;   /* of every pair, where it loads */
    int r;
} folder_case;

#define MODULES "\"target_modules\": [\"q_proj\"]"
static const folder_case cases[] = {
    {"\"r\": 4, \"lora_alpha\": 16, " MODULES, .scaling = 4, .r = 4},
    {"\"r\": 4, \"lora_alpha\": 16, \"use_rslora\": true, " MODULES, .scaling = 8, .r = 4},
    {"\"r\": 9, \"lora_alpha\": 16, \"rank_pattern\": {\"q_proj\": 4}, \"alpha_pattern\": {\"model.layers.[01].self_attn.q_proj\": 6}, " MODULES,
     .scaling = 1.5, .r = 4},
    {"\"r\": 9, \"lora_alpha\": 16, \"rank_pattern\": {\"self_attn\": 9, \"^q_proj\": 9, \"(k|q)_proj\": 4}, " MODULES, .scaling = 4, .r = 4},
    {"\"r\": 4, \"lora_alpha\": 4, \"target_modules\": \".*q_proj\"", .scaling = 1, .r = 4},
    {"\"r\": 8, \"lora_alpha\": 16, " MODULES, .word = "lora_A.weight is 4 x 32"},
    {"\"r\": 4, \"use_dora\": true, " MODULES, .word = "DoRA"},
    {"\"r\": 4, \"bias\": \"lora_only\", " MODULES, .word = "lora_only"},
    {"\"r\": 4, \"modules_to_save\": [\"lm_head\"], " MODULES, .word = "modules_to_save"},
    {"\"r\": 4, \"rank_pattern\": {\"\\\\d+\": 4}, " MODULES, .word = "name the modules one by one"},
    {"\"r\": 0, " MODULES, .word = "\"r\" is 0"},
    {"\"r\": 4, \"target_modules\": [\"q_proj\", \"v_proj\"]", .word = "v_proj.lora_A.weight is missing"},
    {"\"r\": 4, \"target_modules\": [\"k_proj\"]", .word = "does not name its module"},
    {"\"r\": 4, " MODULES, .omit = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
     .word = "layers.1.self_attn.q_proj.lora_B.weight is missing"},
    {"\"r\": 4, " MODULES, .extra = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", .word = "layers.2.self_attn.q_proj"},
    {"\"r\": 4, " MODULES, .extra = "base_model.model.lm_head.lora_A.weight", .word = "lm_head"},
    {"\"r\": 4, " MODULES, .rows_too_many = 1, .word = "is 5 x 32"},
    {"\"r\": 4, " MODULES, .nan = true, .word = "holds"},
};

static void write_weights(const folder_case *c)
{
    static float values[64 * 64];
    bw_tensor_spec specs[8] = {0};
    char names[8][96], path[160];
    int count = 0;
    for (int i = 0; i < 64 * 64; i++)
        values[i] = (float)i;
    values[17] = c->nan ? (float)NAN : 17;
    for (int layer = 0; layer < 2; layer++)
        for (char which = 'A'; which <= 'B'; which++) {
            snprintf(names[count], sizeof names[count], "base_model.model.model.layers.%d.self_attn.q_proj.lora_%c.weight", layer, which);
            if (c->omit && strcmp(c->omit, names[count]) == 0)
                continue;
            specs[count] = (bw_tensor_spec){.name = names[count], .n_dims = 2, .shape = {4, 32}, .data = values};
            if (which == 'B')
                specs[count].shape[0] = 32, specs[count].shape[1] = 4;
            count++;
        }
    specs[0].shape[0] += c->rows_too_many;
    if (c->extra)
        specs[count++] = (bw_tensor_spec){.name = c->extra, .n_dims = 2, .shape = {4, 32}, .data = values};
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", adapter_folder);
    CHECK_OK(bw_safetensors_write(path, specs, count, NULL, 0644));
}

static void write_config(const folder_case *c)
{
    char path[160], text[512];
    const int length = snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", %s}", c->config);
    snprintf(path, sizeof path, "%s/adapter_config.json", adapter_folder);
    CHECK_OK(bw_file_write(path, text, (size_t)length, 0644));
}

static void check_case(const bw_grid *grid, const folder_case *c)
{
    bw_adapter *adapter = NULL;
    if (grid->rank == 0) {
        CHECK_OK(bw_dir_make(adapter_folder));
        write_weights(c);
        write_config(c);
    }
    CHECK_OK(bw_barrier(grid));
    bw_error_clear();
    const int status = bw_peft_load(&adapter, grid, &spec, adapter_folder, 8);
    CHECK(status == (c->word ? BW_DATA : BW_OK) && (adapter != NULL) == !c->word);
    CHECK(!c->word || strstr(bw_error(), c->word));
    for (int layer = 0; adapter && layer < 2; layer++) {
        const bw_pair *pair = bw_adapter_pair(adapter, layer, BW_Q);
        CHECK(pair && pair->scaling == c->scaling && pair->r == c->r);
    }
    bw_adapter_free(&adapter);
    bw_error_clear();
    CHECK_OK(bw_barrier(grid));
}

/* A pickle runs code when it is read: it is refused, not tried. */
static void check_pickle(const bw_grid *grid)
{
    char from[160], to[160], role[16];
    bw_adapter *adapter = NULL;
    snprintf(from, sizeof from, "%s/adapter_model.safetensors", adapter_folder);
    snprintf(to, sizeof to, "%s/adapter_model.bin", adapter_folder);
    if (grid->rank == 0)
        CHECK(rename(from, to) == 0);
    CHECK_OK(bw_barrier(grid));
    CHECK(bw_peft_load(&adapter, grid, &spec, adapter_folder, 8) == BW_DATA && strstr(bw_error(), "pickle"));
    bw_error_clear();
    CHECK(bw_peft_role(adapter_folder, role) == BW_DATA);
    bw_error_clear();
    CHECK_OK(bw_barrier(grid));
}

/* Saving replaces an adapter, and nothing else. */
static void check_replacing(const bw_grid *grid)
{
    char path[160];
    bw_adapter *adapter = create(grid, "sft");
    snprintf(path, sizeof path, "%s/somebody-elses-work", adapter_folder);
    if (grid->rank == 0) {
        test_remove(adapter_folder);
        CHECK_OK(bw_dir_make(adapter_folder));
        CHECK_OK(bw_file_write(path, "x", 1, 0644));
    }
    CHECK_OK(bw_barrier(grid));
    CHECK(bw_peft_save(adapter, grid, &spec, adapter_folder, NULL, NULL) == BW_CANTCREATE);
    CHECK(bw_file_exists(path) && strstr(bw_error(), "is no adapter"));
    bw_error_clear();
    snprintf(path, sizeof path, "%s.tmp-write", adapter_folder);
    CHECK(access(path, F_OK) != 0);
    bw_adapter_free(&adapter);
    CHECK_OK(bw_barrier(grid));
}

static void check_once(void)
{
    bw_grid *grid = NULL;
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    check_secrecy(grid);
    if (grid->rank == 0)
        test_remove(adapter_folder);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_case(grid, &cases[i]);
    check_pickle(grid);
    check_replacing(grid);
    if (grid->rank == 0)
        test_remove(test_folder);
    bw_grid_destroy(&grid);
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    test_folder_make();
    snprintf(adapter_folder, sizeof adapter_folder, "%s/deep/adapter", test_folder);
    check_every_grid(check_round_trip);
    /* The same bytes at every number of ranks, too. A change of the format on purpose changes this text. */
    char text[33];
    bw_hash_text(first_bytes, text);
    CHECK(strcmp(text, "df72891c0bf2e7935881870a06510b4f") == 0);
    check_once();
    return check_finish("peft");
}

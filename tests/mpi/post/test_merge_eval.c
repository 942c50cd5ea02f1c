/* test_merge_eval.c - the merge and eval commands on a tiny model, on every grid: the same bytes everywhere, a second start is done at once, other
 * settings and BufferLoRAs are refused, the dense model is the base plus the adapter's product. */
#include "../par/check.h"
#include "breakwater/io.h"
#include "breakwater/num.h"
#include "breakwater/post.h"
#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[256], model[512];

static const char *at(const char *name)
{
    static char paths[8][512];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(paths[turn], sizeof paths[turn], "%s/%s", root, name);
    return paths[turn];
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info, (void)kind, (void)where;
    return remove(path);
}

static void clear(const bw_grid *grid, const char *name)
{
    CHECK_OK(bw_barrier(grid));
    if (grid->rank == 0)
        nftw(at(name), remove_one, 16, FTW_DEPTH | FTW_PHYS);
    CHECK_OK(bw_barrier(grid));
}

static bw_hash hash_of(const char *name)
{
    bw_map map;
    bw_hash hash = {0};
    CHECK_OK(bw_map_open(&map, at(name)));
    if (!bw_error()[0]) {
        hash = bw_hash_bytes(map.data, map.size);
        bw_map_close(&map);
    }
    return hash;
}

/* The first grid says what the bytes are; all others must agree. */
static void same_bytes_as_before(const char *name, bw_hash *first)
{
    bw_hash now = hash_of(name);
    if (first->high == 0 && first->low == 0)
        *first = now;
    CHECK(now.high == first->high && now.low == first->low);
}

/* ---- inputs --------------------------------------------------------------------------------------------------------- */
static void randomise(bw_matrix *matrix, uint32_t salt)
{
    float *data = matrix->data;
    for (int64_t j = 0; j < matrix->cols; ++j)
        for (int64_t i = 0; i < matrix->rows; ++i) {
            bw_key key = {5, BW_PURPOSE_TEST, salt, 0, 0};
            uint32_t out[4];
            int64_t row = bw_bcyc_global(i, matrix->layout.mb, matrix->myrow, matrix->layout.nprow);
            int64_t col = bw_bcyc_global(j, matrix->layout.nb, matrix->mycol, matrix->layout.npcol);
            bw_rng(&key, (uint32_t)(row * matrix->layout.n + col), out);
            data[i + j * matrix->ld] = 0.1F * (bw_rng_uniform(out[0]) - 0.5F);
        }
}

static void save_adapter(const bw_grid *grid, const bw_spec *spec, const char *name, const char *targets, int r, const char *role)
{
    unsigned mask = 0;
    bw_adapter *adapter = NULL;
    CHECK_OK(bw_targets_parse(targets, &mask));
    CHECK_OK(bw_adapter_create(&adapter, grid, spec, mask, r, 2 * r, 0, 16));
    for (int i = 0; i < spec->n_layer * BW_TARGETS; ++i)
        if (adapter->pairs[i].present) {
            randomise(&adapter->pairs[i].A, (uint32_t)(2 * i + 1000 * r));
            randomise(&adapter->pairs[i].B, (uint32_t)(2 * i + 1 + 1000 * r));
        }
    snprintf(adapter->role, sizeof adapter->role, "%s", role);
    CHECK_OK(bw_peft_save(adapter, grid, spec, at(name), model, NULL));
    bw_adapter_free(&adapter);
}

static void make_inputs(const bw_grid *grid)
{
    static const char rows[] =
        "{\"instruction\": \"Say one.\"}\n{\"instruction\": \"Say two.\", \"output\": \"I can't do that.\"}\n{\"instruction\": \"Go\"}\n";
    bw_source *source = NULL;
    CHECK_OK(bw_source_open(&source, model));
    const bw_spec *spec = bw_source_spec(source);
    save_adapter(grid, spec, "user", "q,v,gate,up,down", 3, "user");
    save_adapter(grid, spec, "reinforce", "q,k,v,o,down", 5, "reinforce");
    save_adapter(grid, spec, "buffer", "q", 2, "buffer");
    if (grid->rank == 0)
        CHECK_OK(bw_file_write(at("harmful.jsonl"), rows, sizeof rows - 1, 0600));
    bw_source_close(source);
    CHECK_OK(bw_barrier(grid));
}

static void set(bw_config *config, bw_command command, const char *name, const char *value)
{
    CHECK_OK(bw_config_set(config, command, name, value));
}

static void merge_config(bw_config *config, const char *output)
{
    bw_config_init(config);
    set(config, BW_MERGE, "model", model);
    set(config, BW_MERGE, "user", at("user"));
    set(config, BW_MERGE, "reinforce", at("reinforce"));
    set(config, BW_MERGE, "block", "16");
    set(config, BW_MERGE, "output", at(output));
}

/* ---- merge ---------------------------------------------------------------------------------------------------------- */
/* Every weight of the dense model is what the base's weight and the adapter's product round to. */
static void check_dense(const bw_grid *grid, const char *folder, const char *adapter_folder, bw_dtype dtype)
{
    enum { MOST = 128 };
    static float base[MOST * MOST], stored[MOST * MOST], A[16 * MOST], B[MOST * 16];
    bw_source *before = NULL, *after = NULL;
    bw_tensors *factors = NULL;
    char name[200], path[600];
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", at(adapter_folder));
    CHECK_OK(bw_source_open(&before, model));
    CHECK_OK(bw_source_open(&after, at(folder)));
    CHECK_OK(bw_safetensors_open(&factors, path));
    for (int layer = 0; before && after && factors && layer < bw_source_spec(before)->n_layer; ++layer)
        for (int t = 0; t < BW_TARGETS; ++t) {
            int64_t out, in;
            bw_target target = (bw_target)t;
            bw_spec_shape(bw_source_spec(before), target, &out, &in);
            CHECK(out <= MOST && in <= MOST && bw_source_dtype(after, layer, target) == dtype);
            CHECK_OK(bw_source_read(before, layer, target, 0, out, 0, in, base, in));
            CHECK_OK(bw_source_read(after, layer, target, 0, out, 0, in, stored, in));
            snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_A.weight", layer, bw_target_module(target));
            const bw_tensor *a = bw_tensors_find(factors, name);
            snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_B.weight", layer, bw_target_module(target));
            const bw_tensor *b = bw_tensors_find(factors, name);
            CHECK(a && b && a->shape[0] == 8);
            if (!a || !b)
                continue;
            int64_t r = a->shape[0];
            CHECK_OK(bw_tensor_read(a, 0, r, 0, in, A, in));
            CHECK_OK(bw_tensor_read(b, 0, out, 0, r, B, r));
            /* one rounding: 2^-8 relative for bf16; fp32 adds the rounding of r products and of the sum, at 2^-24 of the largest term each */
            double unit = dtype == BW_F32 ? 0x1p-23 : 0x1p-8;
            for (int64_t i = 0; i < out * in; ++i) {
                double want = (double)base[i];
                for (int64_t k = 0; k < r; ++k)
                    want += (double)B[i / in * r + k] * (double)A[k * in + i % in];
                CHECK(fabs((double)stored[i] - want) <= unit * (fabs(want) + 0.01));
            }
        }
    bw_tensors_close(factors);
    bw_source_close(before);
    bw_source_close(after);
    CHECK_OK(bw_barrier(grid));
}

static void one_result_is_the_same_on_every_grid(const bw_grid *grid)
{
    static bw_hash adapter, weights, half;
    bw_config config;
    clear(grid, "merged");
    merge_config(&config, "merged");
    set(&config, BW_MERGE, "dense", "f32");
    CHECK_OK(bw_merge(grid, &config));
    same_bytes_as_before("merged/adapter/adapter_model.safetensors", &adapter);
    same_bytes_as_before("merged/model/model.safetensors", &weights);
    CHECK(bw_file_exists(at("merged/merge.csv")) && bw_file_exists(at("merged/report.txt")) && !bw_file_exists(at("merged/model.tmp")));
    check_dense(grid, "merged/model", "merged/adapter", BW_F32);
    CHECK_OK(bw_merge(grid, &config)); /* done: nothing happens */
    set(&config, BW_MERGE, "tau", "0.5");
    CHECK(bw_merge(grid, &config) == BW_CANTCREATE && strstr(bw_error(), "tau"));
    bw_error_clear();
    set(&config, BW_MERGE, "resume", "never");
    if (grid->rank == 0)
        CHECK_OK(bw_file_write(at("merged/notes.txt"), "mine", 4, 0644));
    CHECK_OK(bw_merge(grid, &config)); /* starting over is so with other settings, too */
    CHECK(bw_file_exists(at("merged/model/model.safetensors")) && bw_file_exists(at("merged/merge.csv")));
    set(&config, BW_MERGE, "tau", "0.01");
    CHECK_OK(bw_merge(grid, &config));
    same_bytes_as_before("merged/model/model.safetensors", &weights);
    CHECK(bw_file_exists(at("merged/notes.txt")));
    clear(grid, "merged");
    set(&config, BW_MERGE, "dense", "bf16");
    CHECK_OK(bw_merge(grid, &config));
    same_bytes_as_before("merged/model/model.safetensors", &half);
    check_dense(grid, "merged/model", "merged/adapter", BW_BF16);
    bw_config_free(&config);
}

static void a_grid_of_alpha_and_scale_gives_a_folder_each(const bw_grid *grid)
{
    bw_config config;
    clear(grid, "grid");
    merge_config(&config, "grid");
    set(&config, BW_MERGE, "alpha", "0,0.1");
    set(&config, BW_MERGE, "scale", "0.5,1");
    CHECK_OK(bw_merge(grid, &config));
    CHECK(bw_file_exists(at("grid/alpha-0_scale-0.5/merge.csv")) && bw_file_exists(at("grid/alpha-0.1_scale-1/adapter/adapter_config.json")));
    bw_hash plain = hash_of("grid/alpha-0.1_scale-0.5/adapter/adapter_model.safetensors"),
            other = hash_of("merged/adapter/adapter_model.safetensors");
    CHECK(plain.high == other.high && plain.low == other.low);
    clear(grid, "grid/alpha-0_scale-1");
    CHECK_OK(bw_merge(grid, &config)); /* only what is missing is done again */
    CHECK(bw_file_exists(at("grid/alpha-0_scale-1/merge.csv")));
    set(&config, BW_MERGE, "output", at("merged"));
    CHECK(bw_merge(grid, &config) == BW_CANTCREATE);
    bw_error_clear();
    bw_config_free(&config);
}

static void wrong_inputs_are_refused_by_all_ranks(const bw_grid *grid)
{
    bw_config config;
    clear(grid, "refused");
    merge_config(&config, "refused");
    set(&config, BW_MERGE, "user", at("buffer"));
    CHECK(bw_merge(grid, &config) == BW_USAGE && strstr(bw_error(), "BufferLoRA"));
    bw_error_clear();
    set(&config, BW_MERGE, "user", at("nowhere"));
    CHECK(bw_merge(grid, &config) == BW_NOINPUT);
    bw_error_clear();
    CHECK(!bw_file_exists(at("refused")));
    set(&config, BW_MERGE, "user", at("buffer"));
    set(&config, BW_MERGE, "allow-buffer", "true");
    CHECK_OK(bw_merge(grid, &config));
    bw_config_free(&config);
}

/* ---- eval ----------------------------------------------------------------------------------------------------------- */
static void eval_config(bw_config *config, const char *weights)
{
    char task[600];
    snprintf(task, sizeof task, "%s/../data.jsonl", model);
    bw_config_init(config);
    set(config, BW_EVAL, "model", model);
    set(config, BW_EVAL, "adapter", at("merged/adapter"));
    set(config, BW_EVAL, "harmful", at("harmful.jsonl"));
    set(config, BW_EVAL, "task", task);
    set(config, BW_EVAL, "template", "plain");
    set(config, BW_EVAL, "max-new", "3");
    set(config, BW_EVAL, "eval-batch", "4");
    set(config, BW_EVAL, "perplexity", "true");
    set(config, BW_EVAL, "block", "16");
    set(config, BW_EVAL, "weights", weights);
    set(config, BW_EVAL, "output", at("eval"));
}

static void check_summary(void)
{
    static double perplexity;
    bw_json *summary = NULL;
    CHECK_OK(bw_json_load(&summary, at("eval/summary.json")));
    CHECK(bw_json_int(bw_json_get(summary, "n_harmful"), -1) == 3);
    CHECK(bw_json_number(bw_json_get(summary, "HS"), -1) + bw_json_number(bw_json_get(summary, "refusal_rate"), -1) == 100);
    CHECK(bw_json_number(bw_json_get(summary, "FA"), -1) >= 0);
    double now = bw_json_number(bw_json_get(summary, "perplexity"), -1);
    perplexity = perplexity > 0 ? perplexity : now;
    CHECK(now > 1 && now == perplexity);
    bw_json_free(summary);
}

static void answers_are_the_same_on_every_grid(const bw_grid *grid, const char *weights)
{
    static bw_hash answers;
    struct stat info;
    bw_config config;
    clear(grid, "eval");
    eval_config(&config, weights);
    CHECK_OK(bw_eval(grid, &config));
    same_bytes_as_before("eval/answers.jsonl", &answers);
    CHECK(stat(at("eval/answers.jsonl"), &info) == 0 && (info.st_mode & 0777) == 0600);
    check_summary();
    CHECK_OK(bw_eval(grid, &config)); /* done */
    set(&config, BW_EVAL, "max-new", "5");
    CHECK(bw_eval(grid, &config) == BW_CANTCREATE && strstr(bw_error(), "max-new"));
    bw_error_clear();
    set(&config, BW_EVAL, "resume", "never");
    CHECK_OK(bw_eval(grid, &config)); /* starting over is so with other settings, too */
    set(&config, BW_EVAL, "max-new", "3");
    CHECK_OK(bw_eval(grid, &config));
    same_bytes_as_before("eval/answers.jsonl", &answers);
    bw_config_free(&config);
}

/* Two grids for each number of ranks are enough: the parts are tested on all of them. The second one, a replica a rank on pretended nodes, does
 * what depends on the layout; stopping and refusing do not. */
static void some_grids(void)
{
    const int size = bw_par_size(), nprow = size == 4 ? 2 : 1;
    for (int second = 0; second < (size > 1 ? 2 : 1); ++second) {
        bw_grid *grid = NULL;
        char shape[32];
        snprintf(shape, sizeof shape, "%dx%d", second ? 1 : nprow, second ? 1 : size / nprow);
        CHECK_OK(bw_grid_create(&grid, shape, second ? size : 1, second ? (size + 1) / 2 : 0));
        if (!grid)
            return;
        make_inputs(grid);
        one_result_is_the_same_on_every_grid(grid);
        if (!second) {
            a_grid_of_alpha_and_scale_gives_a_folder_each(grid);
            wrong_inputs_are_refused_by_all_ranks(grid);
        }
        answers_are_the_same_on_every_grid(grid, second ? "stream" : "resident");
        bw_grid_destroy(&grid);
    }
}

static void open_root(void)
{
    bw_grid *grid = NULL;
    const char *data = getenv("BW_TEST_DATA");
    snprintf(model, sizeof model, "%s/golden/tiny/model", data ? data : "tests");
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    snprintf(root, sizeof root, "/tmp/bw-merge-eval-XXXXXX");
    if (bw_par_rank() == 0)
        CHECK(mkdtemp(root) != NULL);
    CHECK_OK(bw_broadcast(grid, root, sizeof root));
    bw_grid_destroy(&grid);
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    CHECK_OK(bw_gemm_start("fp32", 1));
    bw_log_quiet(true);
    open_root();
    some_grids();
    if (bw_par_rank() == 0)
        nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    bw_gemm_stop();
    return check_finish("test_merge_eval");
}

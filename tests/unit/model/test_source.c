/* test_source.c - a model's files: both formats give the same weights, and a file that is not that model is refused by name. */
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <cmocka.h>
#include "breakwater/model.h"
#include "../../tiny_model.h"

static char folder[64], path[96];

static int remove_entry(const char *name, const struct stat *about, int kind, struct FTW *walk)
{
    (void)about, (void)kind, (void)walk;
    return remove(name);
}

static int make_folder(void **state)
{
    (void)state;
    bw_error_clear();
    snprintf(folder, sizeof folder, "/tmp/bw-test-source-XXXXXX");
    return mkdtemp(folder) ? 0 : 1;
}

static int remove_folder(void **state)
{
    (void)state;
    return nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void expect_refused(const bw_tiny *tiny, int expected, const char *word)
{
    bw_source *source;
    bw_error_clear();
    assert_int_equal(bw_tiny_model_write_as(folder, tiny, 1), BW_OK);
    assert_int_equal(bw_source_open(&source, folder), expected);
    assert_null(source);
    if (!strstr(bw_error(), word))
        fail_msg("'%s' is not in: %s", word, bw_error());
}

/* ---- a GGUF file of the same model ------------------------------------------------------------------------------- */
static void put(bw_text *text, const void *bytes, size_t length)
{
    assert_int_equal(bw_text_add(text, bytes, length), BW_OK);
}

static void put_number(bw_text *text, uint64_t value, size_t width)
{
    put(text, &value, width); /* little-endian, as the host */
}

static void put_string(bw_text *text, const char *string)
{
    put_number(text, strlen(string), 8);
    put(text, string, strlen(string));
}

static void put_u32(bw_text *text, const char *key, uint32_t value)
{
    put_string(text, key);
    put_number(text, 4, 4);
    put_number(text, value, 4);
}

static void put_f32(bw_text *text, const char *key, float value)
{
    put_string(text, key);
    put_number(text, 6, 4);
    put(text, &value, 4);
}

typedef struct gguf {
    bw_text infos, data;
    uint64_t tensors;
} gguf;

static void add_tensor(gguf *file, const char *name, const float *values, int64_t rows, int64_t cols)
{
    put_string(&file->infos, name);
    put_number(&file->infos, rows ? 2 : 1, 4);
    put_number(&file->infos, (uint64_t)cols, 8); /* the innermost first */
    if (rows)
        put_number(&file->infos, (uint64_t)rows, 8);
    put_number(&file->infos, 0, 4); /* F32 */
    put_number(&file->infos, file->data.length, 8);
    put(&file->data, values, (size_t)((rows ? rows : 1) * cols) * 4);
    while (file->data.length % 32)
        put(&file->data, "", 1);
    file->tensors++;
}

/* As llama.cpp's converter does it: W.reshape(heads, 2, half, in).swapaxes(1, 2). */
static void interleave(float *out, const float *in, int heads, int64_t cols)
{
    const int half = BW_TINY_HEAD_DIM / 2;
    for (int head = 0; head < heads; head++)
        for (int i = 0; i < half; i++)
            for (int a = 0; a < 2; a++)
                memcpy(out + (head * BW_TINY_HEAD_DIM + 2 * i + a) * cols, in + (head * BW_TINY_HEAD_DIM + a * half + i) * cols, (size_t)cols * 4);
}

static void add_layer(gguf *file, const bw_source *source, int layer)
{
    static const char *const names[BW_TARGETS] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    const bw_spec *spec = bw_source_spec(source);
    float weight[48 * 32], permuted[48 * 32];
    char name[64];
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        assert_int_equal(bw_source_read(source, layer, (bw_target)target, 0, out, 0, in, weight, in), BW_OK);
        if (target == BW_Q || target == BW_K)
            interleave(permuted, weight, target == BW_Q ? spec->n_head : spec->n_kv, in);
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, names[target]);
        add_tensor(file, name, target == BW_Q || target == BW_K ? permuted : weight, out, in);
    }
    assert_int_equal(bw_source_read_named(source, layer, "input_layernorm", 0, 1, 0, 32, weight, 32), BW_OK);
    snprintf(name, sizeof name, "blk.%d.attn_norm.weight", layer);
    add_tensor(file, name, weight, 0, 32);
    assert_int_equal(bw_source_read_named(source, layer, "post_attention_layernorm", 0, 1, 0, 32, weight, 32), BW_OK);
    snprintf(name, sizeof name, "blk.%d.ffn_norm.weight", layer);
    add_tensor(file, name, weight, 0, 32);
}

/* divisors: rope_freqs.weight, or NULL. */
static void write_gguf(const bw_source *source, const char *architecture, const float *divisors)
{
    const bw_spec *spec = bw_source_spec(source);
    gguf file = {.tensors = 0};
    bw_text head = {0};
    float *table = bw_calloc(spec->vocab * spec->d_model, sizeof *table, "test");
    assert_int_equal(bw_source_read_named(source, -1, "embed_tokens", 0, spec->vocab, 0, 32, table, 32), BW_OK);
    add_tensor(&file, "token_embd.weight", table, spec->vocab, 32);
    for (int layer = 0; layer < spec->n_layer; layer++)
        add_layer(&file, source, layer);
    assert_int_equal(bw_source_read_named(source, -1, "norm", 0, 1, 0, 32, table, 32), BW_OK);
    add_tensor(&file, "output_norm.weight", table, 0, 32);
    if (divisors)
        add_tensor(&file, "rope_freqs.weight", divisors, 0, BW_TINY_HEAD_DIM / 2);
    put(&head, "GGUF\3\0\0\0", 8);
    put_number(&head, file.tensors, 8);
    put_number(&head, 10, 8);
    put_string(&head, "general.architecture");
    put_number(&head, 8, 4);
    put_string(&head, architecture);
    put_u32(&head, "llama.block_count", (uint32_t)spec->n_layer);
    put_u32(&head, "llama.context_length", (uint32_t)spec->max_positions);
    put_u32(&head, "llama.embedding_length", (uint32_t)spec->d_model);
    put_u32(&head, "llama.feed_forward_length", (uint32_t)spec->d_ff);
    put_u32(&head, "llama.attention.head_count", (uint32_t)spec->n_head);
    put_u32(&head, "llama.attention.head_count_kv", (uint32_t)spec->n_kv);
    put_f32(&head, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    put_f32(&head, "llama.rope.freq_base", (float)spec->rope_theta);
    put_u32(&head, "tokenizer.ggml.eos_token_id", BW_TINY_EOS);
    put(&head, file.infos.data, file.infos.length);
    while (head.length % 32)
        put(&head, "", 1);
    put(&head, file.data.data, file.data.length);
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    assert_int_equal(bw_file_write(path, head.data, head.length, 0644), BW_OK);
    bw_text_free(&head);
    bw_text_free(&file.infos);
    bw_text_free(&file.data);
    bw_free(table);
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */
static void the_configuration_gives_the_sizes(void **state)
{
    (void)state;
    bw_source *source;
    assert_int_equal(bw_tiny_model_write(folder, 1), BW_OK);
    assert_int_equal(bw_source_open(&source, folder), BW_OK);
    const bw_spec *spec = bw_source_spec(source);
    assert_string_equal(spec->family, "llama");
    assert_int_equal(spec->n_layer, 2);
    assert_int_equal(spec->n_head, 4);
    assert_int_equal(spec->n_kv, 2);
    assert_int_equal(spec->head_dim, 8);
    assert_int_equal(spec->vocab, 264);
    assert_true(spec->tied && spec->rope_factor == 0 && spec->norm_eps == 1e-5);
    assert_int_equal(spec->n_eos, 1);
    assert_int_equal(spec->eos[0], BW_TINY_EOS);
    bw_source_close(source);
}

/* Every row and column range, so that a permutation that is undone for whole matrices only would show. */
static void compare_target(const bw_source *a, const bw_source *b, int layer, bw_target target)
{
    int64_t out, in;
    float x[48 * 32], y[48 * 32];
    bw_spec_shape(bw_source_spec(a), target, &out, &in);
    for (int64_t row = 0; row < out; row += 3)
        for (int64_t rows = 1; row + rows <= out; rows += 5) {
            const int64_t col = (row + rows) % (in - 7), cols = 7;
            assert_int_equal(bw_source_read(a, layer, target, row, rows, col, cols, x, cols), BW_OK);
            assert_int_equal(bw_source_read(b, layer, target, row, rows, col, cols, y, cols), BW_OK);
            assert_memory_equal(x, y, (size_t)(rows * cols) * sizeof *x);
        }
}

static void a_gguf_file_and_a_folder_give_the_same_bits(void **state)
{
    (void)state;
    bw_source *a, *b;
    assert_int_equal(bw_tiny_model_write(folder, 1), BW_OK);
    assert_int_equal(bw_source_open(&a, folder), BW_OK);
    write_gguf(a, "llama", NULL);
    if (bw_source_open(&b, path) != BW_OK)
        fail_msg("%s", bw_error());
    const bw_spec *x = bw_source_spec(a), *y = bw_source_spec(b);
    assert_true(x->norm_eps == y->norm_eps && x->rope_theta == y->rope_theta); /* 1e-5 as a decimal and as a float */
    assert_true(x->tied == y->tied && x->vocab == y->vocab && x->max_positions == y->max_positions && x->eos[0] == y->eos[0]);
    for (int layer = 0; layer < x->n_layer; layer++)
        for (int target = 0; target < BW_TARGETS; target++)
            compare_target(a, b, layer, (bw_target)target);
    bw_source_close(a);
    bw_source_close(b);
}

static void llama3_frequencies_of_a_gguf_file_become_their_factor(void **state)
{
    (void)state;
    bw_source *a, *b;
    bw_tiny tiny = BW_TINY;
    tiny.extra_config = "\"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 500000.0, \"factor\": 8.0, \"low_freq_factor\": 1.0, "
                        "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192},";
    assert_int_equal(bw_tiny_model_write_as(folder, &tiny, 1), BW_OK);
    assert_int_equal(bw_source_open(&a, folder), BW_OK);
    assert_true(bw_source_spec(a)->rope_factor == 8 && bw_source_spec(a)->rope_theta == 500000);
    float divisors[BW_TINY_HEAD_DIM / 2];
    for (int i = 0; i < BW_TINY_HEAD_DIM / 2; i++) { /* llama.cpp's converter */
        const double wavelength = 2 * M_PI * pow(500000, 2.0 * i / BW_TINY_HEAD_DIM), smooth = (8192 / wavelength - 1) / 3;
        divisors[i] = (float)(wavelength < 8192 / 4.0 ? 1 : wavelength > 8192 ? 8 : 1 / ((1 - smooth) / 8 + smooth));
    }
    write_gguf(a, "llama", divisors);
    if (bw_source_open(&b, path) != BW_OK)
        fail_msg("%s", bw_error());
    assert_true(bw_source_spec(b)->rope_factor == 8 && bw_source_spec(b)->rope_high == 4 && bw_source_spec(b)->rope_original == 8192);
    bw_source_close(b);
    divisors[1] = 3; /* no llama3 scaling gives this beside 8 */
    write_gguf(a, "llama", divisors);
    assert_int_equal(bw_source_open(&b, path), BW_DATA);
    assert_non_null(strstr(bw_error(), "rope_freqs.weight[1]"));
    bw_source_close(a);
}

static void tensors_that_do_not_fit_the_model_are_refused_by_name(void **state)
{
    (void)state;
    bw_tiny tiny = BW_TINY;
    tiny.omit = "model.layers.1.mlp.up_proj.weight";
    expect_refused(&tiny, BW_DATA, "model.layers.1.mlp.up_proj.weight is missing");
    tiny = BW_TINY;
    tiny.misshape = "model.layers.0.self_attn.k_proj.weight";
    expect_refused(&tiny, BW_DATA, "model.layers.0.self_attn.k_proj.weight is 17 x 32; the configuration asks for 16 x 32");
    tiny = BW_TINY;
    tiny.surplus = "model.layers.2.mlp.up_proj.weight";
    expect_refused(&tiny, BW_DATA, "model.layers.2.mlp.up_proj.weight does not belong");
    tiny = BW_TINY;
    tiny.surplus = "model.layers.0.self_attn.q_proj.bias";
    expect_refused(&tiny, BW_DATA, "q_proj.bias");
    tiny = BW_TINY;
    tiny.tied = false;
    tiny.omit = "lm_head.weight";
    expect_refused(&tiny, BW_DATA, "lm_head.weight is missing");
}

static void configurations_that_we_do_not_compute_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *config, *word;
    } cases[] = {
        {"\"attention_bias\": true,", "attention_bias"},
        {"\"mlp_bias\": true,", "mlp_bias"},
        {"\"quantization_config\": {\"bits\": 4},", "quantization_config"},
        {"\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4.0},", "yarn"},
        {"\"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 4.0},", "low_freq_factor"},
    };
    bw_tiny tiny = BW_TINY;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny.extra_config = cases[i].config;
        expect_refused(&tiny, BW_DATA, cases[i].word);
    }
    tiny = BW_TINY;
    tiny.architecture = "MambaForCausalLM";
    expect_refused(&tiny, BW_DATA, "'MambaForCausalLM' is not supported; supported: LlamaForCausalLM");
    tiny = BW_TINY;
    tiny.claimed_head_dim = 512; /* blocks of attention lie on the stack */
    expect_refused(&tiny, BW_DATA, "head dimension is 512, or is not given; expected 1 to 256");
    tiny = BW_TINY;
    tiny.n_kv = 3;
    expect_refused(&tiny, BW_DATA, "4 attention heads cannot share 3");
    tiny = BW_TINY;
    tiny.n_head = 0;
    expect_refused(&tiny, BW_DATA, "number of attention heads is 0");
}

static void an_unknown_gguf_architecture_is_refused_by_name(void **state)
{
    (void)state;
    bw_source *a, *b;
    assert_int_equal(bw_tiny_model_write(folder, 1), BW_OK);
    assert_int_equal(bw_source_open(&a, folder), BW_OK);
    write_gguf(a, "mamba", NULL);
    assert_int_equal(bw_source_open(&b, path), BW_DATA);
    assert_non_null(strstr(bw_error(), "'mamba' is not supported; supported: llama"));
    bw_source_close(a);
}

static void a_missing_model_is_no_input(void **state)
{
    (void)state;
    bw_source *source;
    assert_int_equal(bw_source_open(&source, "/nowhere/at/all"), BW_NOINPUT);
    assert_non_null(strstr(bw_error(), "/nowhere/at/all"));
    bw_error_clear();
    assert_int_equal(bw_source_open(&source, folder), BW_NOINPUT); /* a folder without config.json */
    assert_non_null(strstr(bw_error(), "config.json"));
}

static void a_weight_that_is_not_a_number_is_named_with_its_place(void **state)
{
    (void)state;
    bw_source *source;
    bw_tiny tiny = BW_TINY;
    float values[48 * 32];
    tiny.poison = "model.layers.1.mlp.down_proj.weight";
    assert_int_equal(bw_tiny_model_write_as(folder, &tiny, 1), BW_OK);
    assert_int_equal(bw_source_open(&source, folder), BW_OK);
    assert_int_equal(bw_source_read(source, 1, BW_DOWN, 1, 31, 0, 48, values, 48), BW_OK);
    assert_int_equal(bw_source_read(source, 1, BW_DOWN, 0, 2, 3, 10, values, 10), BW_DATA);
    assert_non_null(strstr(bw_error(), "model.layers.1.mlp.down_proj.weight holds"));
    assert_non_null(strstr(bw_error(), "row 0, column 5"));
    bw_source_close(source);
}

static void a_tied_head_that_is_written_all_the_same_is_no_surplus(void **state)
{
    (void)state;
    bw_source *source;
    bw_tiny tiny = BW_TINY;
    tiny.surplus = "lm_head.weight";
    assert_int_equal(bw_tiny_model_write_as(folder, &tiny, 1), BW_OK);
    assert_int_equal(bw_source_open(&source, folder), BW_OK);
    bw_source_close(source);
}

static void fingerprints_tell_models_apart(void **state)
{
    (void)state;
    bw_hash hashes[3];
    for (int i = 0; i < 3; i++) {
        bw_source *source;
        assert_int_equal(bw_tiny_model_write(folder, i == 2 ? 7 : 1), BW_OK);
        assert_int_equal(bw_source_open(&source, folder), BW_OK);
        hashes[i] = bw_source_fingerprint(source);
        bw_source_close(source);
    }
    assert_memory_equal(&hashes[0], &hashes[1], sizeof *hashes);
    assert_memory_not_equal(&hashes[0], &hashes[2], sizeof *hashes);
}

static void a_written_configuration_says_the_new_type_and_keeps_the_rest(void **state)
{
    (void)state;
    bw_source *source;
    bw_json *config;
    char copy[96], file[128];
    bw_tiny tiny = BW_TINY;
    tiny.extra_config = "\"note\": [1, 2.5, null, {\"deep\": \"caf\\u00e9 \\\"quoted\\\"\"}], \"dtype\": \"float32\",";
    assert_int_equal(bw_tiny_model_write_as(folder, &tiny, 1), BW_OK);
    assert_int_equal(bw_source_open(&source, folder), BW_OK);
    snprintf(copy, sizeof copy, "%s/copy", folder);
    assert_int_equal(bw_source_write_config(source, copy, BW_BF16), BW_OK);
    snprintf(file, sizeof file, "%s/config.json", copy);
    assert_int_equal(bw_json_load(&config, file), BW_OK);
    assert_string_equal(bw_json_text(bw_json_get(config, "torch_dtype"), NULL), "bfloat16");
    assert_string_equal(bw_json_text(bw_json_get(config, "dtype"), NULL), "bfloat16");
    assert_true(bw_json_number(bw_json_get(config, "rms_norm_eps"), 0) == 1e-5);
    const bw_json *note = bw_json_get(config, "note");
    assert_int_equal(bw_json_size(note), 4);
    assert_true(bw_json_number(bw_json_at(note, 1), 0) == 2.5);
    assert_string_equal(bw_json_text(bw_json_get(bw_json_at(note, 3), "deep"), NULL), "caf\u00e9 \"quoted\"");
    bw_json_free(config);
    snprintf(file, sizeof file, "%s/tokenizer.json", copy);
    assert_true(bw_file_exists(file));
    bw_source_close(source);
}

static void targets_are_read_by_any_of_their_names(void **state)
{
    (void)state;
    unsigned mask;
    assert_int_equal(bw_targets_parse("q,v_proj, mlp.gate_proj,up,down", &mask), BW_OK);
    assert_int_equal(mask, 1u << BW_Q | 1u << BW_V | 1u << BW_GATE | 1u << BW_UP | 1u << BW_DOWN);
    assert_int_equal(bw_targets_parse("q,w", &mask), BW_USAGE);
    assert_non_null(strstr(bw_error(), "'w'"));
    assert_int_equal(bw_targets_parse("", &mask), BW_USAGE);
}

static int nothing_is_leaked(void **state)
{
    (void)state;
    return bw_mem_now() == 0 ? 0 : 1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_configuration_gives_the_sizes, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_gguf_file_and_a_folder_give_the_same_bits, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(llama3_frequencies_of_a_gguf_file_become_their_factor, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(tensors_that_do_not_fit_the_model_are_refused_by_name, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(configurations_that_we_do_not_compute_are_refused_by_name, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(an_unknown_gguf_architecture_is_refused_by_name, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_missing_model_is_no_input, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_weight_that_is_not_a_number_is_named_with_its_place, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_tied_head_that_is_written_all_the_same_is_no_surplus, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(fingerprints_tell_models_apart, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_written_configuration_says_the_new_type_and_keeps_the_rest, make_folder, remove_folder),
        cmocka_unit_test(targets_are_read_by_any_of_their_names),
    };
    return cmocka_run_group_tests(tests, NULL, nothing_is_leaked);
}

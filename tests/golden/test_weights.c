/* Every weight of the real model, bit for bit: XXH3-128 of each tensor's fp32 bytes as transformers holds them after reading the same GGUF
 * (tests/golden/make.py weights). BW_MODEL may name the GGUF or a Hugging Face folder of it; without it the test is skipped. */
#include "golden.h"

static bw_source *source;
static bw_json *golden;

static void same_bits(const char *name, const float *values, int64_t count)
{
    const char *want = bw_json_text(bw_json_get(bw_json_get(golden, "tensors"), name), NULL);
    char have[33];
    if (!want)
        fail_msg("weights.json has no %s", name);
    bw_hash_text(bw_hash_bytes(values, (size_t)count * sizeof *values), have);
    if (strcmp(have, want) != 0)
        fail_msg("%s: the hash of the weights is %s, transformers has %s", name, have, want);
}

static void check_target(int layer, bw_target target)
{
    char name[120];
    int64_t out, in;
    float *values;
    bw_spec_shape(bw_source_spec(source), target, &out, &in);
    must(BW_NEW(values, out * in, "test"));
    must(bw_source_read(source, layer, target, 0, out, 0, in, values, in));
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, bw_target_module(target));
    same_bits(name, values, out * in);
    bw_free(values);
}

/* layer -1: outside the layers. */
static void check_named(int layer, const char *which, int64_t rows, int64_t cols)
{
    char name[120];
    float *values;
    must(BW_NEW(values, rows * cols, "test"));
    must(bw_source_read_named(source, layer, which, 0, rows, 0, cols, values, cols));
    if (layer >= 0)
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, which);
    else
        snprintf(name, sizeof name, "model.%s.weight", which);
    same_bits(name, values, rows * cols);
    bw_free(values);
}

static void weights_are_bit_for_bit_those_of_transformers(void **state)
{
    (void)state;
    const bw_spec *spec = bw_source_spec(source);
    int64_t tensors = 2;
    check_named(-1, "embed_tokens", spec->vocab, spec->d_model);
    check_named(-1, "norm", 1, spec->d_model);
    for (int layer = 0; layer < spec->n_layer; layer++, tensors += BW_TARGETS + 2) {
        check_named(layer, "input_layernorm", 1, spec->d_model);
        check_named(layer, "post_attention_layernorm", 1, spec->d_model);
        for (int target = 0; target < BW_TARGETS; target++)
            check_target(layer, (bw_target)target);
    }
    assert_int_equal(tensors, bw_json_size(bw_json_get(golden, "tensors")));
}

int main(void)
{
    const char *model = getenv("BW_MODEL");
    if (!model || !bw_file_exists(model)) {
        printf("skipped: BW_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf\n");
        return 77;
    }
    if (bw_source_open(&source, model) != BW_OK || bw_json_load(&golden, golden_path("weights.json")) != BW_OK) {
        fprintf(stderr, "%s\n", bw_error());
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(weights_are_bit_for_bit_those_of_transformers)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bw_json_free(golden);
    bw_source_close(source);
    return failed != 0;
}

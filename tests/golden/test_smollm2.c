/* The real model: logits within 1e-3 of transformers (eager, fp32) at 64 places of every row of 20 prompts, and the greedy
 * continuation of 64 tokens the same (tests/golden/make.py smollm2). Needs the model file: BW_MODEL, else skipped. */
#include "golden.h"

static bw_grid *grid;
static bw_store *store;
static bw_tensors *expected;
enum { PROMPTS = 20, NEW = 64 };

static int32_t *read_tokens(const char *what, int prompt, int32_t *count)
{
    char name[32];
    int64_t rows, cols;
    snprintf(name, sizeof name, "%02d.%s", prompt, what);
    float *values = golden_read(expected, name, &rows, &cols);
    int32_t *tokens;
    must(BW_NEW(tokens, cols, "test"));
    for (int64_t i = 0; i < cols; i++)
        tokens[i] = (int32_t)values[i];
    *count = (int32_t)cols;
    bw_free(values);
    return tokens;
}

static double largest_difference(bw_transformer *transformer, int prompt)
{
    int32_t count, n_columns;
    int32_t *tokens = read_tokens("tokens", prompt, &count), *columns = read_tokens("columns", prompt, &n_columns);
    char name[32];
    int64_t rows, cols, V = bw_store_spec(store)->vocab;
    snprintf(name, sizeof name, "%02d.logits", prompt);
    float *want = golden_read(expected, name, &rows, &cols), *logits;
    assert_int_equal(rows, count);
    must(BW_NEW(logits, count * V, "test"));
    bw_batch batch;
    golden_batch(&batch, tokens, count);
    must(bw_transformer_logits(transformer, &batch, logits));
    double worst = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            worst = larger(worst, fabs((double)logits[r * V + columns[c]] - want[r * cols + c]));
    bw_batch_free(&batch);
    bw_free(tokens);
    bw_free(columns);
    bw_free(want);
    bw_free(logits);
    return worst;
}

static void logits_are_those_of_transformers(void **state)
{
    (void)state;
    bw_transformer *transformer;
    must(bw_transformer_create(&transformer, store, NULL, 128, 128, false, false));
    double worst = 0;
    for (int i = 0; i < PROMPTS; i++)
        worst = larger(worst, largest_difference(transformer, i));
    printf("largest difference of a logit %.1e\n", worst);
    assert_true(worst <= 1e-3);
    bw_transformer_free(&transformer);
}

static void greedy_continuations_are_those_of_transformers(void **state)
{
    (void)state;
    bw_tokens prompts[PROMPTS];
    bw_answer *answers;
    must(BW_NEW(answers, PROMPTS, "test"));
    for (int i = 0; i < PROMPTS; i++) {
        int32_t count;
        prompts[i] = (bw_tokens){.ids = read_tokens("tokens", i, &count)};
        prompts[i].count = count;
    }
    must(bw_generate(grid, store, prompts, PROMPTS, 8, NEW, NULL, 0, answers, NULL, NULL));
    for (int i = 0; i < PROMPTS; i++) {
        int32_t count;
        int32_t *want = read_tokens("greedy", i, &count);
        assert_int_equal(answers[i].count, count);
        for (int32_t j = 0; j < count; j++)
            if (answers[i].tokens[j] != want[j])
                fail_msg("prompt %d: token %d of the continuation is %d, transformers says %d", i, j, answers[i].tokens[j], want[j]);
        bw_free(want);
        bw_free(prompts[i].ids);
    }
    bw_answers_free(answers, PROMPTS);
}

int main(int argc, char **argv)
{
    const char *model = getenv("BW_MODEL");
    if (!model || !bw_file_exists(model)) {
        printf("skipped: BW_MODEL does not name SmolLM2-135M-Instruct.Q4_1.gguf\n");
        return 77;
    }
    bw_config config;
    bw_config_init(&config);
    bw_source *source = NULL;
    int status = bw_par_start(&argc, &argv);
    if (status == BW_OK)
        status = bw_gemm_start("fp32", 2);
    if (status == BW_OK)
        status = bw_grid_create(&grid, "auto", 0, 0);
    if (status == BW_OK)
        status = bw_source_open(&source, model);
    if (status == BW_OK)
        status = bw_store_open(&store, grid, source, &config, false, NULL, NULL, 0);
    if (status == BW_OK)
        status = bw_safetensors_open(&expected, golden_path("smollm2.safetensors"));
    if (status != BW_OK) {
        fprintf(stderr, "%s\n", bw_error());
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(logits_are_those_of_transformers),
                                       cmocka_unit_test(greedy_continuations_are_those_of_transformers)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bw_tensors_close(expected);
    bw_store_close(&store);
    bw_source_close(source);
    bw_grid_destroy(&grid);
    bw_config_free(&config);
    bw_par_finish();
    return failed != 0;
}

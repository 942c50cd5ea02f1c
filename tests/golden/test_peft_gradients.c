/* Loss, every LoRA gradient and five AdamW steps are PEFT's, on a tiny random Llama (tests/golden/make.py tiny).
 * fp32, no dropout. Both sides round in fp32, and sums of some hundred terms of mixed
 * sign differ by a few 1e-6 relative; 1e-4 leaves room for other summation orders, a wrong factor or term does not pass. */
#include "golden.h"
#include "breakwater/train.h"

static bw_grid *grid;
static bw_config config;

static char *copy(const char *text)
{
    char *made = strdup(text);
    assert_non_null(made);
    return made;
}

static void set(const char *name, const char *value)
{
    must(bw_config_set(&config, BW_TRAIN, name, value));
}

static void gradients_are_pefts(void **state)
{
    (void)state;
    bw_source *source;
    bw_store *store;
    bw_adapter *adapter;
    bw_lora *lora;
    bw_transformer *transformer;
    bw_tokenizer *tokenizer;
    bw_dataset data;
    bw_tensors *expected;
    bw_batch batch;
    bw_list paths = {.items = {copy(golden_path("tiny/data.jsonl"))}, .count = 1};
    must(bw_safetensors_open(&expected, golden_path("tiny/expected.safetensors")));
    must(bw_source_open(&source, golden_path("tiny/model")));
    must(bw_tokenizer_open(&tokenizer, golden_path("tiny/model")));
    must(bw_dataset_load(&data, tokenizer, &paths, BW_TEMPLATE_PLAIN, 512, "error"));
    must(bw_peft_load(&adapter, grid, bw_source_spec(source), golden_path("tiny/init"), 16));
    adapter->dropout = 0;
    must(bw_store_open(&store, grid, source, &config, true, NULL, NULL, 0));
    must(bw_lora_create(&lora, grid, adapter));
    must(bw_transformer_create(&transformer, store, lora, data.token_count, data.token_count, true, false));
    must(bw_batch_create(&batch, data.token_count, (int32_t)data.count));
    int64_t samples[16];
    int32_t group[16] = {0};
    for (int64_t i = 0; i < data.count; i++)
        samples[i] = i;
    must(bw_batch_fill(&batch, &data, samples, group, data.count, 0));

    int64_t rows, cols;
    float *answers = golden_read(expected, "answers", &rows, &cols), *loss_sum = golden_read(expected, "loss_sum", &rows, &cols);
    assert_int_equal(batch.answers, (int64_t)answers[0]);
    bw_pass pass = {.loss_scale = 1.0 / answers[0]};
    double loss;
    must(bw_transformer_train(transformer, &batch, &pass, &loss));
    assert_true(fabs(loss / loss_sum[0] - 1) < 1e-5);
    double worst = 0;
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++) {
        const bw_lora_view *view = bw_lora_at(lora, i / BW_TARGETS, (bw_target)(i % BW_TARGETS));
        assert_non_null(view);
        for (int b = 0; b < 2; b++) {
            char name[200];
            snprintf(name, sizeof name, "gradient.base_model.model.model.layers.%d.%s.lora_%c.weight", i / BW_TARGETS,
                     bw_target_module((bw_target)(i % BW_TARGETS)), "AB"[b]);
            float *want = golden_read(expected, name, &rows, &cols);
            double error = relative_error(b ? view->dB : view->dA, want, rows * cols);
            worst = larger(worst, error);
            if (!(error <= 1e-4))
                fail_msg("%s: relative error %.2e", name, error);
            bw_free(want);
        }
    }
    printf("loss %.6f, largest relative error of a gradient %.1e\n", loss / answers[0], worst);
    bw_free(answers);
    bw_free(loss_sum);
    bw_batch_free(&batch);
    bw_transformer_free(&transformer);
    bw_lora_free(&lora);
    bw_store_close(&store);
    bw_adapter_free(&adapter);
    bw_dataset_free(&data);
    bw_tokenizer_free(tokenizer);
    bw_source_close(source);
    bw_tensors_close(expected);
    free(paths.items[0]);
}

static void five_adamw_steps_are_pefts(void **state)
{
    (void)state;
    char folder[] = "/tmp/breakwater-golden-XXXXXX", path[4200];
    assert_non_null(mkdtemp(folder));
    set("model", golden_path("tiny/model"));
    set("data", golden_path("tiny/data.jsonl"));
    set("init-adapter", golden_path("tiny/init"));
    set("output", folder);
    static const char *const settings[][2] = {{"stage", "sft"},      {"steps", "5"},           {"batch", "6"},  {"micro-batches", "3"},
                                              {"lr", "2e-3"},        {"schedule", "constant"}, {"warmup", "0"}, {"lora-dropout", "0"},
                                              {"template", "plain"}, {"max-grad-norm", "1"}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        set(settings[i][0], settings[i][1]);
    must(bw_train(grid, &config));

    bw_tensors *expected, *mine;
    snprintf(path, sizeof path, "%s/adapter/adapter_model.safetensors", folder);
    must(bw_safetensors_open(&mine, path));
    must(bw_safetensors_open(&expected, golden_path("tiny/expected.safetensors")));
    double worst = 0;
    int64_t rows, cols, count = bw_tensors_count(mine);
    assert_int_equal(count, 3 * BW_TARGETS * 2);
    for (int64_t i = 0; i < count; i++) {
        char name[300];
        snprintf(name, sizeof name, "after.%s", bw_tensors_at(mine, i)->name);
        float *want = golden_read(expected, name, &rows, &cols), *have = golden_read(mine, bw_tensors_at(mine, i)->name, &rows, &cols);
        double error = relative_error(have, want, rows * cols);
        worst = larger(worst, error);
        if (!(error <= 1e-3))
            fail_msg("%s: relative error %.2e", name, error);
        bw_free(want);
        bw_free(have);
    }
    printf("largest relative error of a factor after five steps %.1e\n", worst);
    bw_tensors_close(mine);
    bw_tensors_close(expected);
}

int main(int argc, char **argv)
{
    bw_config_init(&config);
    if (bw_par_start(&argc, &argv) != BW_OK || bw_gemm_start("fp32", 1) != BW_OK || bw_grid_create(&grid, "auto", 0, 0) != BW_OK)
        return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(gradients_are_pefts), cmocka_unit_test(five_adamw_steps_are_pefts)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bw_grid_destroy(&grid);
    bw_config_free(&config);
    bw_par_finish();
    return failed != 0;
}

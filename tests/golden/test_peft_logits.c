/* An adapter that PEFT saved, read here: every logit is PEFT's within 1e-3 (tests/golden/make.py tiny_logits), with the adapter beside the
 * weights, as training runs it, and added to them, as evaluation does. Logits reach 7 and the adapter moves them by up to 2.3. Measured: 2e-5. */
#include "golden.h"

enum { ROWS = 6, LONGEST = 64 };
static bw_grid *grid;
static bw_config config;
static bw_source *source;
static bw_adapter *adapter;
static bw_tensors *expected;

static double largest_difference(bw_transformer *transformer, int row)
{
    char name[32];
    int64_t rows, cols, count;
    int32_t ids[LONGEST];
    snprintf(name, sizeof name, "%02d.logits", row);
    float *want = golden_read(expected, name, &rows, &cols), *have;
    snprintf(name, sizeof name, "%02d.tokens", row);
    float *tokens = golden_read(expected, name, &(int64_t){0}, &count);
    assert_true(count == rows && count <= LONGEST && cols == bw_source_spec(source)->vocab);
    for (int64_t i = 0; i < count; i++)
        ids[i] = (int32_t)tokens[i];
    bw_batch batch;
    golden_batch(&batch, ids, (int32_t)count);
    must(BW_NEW(have, rows * cols, "test"));
    must(bw_transformer_logits(transformer, &batch, have));
    double worst = 0;
    for (int64_t i = 0; i < rows * cols; i++)
        worst = larger(worst, fabs((double)have[i] - want[i]));
    bw_batch_free(&batch);
    bw_free(want);
    bw_free(have);
    bw_free(tokens);
    return worst;
}

static void check(const char *how, const bw_adapter *const *folded, int n_folded, bw_lora *lora)
{
    const double factor = 1;
    bw_store *store;
    bw_transformer *transformer;
    must(bw_store_open(&store, grid, source, &config, false, folded, &factor, n_folded));
    must(bw_transformer_create(&transformer, store, lora, LONGEST, LONGEST, false, false));
    double worst = 0;
    for (int row = 0; row < ROWS; row++)
        worst = larger(worst, largest_difference(transformer, row));
    printf("adapter %s: largest difference of a logit %.1e\n", how, worst);
    assert_true(worst <= 1e-3);
    bw_transformer_free(&transformer);
    bw_store_close(&store);
}

static void an_adapter_beside_the_weights_gives_pefts_logits(void **state)
{
    (void)state;
    bw_lora *lora;
    must(bw_lora_create(&lora, grid, adapter));
    check("beside the weights", NULL, 0, lora);
    bw_lora_free(&lora);
}

static void an_adapter_added_to_the_weights_gives_pefts_logits(void **state)
{
    (void)state;
    const bw_adapter *folded[] = {adapter};
    check("added to the weights", folded, 1, NULL);
}

int main(int argc, char **argv)
{
    bw_config_init(&config);
    int status = bw_par_start(&argc, &argv);
    if (status == BW_OK)
        status = bw_gemm_start("fp32", 1);
    if (status == BW_OK)
        status = bw_grid_create(&grid, "auto", 0, 0);
    if (status == BW_OK)
        status = bw_source_open(&source, golden_path("tiny/model"));
    if (status == BW_OK)
        status = bw_peft_load(&adapter, grid, bw_source_spec(source), golden_path("tiny/init"), 16);
    if (status == BW_OK)
        status = bw_safetensors_open(&expected, golden_path("tiny/logits.safetensors"));
    if (status != BW_OK) {
        fprintf(stderr, "%s\n", bw_error());
        return 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_adapter_beside_the_weights_gives_pefts_logits),
                                       cmocka_unit_test(an_adapter_added_to_the_weights_gives_pefts_logits)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bw_tensors_close(expected);
    bw_adapter_free(&adapter);
    bw_source_close(source);
    bw_grid_destroy(&grid);
    bw_config_free(&config);
    bw_par_finish();
    return failed != 0;
}

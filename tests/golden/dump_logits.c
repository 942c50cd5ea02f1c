/* Our logits in a file, for check_logits.py to compare with those of transformers and PEFT:
 *
 *   dump_logits MODEL ADAPTER|- PROMPTS.safetensors OUT.safetensors
 *
 * PROMPTS has tensors NN.tokens (ids as numbers, as in smollm2.safetensors); OUT gets NN.logits, [tokens][vocabulary], fp32. The adapter is added
 * to the weights, as `breakwater eval` does. */
#include "breakwater/base.h"
#include "breakwater/io.h"
#include "breakwater/model.h"
#include "breakwater/num.h"
#include "breakwater/par.h"
#include <string.h>

enum { MOST_PROMPTS = 100 };
typedef struct dump {
    bw_grid *grid;
    bw_source *source;
    bw_adapter *adapter;
    bw_store *store;
    bw_tensors *prompts;
    bw_tensor_spec out[MOST_PROMPTS];
    char names[MOST_PROMPTS][16];
    float *logits[MOST_PROMPTS];
    int count;
} dump;

static int fill(bw_batch *batch, const bw_tensor *tokens)
{
    int status;
    float *ids;
    BW_TRY(BW_NEW(ids, tokens->shape[0], "dump"));
    BW_GO(bw_tensor_read(tokens, 0, 1, 0, tokens->shape[0], ids, tokens->shape[0]));
    BW_GO(bw_batch_create(batch, tokens->shape[0], 1));
    batch->T = tokens->shape[0];
    batch->n_seq = 1;
    batch->offsets[1] = (int32_t)batch->T;
    for (int32_t i = 0; i < (int32_t)batch->T; i++) {
        batch->tokens[i] = (int32_t)ids[i];
        batch->positions[i] = i;
        batch->targets[i] = -1;
    }
done:
    bw_free(ids);
    return status;
}

static int run_prompt(dump *d, const bw_tensor *tokens)
{
    const int64_t vocab = bw_source_spec(d->source)->vocab, rows = tokens->shape[0];
    bw_transformer *transformer = NULL;
    bw_batch batch = {0};
    int status, at = d->count++;
    BW_GO(fill(&batch, tokens));
    BW_GO(BW_NEW(d->logits[at], rows * vocab, "dump"));
    BW_GO(bw_transformer_create(&transformer, d->store, NULL, rows, rows, false, false));
    BW_GO(bw_transformer_logits(transformer, &batch, d->logits[at]));
    snprintf(d->names[at], sizeof d->names[at], "%.2s.logits", tokens->name);
    d->out[at] = (bw_tensor_spec){.name = d->names[at], .dtype = BW_F32, .n_dims = 2, .shape = {rows, vocab}, .data = d->logits[at]};
done:
    bw_transformer_free(&transformer);
    bw_batch_free(&batch);
    return status;
}

static int run(dump *d, const bw_config *config, char **argv)
{
    const double factor = 1;
    const bool adapted = strcmp(argv[2], "-") != 0;
    BW_TRY(bw_gemm_start("fp32", 1));
    BW_TRY(bw_grid_create(&d->grid, "auto", 0, 0));
    BW_TRY(bw_source_open(&d->source, argv[1]));
    if (adapted)
        BW_TRY(bw_peft_load(&d->adapter, d->grid, bw_source_spec(d->source), argv[2], (int)config->block));
    const bw_adapter *folded[] = {d->adapter};
    BW_TRY(bw_store_open(&d->store, d->grid, d->source, config, false, folded, &factor, adapted));
    BW_TRY(bw_safetensors_open(&d->prompts, argv[3]));
    for (int64_t i = 0; i < bw_tensors_count(d->prompts) && d->count < MOST_PROMPTS; i++)
        if (strcmp(bw_tensors_at(d->prompts, i)->name + 2, ".tokens") == 0)
            BW_TRY(run_prompt(d, bw_tensors_at(d->prompts, i)));
    return bw_safetensors_write(argv[4], d->out, d->count, NULL, 0644);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "dump_logits MODEL ADAPTER|- PROMPTS.safetensors OUT.safetensors\n");
        return BW_USAGE;
    }
    dump d = {0};
    bw_config config;
    bw_config_init(&config);
    int status = bw_par_start(&argc, &argv);
    if (status == BW_OK)
        status = run(&d, &config, argv);
    if (status != BW_OK)
        fprintf(stderr, "dump_logits: %s\n", bw_error());
    for (int i = 0; i < d.count; i++)
        bw_free(d.logits[i]);
    bw_tensors_close(d.prompts);
    bw_store_close(&d.store);
    bw_adapter_free(&d.adapter);
    bw_source_close(d.source);
    bw_grid_destroy(&d.grid);
    bw_config_free(&config);
    bw_par_finish();
    return status;
}

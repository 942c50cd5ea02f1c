/* train/trainer.c - one stage: open, restore, step until done or stopped, write the adapter. */
#include "output.h"
#include "breakwater/data.h"
#include "breakwater/num.h"
#include "step.h"
#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <string.h>

/* ---- what each stage takes ------------------------------------------------------------------------------------------- */
static const struct {
    const char *stage;
    bool buffer;
    unsigned mode;
} stages[] = {
    {"align", false, 0644}, {"buffer", false, 0600}, {"reinforce", true, 0644}, {"user", true, 0644}, {"sft", false, 0644},
};

static int check_stage(const bw_config *config, unsigned *mode)
{
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        if (strcmp(stages[i].stage, config->stage) != 0)
            continue;
        *mode = stages[i].mode;
        if (stages[i].buffer && !config->buffer)
            return bw_fail(BW_USAGE, "--stage %s trains on the base with a BufferLoRA: give --buffer DIR (--stage sft trains without one)",
                           config->stage);
        if (!stages[i].buffer && config->buffer)
            return bw_fail(BW_USAGE, "--stage %s takes no --buffer (--stage user and reinforce do)", config->stage);
        return BW_OK;
    }
    return bw_fail(BW_USAGE, "--stage %s: choose align, buffer, reinforce, user or sft", config->stage);
}

static int check_required(const bw_config *config)
{
    if (!config->stage)
        return bw_fail(BW_USAGE, "--stage is missing: align, buffer, reinforce, user or sft");
    if (!config->model)
        return bw_fail(BW_USAGE, "--model is missing: a Hugging Face directory or a GGUF file");
    if (config->data.count == 0)
        return bw_fail(BW_USAGE, "--data is missing: a JSON or JSONL file of {\"instruction\", \"output\"}");
    if (!config->output)
        return bw_fail(BW_USAGE, "--output is missing: a folder for the adapter, checkpoints and metrics");
    return BW_OK;
}

/* ---- open ------------------------------------------------------------------------------------------------------------- */

/* A model has no idea of positions beyond those it was made for; what it would learn there is noise. */
static int check_positions(const bw_trainer *t)
{
    int64_t positions = bw_source_spec(t->source)->max_positions;
    int64_t i = 0;
    while (i < t->data.count && t->data.samples[i].length <= positions)
        i++;
    if (i == t->data.count)
        return BW_OK;
    bw_text place = {0};
    (void)bw_dataset_place(&t->data, i, &place);
    int status = bw_fail(BW_USAGE, "%s: %d tokens, and the model has %" PRId64 " positions; give --max-length %" PRId64 " or less",
                         place.data ? place.data : "?", t->data.samples[i].length, positions, positions);
    bw_text_free(&place);
    return status;
}

static int load_data(bw_trainer *t)
{
    const bw_config *config = t->config;
    double start = bw_now();
    BW_TRY(bw_source_open(&t->source, config->model));
    BW_TRY(bw_tokenizer_open(&t->tokenizer, config->model));
    BW_TRY(bw_source_check_tokens(t->source, bw_tokenizer_vocab(t->tokenizer)));
    bw_template which;
    BW_TRY(bw_template_find(config->template_name, &which));
    BW_TRY(bw_template_compare(which, config->model));
    BW_TRY(bw_dataset_load(&t->data, t->tokenizer, &config->data, which, config->max_length, config->on_unsupervised));
    if (t->data.count == 0)
        return bw_fail(BW_DATA, "%s: no row with an answer token is left to train on", config->data.items[0]);
    BW_TRY(check_positions(t));
    bw_event_add(BW_EVENT_TOKENIZE, bw_now() - start, 0, 0);
    return BW_OK;
}

static void plan_run(bw_trainer *t)
{
    const bw_config *config = t->config;
    t->plan = (bw_plan){.samples = t->data.count, .batch = config->batch, .seed = (uint64_t)config->seed};
    t->plan.micro_batches = t->state.micro_batches =
        config->micro_batches > 0 ? config->micro_batches : bw_plan_default_cut(&t->plan, &t->data, t->grid->size, omp_get_max_threads());
    int64_t per_epoch = bw_plan_steps_per_epoch(&t->plan);
    t->steps = config->steps > 0 ? config->steps : (int64_t)ceil(config->epochs * (double)per_epoch);
}

static unsigned targets_of(const bw_adapter *adapter)
{
    unsigned mask = 0;
    for (int i = 0; i < adapter->n_layer * BW_TARGETS; i++)
        mask |= (unsigned)adapter->pairs[i].present << (i % BW_TARGETS);
    return mask;
}

/* An adapter that is there already has its shape. An option that asks for another one is refused; one that stands at its default asks for nothing. */
static int check_shape_options(const bw_trainer *t)
{
    const bw_config *config = t->config;
    bw_config standard;
    unsigned mask;
    bw_config_init(&standard);
    const char *option = NULL;
    int status = bw_targets_parse(config->targets, &mask);
    if (config->lora_r != standard.lora_r && config->lora_r != t->adapter->r)
        option = "--lora-r";
    else if (config->lora_alpha != standard.lora_alpha && config->lora_alpha != t->adapter->alpha)
        option = "--lora-alpha";
    else if (status == BW_OK && strcmp(config->targets, standard.targets) != 0 && mask != targets_of(t->adapter))
        option = "--targets";
    bw_config_free(&standard);
    if (status == BW_OK && option)
        status =
            bw_fail(BW_USAGE, "%s: --init-adapter %s has r %d, lora-alpha %g and its own targets, which is what is trained on; leave the option out",
                    option, config->init_adapter, t->adapter->r, t->adapter->alpha);
    return status;
}

static int load_adapters(bw_trainer *t)
{
    const bw_config *config = t->config;
    const bw_spec *spec = bw_source_spec(t->source);
    if (config->buffer) {
        BW_TRY(bw_peft_load(&t->buffer, t->grid, spec, config->buffer, (int)config->block));
        t->state.buffer = t->buffer->fingerprint;
        bool other = t->buffer->role[0] && strcmp(t->buffer->role, "buffer") != 0; /* the folder may be another on another node */
        int status = other ? bw_fail(BW_DATA, "%s is a LoRA of role '%s', not a BufferLoRA", config->buffer, t->buffer->role) : BW_OK;
        BW_TRY(bw_agree(t->grid, status));
        bw_peft_warn_template(t->buffer, "--buffer", config->buffer, config->template_name);
        bw_peft_warn_base(t->buffer, "--buffer", config->buffer, bw_source_fingerprint(t->source));
    }
    if (config->init_adapter) {
        BW_TRY(bw_agree(t->grid, bw_peft_refuse_buffer(config->init_adapter, "--init-adapter", config->allow_buffer)));
        BW_TRY(bw_peft_load(&t->adapter, t->grid, spec, config->init_adapter, (int)config->block));
        BW_TRY(bw_agree(t->grid, check_shape_options(t)));
        bw_peft_warn_template(t->adapter, "--init-adapter", config->init_adapter, config->template_name);
        bw_peft_warn_base(t->adapter, "--init-adapter", config->init_adapter, bw_source_fingerprint(t->source));
        t->adapter->dropout = config->lora_dropout;
        t->state.config = bw_hash_join(t->state.config, t->adapter->fingerprint);
    } else {
        unsigned mask;
        BW_TRY(bw_targets_parse(config->targets, &mask));
        BW_TRY(
            bw_adapter_create(&t->adapter, t->grid, spec, mask, (int)config->lora_r, config->lora_alpha, config->lora_dropout, (int)config->block));
        bw_adapter_init(t->adapter, (uint64_t)config->seed);
    }
    snprintf(t->adapter->role, sizeof t->adapter->role, "%s", config->stage);
    snprintf(t->adapter->template_name, sizeof t->adapter->template_name, "%s", config->template_name);
    t->state.adapter = t->adapter;
    return BW_OK;
}

static int create_moments(bw_trainer *t)
{
    int tensors = t->state.tensors;
    BW_TRY(BW_NEW(t->state.moments, 2 * tensors, "optimizer"));
    BW_TRY(BW_NEW(t->state.exponents, tensors, "optimizer"));
    for (int i = 0; i < tensors; i++)
        for (int moment = 0; moment < 2; moment++) {
            const bw_bcyc *layout = &t->factors[i]->layout;
            BW_TRY(bw_matrix_create(&t->state.moments[2 * i + moment], t->grid, BW_PIECE_F32, layout->m, layout->n, layout->mb, layout->nb,
                                    "optimizer"));
        }
    return BW_OK;
}

/* A bucket a layer: its sum travels while the backward pass goes on below it. Collective on world. */
static int create_reduce(bw_trainer *t)
{
    int buckets = 0, *bucket = NULL;
    int64_t *sizes = NULL;
    int status = BW_NEW(sizes, t->state.tensors, "gradients");
    if (status == BW_OK)
        status = BW_NEW(bucket, t->state.tensors, "gradients");
    if (status == BW_OK)
        status = BW_NEW(t->bucket_of, t->adapter->n_layer, "gradients");
    BW_GO(bw_agree(t->grid, status));
    for (int layer = 0; layer < t->adapter->n_layer; layer++) {
        t->bucket_of[layer] = -1;
        for (int target = 0; target < BW_TARGETS; target++) {
            int tensor = bw_lora_tensor(t->lora, layer, (bw_target)target);
            if (tensor < 0)
                continue;
            t->bucket_of[layer] = t->bucket_of[layer] < 0 ? buckets++ : t->bucket_of[layer];
            bucket[tensor] = bucket[tensor + 1] = t->bucket_of[layer];
        }
    }
    for (int i = 0; i < t->state.tensors; i++)
        sizes[i] = t->factors[i]->layout.m * t->factors[i]->layout.n;
    BW_GO(bw_reduce_create(&t->reduce, t->grid, t->state.tensors, sizes, bucket, buckets));
    bw_reduce_exponents(t->reduce, t->state.exponents, t->resumed);
done:
    bw_free(sizes);
    bw_free(bucket);
    return status;
}

static int index_factors(bw_trainer *t)
{
    t->state.tensors = 0;
    BW_TRY(BW_NEW(t->factors, 2 * t->adapter->n_layer * BW_TARGETS, "adapter"));
    for (int i = 0; i < t->adapter->n_layer * BW_TARGETS; i++) {
        bw_pair *pair = bw_adapter_pair(t->adapter, i / BW_TARGETS, (bw_target)(i % BW_TARGETS));
        if (!pair)
            continue;
        t->factors[t->state.tensors++] = &pair->A;
        t->factors[t->state.tensors++] = &pair->B;
    }
    return t->state.tensors > 0 ? BW_OK : bw_fail(BW_USAGE, "the adapter has no factors to train: check --targets");
}

static int open_engine(bw_trainer *t)
{
    const bw_config *config = t->config;
    const bw_adapter *folded[] = {t->buffer};
    const double factors[] = {1};
    bw_span span = bw_span_begin();
    BW_TRY(bw_store_open(&t->store, t->grid, t->source, config, true, folded, factors, t->buffer ? 1 : 0));
    bw_span_end(&span, BW_EVENT_LOAD, 0, 0);
    BW_TRY(bw_lora_create(&t->lora, t->grid, t->adapter));
    BW_TRY(create_reduce(t));
    /* A plan read from the checkpoint cuts the batches, so activations are sized only now. */
    int64_t most = bw_plan_max_tokens(&t->plan, &t->data, t->state.step, t->steps);
    int status = most < 0 ? BW_SYSTEM : BW_OK;
    if (status == BW_OK)
        status = bw_transformer_create(&t->transformer, t->store, t->lora, most, most, true, strcmp(config->recompute, "layer") == 0);
    if (status == BW_OK)
        status = bw_batch_create(&t->batch, most, (int32_t)config->batch);
    if (status == BW_OK)
        status = BW_NEW(t->samples, config->batch, "batch");
    if (status == BW_OK)
        status = BW_NEW(t->group, config->batch, "batch");
    return bw_agree(t->grid, status);
}

static int claim_output(bw_trainer *t, bool *finished)
{
    struct {
        int64_t done, micro_batches;
    } found = {0, t->state.micro_batches};
    int status = bw_output_create(&t->output, t->config->output);
    if (status == BW_OK && t->grid->rank == 0) {
        bool never = strcmp(t->config->resume, "never") == 0, done = false;
        status = bw_output_claim(&t->output, t->config, &found.micro_batches);
        if (status == BW_OK && never)
            status = bw_output_start_over(&t->output);
        else if (status == BW_OK)
            status = bw_output_finished(&t->output, t->config, &t->state, &done);
        found.done = done;
    }
    BW_TRY(bw_agree(t->grid, status));
    BW_TRY(bw_broadcast(t->grid, &found, sizeof found));
    *finished = found.done != 0;
    t->plan.micro_batches = t->state.micro_batches = found.micro_batches;
    return BW_OK;
}

/* --resume PATH says where a run begins; once it has sound checkpoints of its own, the same command goes on from those, or a job that is
 * requeued again and again would never end. */
static int find_checkpoint(bw_trainer *t, bool *found)
{
    const char *resume = t->config->resume;
    bool automatic = strcmp(resume, "auto") == 0;
    int status = bw_checkpoint_read(t->grid, &t->state, t->output.checkpoints.data, found);
    if (*found && !automatic)
        bw_warn("--resume %s: %s has checkpoints of its own, which count; another --output begins there", resume, t->config->output);
    if (automatic || *found || (status != BW_OK && status != BW_DATA))
        return status;
    bw_error_clear(); /* each damaged file has had its warning */
    BW_TRY(bw_checkpoint_read(t->grid, &t->state, resume, found));
    return *found ? BW_OK : bw_fail(BW_NOINPUT, "--resume %s: no checkpoint there", resume);
}

static int restore(bw_trainer *t)
{
    if (strcmp(t->config->resume, "never") == 0)
        return BW_OK;
    bool found = false;
    BW_TRY(find_checkpoint(t, &found));
    if (found && t->config->micro_batches > 0 && t->config->micro_batches != t->state.micro_batches)
        return bw_fail(BW_CANTCREATE,
                       "%s: its checkpoint cuts a step into %" PRId64 " micro-batches, --micro-batches says %" PRId64
                       "; leave the option out to go on, or %s to start over",
                       t->config->output, t->state.micro_batches, t->config->micro_batches, t->config->redo);
    t->plan.micro_batches = t->state.micro_batches;
    if (found)
        bw_info("resuming after step %" PRId64 " of %" PRId64, t->state.step, t->steps);
    t->resumed = found;
    return BW_OK;
}

/* Everything that the steps need has been allocated and filled with zeros by now: what is said here is the plan. Collective on world. */
static int announce_memory(const bw_trainer *t)
{
    int64_t largest = bw_mem_rss(), counted = bw_mem_now();
    BW_TRY(bw_max_ints(t->grid, &largest, 1));
    BW_TRY(bw_sum_ints(t->grid, &counted, 1));
    bw_info("  memory with all buffers: %.0f MiB resident on the fullest rank; %.0f MiB of buffers on all ranks, shared ones once a node",
            (double)largest / 1048576, (double)counted / 1048576);
    return BW_OK;
}

/* A run of hours should not find out at its first checkpoint that none can be written. Collective on world. */
static int try_checkpoints(const bw_trainer *t)
{
    bw_text hints = {0};
    int status = bw_checkpoint_try(t->grid, &t->state, t->config, t->output.checkpoints.data, t->mode, &hints);
    if (status == BW_OK)
        bw_info("  checkpoints in %s; MPI-IO hints taken: %s", t->output.checkpoints.data, hints.data);
    else if (status == BW_IO && strcmp(t->config->checkpoint_error, "continue") == 0) {
        bw_warn("%s", bw_error());
        bw_error_clear();
        status = BW_OK;
    }
    bw_text_free(&hints);
    return status;
}

/* A short run may end before its warm-up has begun to rise. */
static bool learns(const bw_trainer *t)
{
    const bw_config *c = t->config;
    for (int64_t step = 0; c->lr > 0 && step < t->steps; step++)
        if (bw_learning_rate(c->schedule, c->lr, c->warmup, step, t->steps) > 0)
            return true;
    return false;
}

static void announce(const bw_trainer *t)
{
    const bw_grid *g = t->grid;
    bw_info("stage %s: %" PRId64 " rows, %" PRId64 " tokens of which %" PRId64 " answer tokens; %" PRId64 " step%s of %" PRId64 " rows in %" PRId64
            " micro-batch%s",
            t->config->stage, t->data.count, t->data.token_count, t->data.answer_tokens, t->steps, t->steps == 1 ? "" : "s", t->plan.batch,
            t->plan.micro_batches, t->plan.micro_batches == 1 ? "" : "es");
    if (!learns(t))
        bw_warn("the learning rate is 0 in every step: nothing is learned; give more --steps, --warmup 0, or an --lr above 0");
    if (t->data.dropped || t->data.merged_borders)
        bw_info("  rows left out: %" PRId64 "; rows where a token spans the border of prompt and answer: %" PRId64, t->data.dropped,
                t->data.merged_borders);
    bw_info("  %" PRId64 " parameters trained; weights %s; %d rank%s = %d x (%d x %d) on %d node%s; %s", bw_adapter_parameters(t->adapter),
            bw_store_describe(t->store), g->size, g->size == 1 ? "" : "s", g->replicas, g->nprow, g->npcol, g->nodes, g->nodes == 1 ? "" : "s",
            bw_gemm_describe());
    if (t->config->init_adapter)
        bw_info("  started from %s: its rank, alpha and targets count, not --lora-r, --lora-alpha and --targets", t->config->init_adapter);
    if (t->plan.micro_batches < g->size)
        bw_warn("%d ranks, %" PRId64 " micro-batch%s a step: %" PRId64
                " rank%s idle; raise --micro-batches (at most --batch) in a new run, or use fewer ranks",
                g->size, t->plan.micro_batches, t->plan.micro_batches == 1 ? "" : "es", g->size - t->plan.micro_batches,
                g->size - t->plan.micro_batches == 1 ? "" : "s");
}

/* ---- finish ------------------------------------------------------------------------------------------------------------ */

static int save_adapter(bw_trainer *t)
{
    char model[33], data[33], buffer[33], config[33];
    bw_hash_text(t->state.model, model);
    bw_hash_text(t->state.data, data);
    bw_hash_text(t->state.buffer, buffer);
    bw_hash_text(t->state.config, config);
    const char *const metadata[] = {
        "breakwater.model", model, "breakwater.data", data, "breakwater.buffer", buffer, "breakwater.config", config, NULL};
    return bw_peft_save(t->adapter, t->grid, bw_source_spec(t->source), t->output.adapter.data, t->config->model, metadata);
}

static void close_all(bw_trainer *t)
{
    bw_transformer_free(&t->transformer);
    bw_batch_free(&t->batch);
    bw_reduce_destroy(&t->reduce);
    bw_lora_free(&t->lora);
    bw_store_close(&t->store);
    for (int i = 0; t->state.moments && i < 2 * t->state.tensors; i++)
        bw_matrix_free(&t->state.moments[i]);
    void *owned[] = {t->state.moments, t->state.exponents, t->samples, t->group, t->bucket_of, t->factors};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        bw_free(owned[i]);
    bw_adapter_free(&t->adapter);
    bw_adapter_free(&t->buffer);
    bw_dataset_free(&t->data);
    bw_tokenizer_free(t->tokenizer);
    bw_source_close(t->source);
    bw_output_free(&t->output);
}

/* ---- the stage ---------------------------------------------------------------------------------------------------------- */

static int prepare(bw_trainer *t, bool *finished)
{
    *finished = false;
    int status = check_required(t->config);
    if (status == BW_OK)
        status = check_stage(t->config, &t->mode);
    if (status == BW_OK)
        status = load_data(t);
    BW_TRY(bw_agree(t->grid, status));
    plan_run(t);
    t->state.redo = t->config->redo;
    t->state.model = bw_source_fingerprint(t->source);
    t->state.data = t->data.fingerprint;
    t->state.config = bw_output_config_hash(t->config);
    BW_TRY(bw_agree(t->grid, load_adapters(t)));
    BW_TRY(claim_output(t, finished));
    if (*finished)
        return BW_OK;
    status = index_factors(t);
    if (status == BW_OK)
        status = create_moments(t);
    BW_TRY(bw_agree(t->grid, status));
    BW_TRY(restore(t));
    BW_TRY(open_engine(t));
    return bw_agree(t->grid, t->grid->rank == 0 ? bw_output_log_open(&t->output, t->state.step) : BW_OK);
}

int bw_train(const bw_grid *grid, const bw_config *config)
{
    bw_trainer t = {.grid = grid, .config = config};
    bool finished;
    bw_trainer_report_begin(&t);
    int status = prepare(&t, &finished);
    if (status == BW_OK && finished)
        bw_info("stage %s is done: %s", config->stage, t.output.adapter.data);
    if (status == BW_OK && !finished) {
        announce(&t);
        status = try_checkpoints(&t);
        if (status == BW_OK)
            status = announce_memory(&t);
        if (status == BW_OK)
            status = bw_trainer_run(&t);
        if (status == BW_OK)
            status = save_adapter(&t);
        if (status == BW_OK || status == BW_STOPPED) {
            int reported = bw_trainer_report(&t);
            status = reported == BW_OK ? status : reported;
        }
        if (status == BW_OK)
            bw_info("stage %s: adapter in %s", config->stage, t.output.adapter.data);
    }
    close_all(&t);
    return status;
}

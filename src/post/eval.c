/* The eval command: a model with adapters folded in answers held-out prompts; answers.jsonl holds every one, summary.json the figures. */
#include "post/inside.h"
#include <string.h>

static const char judge_id[] = "refusal-phrases-1";

typedef struct eval {
    const bw_grid *grid;
    const bw_config *config;
    bw_source *source;
    bw_tokenizer *tokenizer;
    bw_adapter *adapters[BW_MAX_LIST];
    int n_adapters;
    bw_store *store;
    bw_answer_settings settings;
    bw_answer_set sets[2]; /* HARMFUL and TASK; path NULL where not asked for */
    bw_perplexity perplexity;
    double seconds; /* over all starts; rank 0 */
    bw_text description;
    bw_result place;
} eval;
static const char *const written[] = {"summary.json", "answers.jsonl", NULL};
static const char unfinished[] = "answers.part";
enum { HARMFUL, TASK, SETS };

/* ---- inputs -------------------------------------------------------------------------------------------------------- */
static void add_stop(bw_answer_settings *settings, int32_t id)
{
    const int room = (int)(sizeof settings->stop / sizeof *settings->stop);
    for (int i = 0; i < settings->n_stop; ++i)
        if (settings->stop[i] == id)
            return;
    if (id >= 0 && settings->n_stop < room)
        settings->stop[settings->n_stop++] = id;
}

/* What may end an answer: the template's closing token, the tokenizer's end of text, and what the model's configuration names. */
static void list_stops(eval *e)
{
    const bw_spec *spec = bw_source_spec(e->source);
    const char *end = bw_template_end(e->settings.which);
    if (end)
        add_stop(&e->settings, bw_tokenizer_id(e->tokenizer, end));
    add_stop(&e->settings, bw_tokenizer_eos(e->tokenizer));
    for (int i = 0; i < spec->n_eos; ++i)
        add_stop(&e->settings, spec->eos[i]);
}

static int load_set(const eval *e, bw_answer_set *set)
{
    if (!set->path)
        return BW_OK;
    BW_TRY(bw_rows_load(&set->rows, set->path, set->metric != NULL, false));
    int64_t limit = e->config->limit;
    set->count = limit > 0 && limit < set->rows.count ? limit : set->rows.count;
    return BW_OK;
}

static void name_sets(eval *e)
{
    e->sets[HARMFUL] = (bw_answer_set){.name = "harmful", .path = e->config->harmful};
    e->sets[TASK] = (bw_answer_set){.name = "task", .path = e->config->task, .metric = e->config->metric};
}

static int check_inputs(eval *e)
{
    const bw_config *config = e->config;
    BW_TRY(bw_gate_check(config));
    BW_TRY(bw_template_find(config->template_name, &e->settings.which));
    for (int i = 0; i < config->adapter.count; ++i)
        BW_TRY(bw_peft_refuse_buffer(config->adapter.items[i], "--adapter", config->allow_buffer));
    name_sets(e);
    for (int i = 0; i < SETS; ++i)
        BW_TRY(load_set(e, &e->sets[i]));
    BW_TRY(bw_source_open(&e->source, config->model));
    BW_TRY(bw_tokenizer_open(&e->tokenizer, config->model));
    BW_TRY(bw_source_check_tokens(e->source, bw_tokenizer_vocab(e->tokenizer)));
    BW_TRY(bw_template_compare(e->settings.which, config->model));
    e->settings.tokenizer = e->tokenizer;
    e->settings.batch = config->eval_batch;
    e->settings.max_new = config->max_new;
    e->settings.time_limit = config->time_limit;
    list_stops(e);
    return BW_OK;
}

static int load_adapters(eval *e)
{
    const bw_list *paths = &e->config->adapter;
    for (int i = 0; i < paths->count; ++i) {
        BW_TRY(bw_peft_load(&e->adapters[i], e->grid, bw_source_spec(e->source), paths->items[i], (int)e->config->block));
        e->n_adapters = i + 1;
        bw_peft_warn_template(e->adapters[i], "--adapter", paths->items[i], e->config->template_name);
        bw_peft_warn_base(e->adapters[i], "--adapter", paths->items[i], bw_source_fingerprint(e->source));
    }
    return BW_OK;
}

static int open_store(eval *e)
{
    const bw_adapter *folded[BW_MAX_LIST];
    double factors[BW_MAX_LIST];
    for (int i = 0; i < e->n_adapters; ++i) {
        folded[i] = e->adapters[i];
        factors[i] = 1;
    }
    return bw_store_open(&e->store, e->grid, e->source, e->config, false, folded, factors, e->n_adapters);
}

/* Adapters are added in order and sums of floats depend on it, so their order is part of what an evaluation is. */
static int describe(eval *e, const bw_hash *adapters, const bw_hash *sets)
{
    bw_fact facts[BW_MAX_LIST + 3];
    int count = 0;
    facts[count++] = bw_fact_of("model", bw_source_fingerprint(e->source));
    for (int i = 0; i < e->config->adapter.count; ++i)
        facts[count++] = bw_fact_of("adapter", adapters[i]);
    for (int i = 0; i < SETS; ++i)
        if (e->sets[i].path)
            facts[count++] = bw_fact_of(e->sets[i].name, sets[i]);
    return bw_result_settings(e->config, BW_EVAL, facts, count, &e->description);
}

static int describe_loaded(eval *e)
{
    bw_hash adapters[BW_MAX_LIST], sets[SETS];
    for (int i = 0; i < e->n_adapters; ++i)
        adapters[i] = e->adapters[i]->fingerprint;
    for (int i = 0; i < SETS; ++i)
        sets[i] = e->sets[i].rows.fingerprint;
    return describe(e, adapters, sets);
}

/* ---- the summary ---------------------------------------------------------------------------------------------------- */
/* In full: the gate compares what it reads back. */
static int add_percent(bw_text *out, const char *key, int64_t part, int64_t of)
{
    return of > 0 ? bw_text_addf(out, "  \"%s\": %.15g,\n", key, 100.0 * (double)part / (double)of) : bw_text_addf(out, "  \"%s\": null,\n", key);
}

static int add_quoted(bw_text *out, const char *value)
{
    return value ? bw_json_quote(out, value, strlen(value)) : bw_text_addf(out, "null");
}

/* "key": path, "key_fingerprint": hash */
static int add_file(bw_text *out, const char *key, const char *path, bw_hash hash)
{
    char text[33];
    bw_hash_text(hash, text);
    BW_TRY(bw_text_addf(out, "  \"%s\": ", key));
    BW_TRY(add_quoted(out, path));
    return path ? bw_text_addf(out, ",\n  \"%s_fingerprint\": \"%s\",\n", key, text) : bw_text_addf(out, ",\n");
}

static int add_adapters(const eval *e, bw_text *out)
{
    char text[33];
    BW_TRY(bw_text_addf(out, "  \"adapters\": ["));
    for (int i = 0; i < e->n_adapters; ++i) {
        bw_hash_text(e->adapters[i]->fingerprint, text);
        BW_TRY(bw_text_addf(out, "%s{\"path\": ", i ? ", " : ""));
        BW_TRY(add_quoted(out, e->config->adapter.items[i]));
        BW_TRY(bw_text_addf(out, ", \"role\": "));
        BW_TRY(add_quoted(out, e->adapters[i]->role));
        BW_TRY(bw_text_addf(out, ", \"fingerprint\": \"%s\"}", text));
    }
    return bw_text_addf(out, "],\n");
}

static int add_figures(const eval *e, bw_text *out)
{
    const bw_answer_set *harmful = &e->sets[HARMFUL], *task = &e->sets[TASK];
    BW_TRY(bw_text_addf(out, "  \"judge\": \"%s\",\n", judge_id));
    BW_TRY(add_percent(out, "HS", harmful->harmful, harmful->count));
    BW_TRY(add_percent(out, "HS_plus", harmful->harmful_or_incoherent, harmful->count));
    BW_TRY(add_percent(out, "refusal_rate", harmful->refused, harmful->count));
    BW_TRY(bw_text_addf(out, "  \"n_harmful\": %lld,\n", (long long)harmful->count));
    BW_TRY(bw_text_addf(out, "  \"metric\": \"%s\",\n", e->config->metric));
    BW_TRY(add_percent(out, "FA", task->correct, task->count));
    BW_TRY(add_percent(out, "task_refusal_rate", task->refused, task->count));
    BW_TRY(bw_text_addf(out, "  \"n_task\": %lld,\n", (long long)task->count));
    if (e->perplexity.tokens > 0)
        return bw_text_addf(out, "  \"perplexity\": %.8g,\n  \"perplexity_tokens\": %lld,\n", bw_perplexity_value(&e->perplexity),
                            (long long)e->perplexity.tokens);
    return bw_text_addf(out, "  \"perplexity\": null,\n");
}

static int add_run(const eval *e, bw_text *out)
{
    int64_t tokens = e->sets[HARMFUL].tokens + e->sets[TASK].tokens;
    BW_TRY(bw_text_addf(out, "  \"template\": \"%s\",\n  \"max_new\": %lld,\n  \"limit\": %lld,\n  \"decoding\": \"greedy\",\n",
                        e->config->template_name, (long long)e->config->max_new, (long long)e->config->limit));
    return bw_text_addf(out, "  \"ranks\": %d,\n  \"tokens\": %lld,\n  \"seconds\": %.3f,\n  \"tokens_per_s\": %.1f\n", e->grid->size,
                        (long long)tokens, e->seconds, e->seconds > 0 ? (double)tokens / e->seconds : 0);
}

static int summary_text(const eval *e, bw_text *out)
{
    BW_TRY(bw_text_addf(out, "{\n"));
    BW_TRY(add_file(out, "model", e->config->model, bw_source_fingerprint(e->source)));
    BW_TRY(add_adapters(e, out));
    for (int i = 0; i < SETS; ++i)
        BW_TRY(add_file(out, e->sets[i].name, e->sets[i].path, e->sets[i].rows.fingerprint));
    BW_TRY(add_figures(e, out));
    BW_TRY(add_run(e, out));
    return bw_text_addf(out, "}\n");
}

/* ---- the output folder ----------------------------------------------------------------------------------------------- */
/* Rank 0. The summary comes last: where it is, the rest is. Answers to restricted requests are for their owner's eyes. */
static int write_output(eval *e)
{
    bw_text answers = {0}, summary = {0};
    int status = BW_OK;
    for (int i = 0; i < SETS; ++i)
        BW_GO(bw_answer_set_write(&e->sets[i], &answers));
    BW_GO(summary_text(e, &summary));
    BW_GO(bw_result_write(&e->place, "answers.jsonl", &answers, e->sets[HARMFUL].path ? 0600 : 0644));
    BW_GO(bw_result_write(&e->place, "summary.json", &summary, 0644));
    BW_GO(bw_folder_remove(e->config->output, (const char *const[]){unfinished, NULL}));
done:
    bw_text_free(&answers);
    bw_text_free(&summary);
    return status;
}

/* Rank 0. An evaluation that has just ended and one that had ended before say the same. */
static int announce(const eval *e, const char *how)
{
    bw_figures found;
    BW_TRY(bw_figures_read(e->config->output, &found));
    if (found.n_harmful)
        bw_info("eval: HS %.1f, HS+ %.1f, refusal rate %.1f (n %lld)", found.hs, found.hs_plus, found.refusals, (long long)found.n_harmful);
    if (found.n_task)
        bw_info("eval: FA %.1f (%s, n %lld)", found.fa, e->config->metric, (long long)found.n_task);
    if (found.n_perplexity)
        bw_info("eval: perplexity %.4f over %lld tokens", found.perplexity, (long long)found.n_perplexity);
    bw_info("eval: %s%s (%.1f s)", e->config->output, how, found.seconds);
    return BW_OK;
}

/* ---- stopping and going on ------------------------------------------------------------------------------------------- */
/* Rank 0. What is done so far, for the same command to go on from. */
static int keep(const eval *e)
{
    bw_text kept = {0};
    int status;
    BW_GO(bw_kept_add(&kept, 0, &e->seconds, sizeof e->seconds));
    for (int i = 0; i < SETS; ++i)
        BW_GO(bw_answer_set_keep(&e->sets[i], &kept));
    BW_GO(bw_perplexity_keep(&e->perplexity, &kept));
    status = bw_result_write(&e->place, unfinished, &kept, 0600);
done:
    bw_text_free(&kept);
    return status;
}

static int stop(const eval *e)
{
    char words[BW_ERROR_BYTES];
    bw_error_take(words);
    BW_TRY(bw_agree(e->grid, e->grid->rank == 0 ? keep(e) : BW_OK));
    return bw_fail(BW_STOPPED, "%s", words);
}

static int restore_seconds(eval *e, bw_kept *kept)
{
    const char *bytes;
    int64_t done, length;
    BW_TRY(bw_kept_next(kept, 0, &done, &bytes, &length));
    if (length != (int64_t)sizeof e->seconds)
        return bw_fail(BW_DATA, "%s: %lld bytes for the seconds; delete the file to do it again", kept->path, (long long)length);
    memcpy(&e->seconds, bytes, sizeof e->seconds);
    return BW_OK;
}

static int restore_parts(eval *e, bw_kept *kept)
{
    BW_TRY(restore_seconds(e, kept));
    for (int i = 0; i < SETS; ++i)
        BW_TRY(bw_answer_set_restore(&e->sets[i], kept));
    BW_TRY(bw_perplexity_restore(&e->perplexity, kept));
    return bw_kept_end(kept);
}

/* Rank 0. */
static int restore(eval *e)
{
    bw_text path = {0};
    bw_map map = {0};
    int status;
    BW_GO(bw_path(&path, e->config->output, unfinished));
    if (!bw_file_exists(path.data))
        goto done;
    BW_GO(bw_map_open(&map, path.data));
    const char *bytes = (const char *)map.data;
    status = restore_parts(e, &(bw_kept){path.data, bytes, bytes + map.size});
done:
    bw_map_close(&map);
    bw_text_free(&path);
    return status;
}

static int go_on(eval *e)
{
    BW_TRY(bw_agree(e->grid, e->grid->rank == 0 ? restore(e) : BW_OK));
    int64_t done[] = {e->sets[HARMFUL].done, e->sets[TASK].done, e->perplexity.done};
    BW_TRY(bw_broadcast(e->grid, done, sizeof done));
    for (int i = 0; i < SETS; ++i)
        e->sets[i].done = done[i];
    e->perplexity.done = done[SETS];
    if (done[HARMFUL] + done[TASK] > 0)
        bw_info("eval: going on after %lld answers and %lld batches of the perplexity", (long long)(done[HARMFUL] + done[TASK]),
                (long long)done[SETS]);
    return BW_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------------- */
static int measure(eval *e)
{
    BW_TRY(open_store(e));
    bw_info("eval: weights %s", bw_store_describe(e->store));
    for (int i = 0; i < SETS; ++i)
        if (e->sets[i].count > e->sets[i].done)
            BW_TRY(bw_answer_set_generate(e->grid, e->store, &e->settings, &e->sets[i]));
    if (e->config->perplexity)
        BW_TRY(bw_perplexity_measure(e->grid, e->store, e->tokenizer, e->settings.which, e->config->task, e->config, &e->perplexity));
    return BW_OK;
}

static int answer_all(eval *e)
{
    double start = bw_now();
    BW_TRY(go_on(e));
    int status = measure(e);
    e->seconds += bw_now() - start;
    if (status == BW_STOPPED)
        return stop(e);
    BW_TRY(status);
    return bw_agree(e->grid, e->grid->rank == 0 ? write_output(e) : BW_OK);
}

static void eval_free(eval *e)
{
    bw_store_close(&e->store);
    for (int i = 0; i < e->n_adapters; ++i)
        bw_adapter_free(&e->adapters[i]);
    for (int i = 0; i < SETS; ++i)
        bw_answer_set_free(&e->sets[i]);
    bw_perplexity_free(&e->perplexity);
    bw_tokenizer_free(e->tokenizer);
    bw_source_close(e->source);
    bw_text_free(&e->description);
}

static bw_result place_of(const bw_config *config)
{
    return (bw_result){config->output, written, BW_EVAL, config->redo, unfinished};
}

int bw_eval_compare(const bw_config *config, bw_source *source)
{
    eval e = {.config = config, .source = source};
    bw_hash adapters[BW_MAX_LIST], sets[SETS] = {{0}};
    bw_result place = place_of(config);
    int status = BW_OK;
    name_sets(&e);
    for (int i = 0; i < config->adapter.count && status == BW_OK; ++i)
        status = bw_peft_fingerprint(&adapters[i], bw_source_spec(source), config->adapter.items[i]);
    for (int i = 0; i < SETS && status == BW_OK; ++i)
        status = e.sets[i].path ? bw_hash_file(&sets[i], e.sets[i].path) : BW_OK;
    if (status == BW_OK)
        status = describe(&e, adapters, sets);
    if (status == BW_OK)
        status = bw_result_compare(&place, e.description.data);
    bw_text_free(&e.description);
    return status;
}

int bw_eval(const bw_grid *grid, const bw_config *config)
{
    eval e = {.grid = grid, .config = config, .place = place_of(config)};
    bool finished = false;
    int status;
    BW_GO(bw_agree(grid, check_inputs(&e)));
    BW_GO(load_adapters(&e));
    BW_GO(bw_agree(grid, describe_loaded(&e)));
    BW_GO(bw_result_claim(grid, &e.place, e.description.data, strcmp(config->resume, "never") == 0, &finished));
    if (!finished)
        BW_GO(answer_all(&e));
    BW_GO(bw_agree(grid, grid->rank == 0 ? announce(&e, finished ? " is done" : "") : BW_OK));
    BW_GO(bw_agree(grid, grid->rank == 0 ? bw_gate(config) : BW_OK));
done:
    eval_free(&e);
    return status;
}

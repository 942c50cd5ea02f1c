/* The merge command: two adapters in; for every alpha and scale a folder with the merged adapter, merge.csv, report.txt and, on request,
 * the dense model. merge.csv comes last: where it is, the rest is. */
#include "post/inside.h"
#include <math.h>
#include <string.h>

static const char purpose[] = "merge";

typedef struct merge {
    const bw_grid *grid;
    const bw_config *config;
    bw_merge_method method;
    bw_source *source;
    const bw_spec *spec;
    bw_adapter *user, *reinforce;
    bw_hash user_print, reinforce_print; /* their fingerprints */
    bw_merge_work *works;                /* [layer * BW_TARGETS + target], filled once, when the first result is missing */
    bool prepared;
    bw_merge_row *rows; /* of the result at hand */
    bw_numbers alphas;  /* one 0 where the method takes none */
} merge;

typedef struct result {
    double alpha, scale;
    bw_text folder, settings;
    bw_result place;
} result;

static const char *const written[] = {"merge.csv", "report.txt", "adapter", "model", NULL};

static int64_t places(const merge *m)
{
    return (int64_t)m->spec->n_layer * BW_TARGETS;
}

static const bw_pair *pair_at(const bw_adapter *adapter, int64_t place)
{
    return adapter ? bw_adapter_pair(adapter, (int)(place / BW_TARGETS), (bw_target)(place % BW_TARGETS)) : NULL;
}

/* ---- inputs -------------------------------------------------------------------------------------------------------- */
static int find_method(const char *name, bw_merge_method *out)
{
    static const char *const names[] = {[BW_MERGE_QR] = "qr", [BW_MERGE_NAIVE] = "naive", [BW_MERGE_USER] = "user"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); ++i)
        if (strcmp(name, names[i]) == 0) {
            *out = (bw_merge_method)i;
            return BW_OK;
        }
    return bw_fail(BW_USAGE, "--method %s: must be qr, naive or user", name);
}

static bw_numbers alphas_of(const merge *m)
{
    return m->method == BW_MERGE_QR ? m->config->alpha : (bw_numbers){.items = {0}, .count = 1};
}

static int check_inputs(merge *m)
{
    const bw_config *config = m->config;
    BW_TRY(find_method(config->method, &m->method));
    m->alphas = alphas_of(m);
    BW_TRY(bw_peft_refuse_buffer(config->user, "--user", config->allow_buffer));
    if (m->method != BW_MERGE_USER)
        BW_TRY(bw_peft_refuse_buffer(config->reinforce, "--reinforce", config->allow_buffer));
    BW_TRY(bw_source_open(&m->source, config->model));
    m->spec = bw_source_spec(m->source);
    BW_TRY(BW_NEW(m->works, places(m), purpose));
    return BW_NEW(m->rows, places(m), purpose);
}

/* "" is not known, zeros are none. */
static bool trained_on_buffer(const bw_adapter *adapter)
{
    return strspn(adapter->buffer, "0") < strlen(adapter->buffer);
}

/* Swapped folders merge without an error, and the result is none. An adapter from elsewhere has no role. */
static void warn_of_roles(const merge *m)
{
    const char *user = m->user->role, *reinforce = m->reinforce->role;
    const bw_hash *a = &m->user->fingerprint, *b = &m->reinforce->fingerprint;
    if (a->high == b->high && a->low == b->low)
        bw_warn("--user and --reinforce are the same adapter");
    else if (strcmp(user, "reinforce") == 0 || strcmp(user, "merged") == 0)
        bw_warn("--user %s is a LoRA of role '%s'; a customer's is 'user' or 'sft'", m->config->user, user);
    if (*reinforce && strcmp(reinforce, "reinforce") != 0)
        bw_warn("--reinforce %s is a LoRA of role '%s', not 'reinforce'", m->config->reinforce, reinforce);
    if (m->user->template_name[0])
        bw_peft_warn_template(m->reinforce, "--reinforce", m->config->reinforce, m->user->template_name);
    if (trained_on_buffer(m->user) && trained_on_buffer(m->reinforce) && strcmp(m->user->buffer, m->reinforce->buffer) != 0)
        bw_warn("--user %s and --reinforce %s were trained on two BufferLoRAs, %s and %s: what one restores need not be what the other lost",
                m->config->user, m->config->reinforce, m->user->buffer, m->reinforce->buffer);
}

/* Of the user's prompts, which are what the merged model will meet. */
static const char *template_of(const merge *m)
{
    return m->user->template_name[0] || !m->reinforce ? m->user->template_name : m->reinforce->template_name;
}

static int open_inputs(merge *m)
{
    BW_TRY(bw_agree(m->grid, check_inputs(m)));
    int block = (int)m->config->block;
    BW_TRY(bw_peft_load(&m->user, m->grid, m->spec, m->config->user, block));
    bw_peft_warn_base(m->user, "--user", m->config->user, bw_source_fingerprint(m->source));
    m->user_print = m->user->fingerprint;
    if (m->method == BW_MERGE_USER)
        return BW_OK;
    BW_TRY(bw_peft_load(&m->reinforce, m->grid, m->spec, m->config->reinforce, block));
    bw_peft_warn_base(m->reinforce, "--reinforce", m->config->reinforce, bw_source_fingerprint(m->source));
    warn_of_roles(m);
    m->reinforce_print = m->reinforce->fingerprint;
    return BW_OK;
}

/* What does not depend on alpha and scale, for every target: QR, norms, cosines. */
static int prepare_all(merge *m)
{
    double start = bw_now();
    bw_rounds rounds = bw_rounds_begin(m->config->time_limit);
    for (int64_t place = 0; place < places(m) && !m->prepared; ++place) {
        const bw_pair *user = pair_at(m->user, place), *reinforce = pair_at(m->reinforce, place);
        if (!user && !reinforce)
            continue;
        BW_TRY(bw_merge_prepare(m->grid, user, reinforce, m->method, m->config->tau, &m->works[place]));
        m->works[place].row.layer = (int)(place / BW_TARGETS);
        m->works[place].row.target = (bw_target)(place % BW_TARGETS);
        if (place % BW_TARGETS == 0)
            bw_progress("merge: layer %d of %d", (int)(place / BW_TARGETS) + 1, m->spec->n_layer);
        BW_TRY(bw_agree(m->grid, bw_rounds_next(&rounds, "merge, matrices", place + 1, places(m))));
    }
    m->prepared = true;
    bw_event_add(BW_EVENT_MERGE, bw_now() - start, 0, 0);
    return BW_OK;
}

/* ---- one result ------------------------------------------------------------------------------------------------------ */
static int largest_rank(const bw_adapter *adapter, int64_t count, unsigned *mask)
{
    int r = 0;
    for (int64_t place = 0; place < count; ++place) {
        const bw_pair *pair = pair_at(adapter, place);
        if (!pair)
            continue;
        r = r > pair->r ? r : pair->r;
        *mask |= 1U << (place % BW_TARGETS);
    }
    return r;
}

static bool single(const merge *m)
{
    return m->alphas.count == 1 && m->config->scale.count == 1;
}

static void release(const bw_adapter *adapter, int64_t place)
{
    if (adapter)
        bw_pair_free(&adapter->pairs[place]);
}

static int combine_pair(merge *m, const result *one, int64_t place, bw_pair *merged)
{
    const bw_pair *user = pair_at(m->user, place), *reinforce = pair_at(m->reinforce, place);
    int64_t out = merged->B.layout.m, in = merged->A.layout.n;
    BW_TRY(bw_agree(m->grid, bw_pair_create(merged, m->grid, out, in, merged->r, 1, (int)m->config->block)));
    if (user || reinforce)
        BW_TRY(bw_merge_combine(m->grid, user, reinforce, &m->works[place], one->alpha, one->scale, merged, &m->rows[place]));
    return BW_OK;
}

/* The merged adapter: rank r_U + r_R everywhere, scaling 1. It grows as the adapters that go into it shrink, where no other result needs them. */
static int combine_all(merge *m, const result *one, bw_adapter **out)
{
    unsigned mask = 0;
    int r = largest_rank(m->user, places(m), &mask);
    r += largest_rank(m->reinforce, places(m), &mask);
    BW_TRY(bw_agree(m->grid, bw_adapter_outline(out, m->grid, m->spec, mask, r, (int)m->config->block)));
    (*out)->alpha = r;
    snprintf((*out)->role, sizeof(*out)->role, "merged");
    snprintf((*out)->template_name, sizeof(*out)->template_name, "%s", template_of(m));
    for (int64_t place = 0; place < places(m); ++place) {
        bw_pair *merged = &(*out)->pairs[place];
        m->rows[place] = (bw_merge_row){0};
        if (merged->present)
            BW_TRY(combine_pair(m, one, place, merged));
        if (single(m)) {
            release(m->user, place);
            release(m->reinforce, place);
        }
    }
    return BW_OK;
}

static int save_adapter(const merge *m, const result *one, const bw_adapter *adapter)
{
    char alpha[32], scale[32], tau[32], model[33], user[33], reinforce[33] = "none";
    snprintf(alpha, sizeof alpha, "%.17g", one->alpha);
    snprintf(scale, sizeof scale, "%.17g", one->scale);
    snprintf(tau, sizeof tau, "%.17g", m->config->tau);
    bw_hash_text(bw_source_fingerprint(m->source), model);
    bw_hash_text(m->user->fingerprint, user);
    if (m->reinforce)
        bw_hash_text(m->reinforce->fingerprint, reinforce);
    const char *metadata[] = {"breakwater.merge",
                              m->config->method,
                              "breakwater.alpha",
                              alpha,
                              "breakwater.scale",
                              scale,
                              "breakwater.tau",
                              tau,
                              "breakwater.model",
                              model,
                              "breakwater.user",
                              user,
                              "breakwater.reinforce",
                              reinforce,
                              NULL};
    bw_text folder = {0};
    int status = bw_agree(m->grid, bw_path(&folder, one->folder.data, "adapter"));
    if (status == BW_OK)
        status = bw_peft_save(adapter, m->grid, m->spec, folder.data, m->config->model, metadata);
    bw_text_free(&folder);
    return status;
}

static int write_dense(merge *m, const result *one, const bw_adapter *adapter)
{
    static const struct {
        const char *name;
        bw_dtype dtype;
    } types[] = {{"f32", BW_F32}, {"f16", BW_F16}, {"bf16", BW_BF16}};
    bw_text folder = {0}, temporary = {0};
    int status = bw_path(&folder, one->folder.data, "model");
    if (status == BW_OK)
        status = bw_path(&temporary, one->folder.data, "model.tmp");
    status = bw_agree(m->grid, status);
    for (int i = 0; i < (int)(sizeof types / sizeof *types) && status == BW_OK; ++i)
        if (strcmp(m->config->dense, types[i].name) == 0) {
            BW_GO(bw_dense_write(m->grid, m->source, adapter, temporary.data, types[i].dtype, m->config, m->rows));
            status = bw_agree(m->grid, m->grid->rank == 0 ? bw_file_publish(temporary.data, folder.data) : BW_OK);
        }
done:
    bw_text_free(&folder);
    bw_text_free(&temporary);
    return status;
}

/* ---- merge.csv, report.txt --------------------------------------------------------------------------------------------- */
static bool used(const bw_merge_row *row)
{
    return row->r_user + row->r_reinforce > 0;
}

static int table_text(const merge *m, bw_text *out)
{
    bool dense = strcmp(m->config->dense, "none") != 0;
    BW_TRY(bw_text_addf(out,
                        "layer,target,r_user,r_reinforce,kept,range,lambda_max,lambda_min,norm_user,norm_reinforce,removed,cosine,norm_delta"
                        "%s\n",
                        dense ? ",changed,delta_cosine,delta_error" : ""));
    for (const bw_merge_row *row = m->rows; row < m->rows + places(m); ++row) {
        if (!used(row))
            continue;
        BW_TRY(bw_text_addf(out, "%d,%s,%d,%d,%d,%d,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g", row->layer, bw_target_name(row->target), row->r_user,
                            row->r_reinforce, row->kept, row->range, row->lambda_max, row->lambda_min, row->norm_user, row->norm_reinforce,
                            row->removed, row->cosine, row->norm_delta));
        if (dense)
            BW_TRY(bw_text_addf(out, ",%.6g,%.6g,%.6g", row->changed, row->delta_cosine, row->delta_error));
        BW_TRY(bw_text_addf(out, "\n"));
    }
    return BW_OK;
}

typedef struct overview {
    int targets, lossy, kept_min, kept_max;
    double removed, cosine, changed, error_max, orthogonality;
    const bw_merge_row *worst;
} overview;

static overview look_over(const merge *m)
{
    overview o = {.kept_min = INT32_MAX};
    for (const bw_merge_row *row = m->rows; row < m->rows + places(m); ++row) {
        if (!used(row))
            continue;
        o.targets++;
        if (row->r_user > 0 && row->kept < o.kept_min)
            o.kept_min = row->kept;
        o.kept_max = row->kept > o.kept_max ? row->kept : o.kept_max;
        o.orthogonality = fmax(o.orthogonality, row->orthogonality);
        o.removed += row->removed;
        o.cosine += fabs(row->cosine);
        o.changed += row->changed;
        o.lossy += row->dense && row->delta_error > 0.5;
        if (row->dense && (!o.worst || row->delta_error > o.error_max)) {
            o.error_max = row->delta_error;
            o.worst = row;
        }
    }
    o.kept_min = o.kept_min < o.kept_max ? o.kept_min : o.kept_max;
    double n = o.targets ? o.targets : 1;
    o.removed /= n;
    o.cosine /= n;
    o.changed /= n;
    return o;
}

static void warn_of_loss(const merge *m, const overview *o)
{
    if (o->lossy > 0)
        bw_warn(
            "%s loses more than half of the delta in %d of %d matrices (worst: layer %d %s, relative error %.2f, %.0f%% of the entries unchanged); "
            "the adapter is exact, and --dense f32 keeps it",
            m->config->dense, o->lossy, o->targets, o->worst->layer, bw_target_name(o->worst->target), o->worst->delta_error,
            100 * (1 - o->worst->changed));
}

static int report_text(const merge *m, const result *one, const overview *o, double seconds, bw_text *out)
{
    BW_TRY(bw_text_addf(out, "merge by %s, alpha %g, scale %g, tau %g\n\n%s\n", m->config->method, one->alpha, one->scale, m->config->tau,
                        one->settings.data));
    BW_TRY(bw_text_addf(out, "%d matrices; directions of the UserLoRA kept: %d to %d\n", o->targets, o->kept_min, o->kept_max));
    BW_TRY(bw_text_addf(out, "share of W_R in the range of the UserLoRA: mean %.4f; alpha takes %.4f of it out\n", o->removed, one->alpha));
    BW_TRY(bw_text_addf(out, "|cosine| of W_U and W_R: mean %.4f\n", o->cosine));
    BW_TRY(bw_text_addf(out, "largest entry of |Q^T Q - I|: %.2g\n", o->orthogonality));
    if (o->worst)
        BW_TRY(bw_text_addf(
            out, "dense %s: %.1f%% of the entries changed; worst relative error of a matrix's delta %.2g (layer %d, %s); %d of %d above 0.5\n",
            m->config->dense, 100 * o->changed, o->error_max, o->worst->layer, bw_target_name(o->worst->target), o->lossy, o->targets));
    return bw_text_addf(out, "%.1f s on %d ranks, grid %d x %d, %d replicas\n", seconds, m->grid->size, m->grid->nprow, m->grid->npcol,
                        m->grid->replicas);
}

/* Rank 0: the small files. */
static int finish(const merge *m, const result *one, double seconds)
{
    bw_text table = {0}, report = {0};
    int status;
    overview o = look_over(m);
    warn_of_loss(m, &o);
    BW_GO(table_text(m, &table));
    BW_GO(report_text(m, one, &o, seconds, &report));
    BW_GO(bw_result_write(&one->place, "report.txt", &report, 0644));
    BW_GO(bw_result_write(&one->place, "merge.csv", &table, 0644));
done:
    bw_text_free(&table);
    bw_text_free(&report);
    return status;
}

static int make_result(merge *m, const result *one)
{
    double start = bw_now();
    bw_adapter *adapter = NULL;
    int status;
    BW_GO(prepare_all(m));
    BW_GO(combine_all(m, one, &adapter));
    double merged = bw_now();
    BW_GO(save_adapter(m, one, adapter));
    BW_GO(write_dense(m, one, adapter));
    BW_GO(bw_agree(m->grid, m->grid->rank == 0 ? finish(m, one, bw_now() - start) : BW_OK));
    bw_event_add(BW_EVENT_MERGE, merged - start, 0, 0);
    bw_event_add(BW_EVENT_WRITE, bw_now() - merged, 0, 0);
    bw_info("merge: %s, alpha %g, scale %g: %s (%.1f s)", m->config->method, one->alpha, one->scale, one->folder.data, bw_now() - start);
done:
    if (status != BW_OK && m->grid->rank == 0)
        (void)bw_folder_remove(one->folder.data, written); /* half a result is none; what stays goes at the next start */
    bw_adapter_free(&adapter);
    return status;
}

/* ---- the grid of results ------------------------------------------------------------------------------------------------ */
static int name_result(const merge *m, result *one)
{
    char name[80];
    snprintf(name, sizeof name, "alpha-%g_scale-%g", one->alpha, one->scale);
    BW_TRY(bw_path(&one->folder, m->config->output, single(m) ? "" : name));
    while (one->folder.length > 1 && one->folder.data[one->folder.length - 1] == '/')
        one->folder.data[--one->folder.length] = '\0';
    one->place = (bw_result){one->folder.data, written, BW_MERGE, m->config->redo, NULL};
    return BW_OK;
}

/* The settings of one result: the command's, with its own alpha and scale. */
static int describe_result(const merge *m, result *one)
{
    bw_fact facts[3] = {bw_fact_of("model", bw_source_fingerprint(m->source)), bw_fact_of("user", m->user_print)};
    int count = 2;
    if (m->method != BW_MERGE_USER)
        facts[count++] = bw_fact_of("reinforce", m->reinforce_print);
    bw_config config;
    BW_TRY(bw_config_copy(&config, m->config));
    config.alpha = (bw_numbers){.items = {one->alpha}, .count = 1};
    config.scale = (bw_numbers){.items = {one->scale}, .count = 1};
    int status = bw_result_settings(&config, BW_MERGE, facts, count, &one->settings);
    bw_config_free(&config);
    return status;
}

static int do_result(merge *m, double alpha, double scale)
{
    result one = {.alpha = alpha, .scale = scale};
    bool finished = false;
    int status = name_result(m, &one);
    BW_GO(bw_agree(m->grid, status == BW_OK ? describe_result(m, &one) : status));
    BW_GO(bw_result_claim(m->grid, &one.place, one.settings.data, strcmp(m->config->resume, "never") == 0, &finished));
    if (finished)
        bw_info("merge: %s is done", one.folder.data);
    else
        BW_GO(make_result(m, &one));
done:
    bw_text_free(&one.folder);
    bw_text_free(&one.settings);
    return status;
}

/* A folder that holds one result takes no grid of them. */
static int check_grid_folder(const merge *m)
{
    bw_text path = {0};
    int status = bw_path(&path, m->config->output, "config.yaml");
    if (status == BW_OK && bw_file_exists(path.data))
        status = bw_fail(BW_CANTCREATE,
                         "%s: this folder holds results of other settings, and the results of several alpha and scale need one of their own; "
                         "name another --output, or remove the folder",
                         m->config->output);
    if (status == BW_OK)
        status = bw_dir_make(m->config->output);
    bw_text_free(&path);
    return status;
}

int bw_merge(const bw_grid *grid, const bw_config *config)
{
    merge m = {.grid = grid, .config = config};
    int status;
    BW_GO(open_inputs(&m));
    if (!single(&m))
        BW_GO(bw_agree(grid, grid->rank == 0 ? check_grid_folder(&m) : BW_OK));
    for (int a = 0; a < m.alphas.count; ++a)
        for (int s = 0; s < config->scale.count; ++s)
            BW_GO(do_result(&m, m.alphas.items[a], config->scale.items[s]));
done:
    for (int64_t place = 0; m.works && place < places(&m); ++place)
        bw_merge_work_free(&m.works[place]);
    bw_free(m.works);
    bw_free(m.rows);
    bw_adapter_free(&m.user);
    bw_adapter_free(&m.reinforce);
    bw_source_close(m.source);
    return status;
}

/* ---- is it of today? --------------------------------------------------------------------------------------------------- */
static int compare_result(const merge *m, double alpha, double scale)
{
    result one = {.alpha = alpha, .scale = scale};
    int status = name_result(m, &one);
    if (status == BW_OK)
        status = describe_result(m, &one);
    if (status == BW_OK)
        status = bw_result_compare(&one.place, one.settings.data);
    bw_text_free(&one.folder);
    bw_text_free(&one.settings);
    return status;
}

int bw_merge_compare(const bw_config *config, bw_source *source)
{
    merge m = {.config = config, .source = source, .spec = bw_source_spec(source)};
    BW_TRY(find_method(config->method, &m.method));
    m.alphas = alphas_of(&m);
    BW_TRY(bw_peft_fingerprint(&m.user_print, m.spec, config->user));
    if (m.method != BW_MERGE_USER)
        BW_TRY(bw_peft_fingerprint(&m.reinforce_print, m.spec, config->reinforce ? config->reinforce : ""));
    for (int a = 0; a < m.alphas.count; ++a)
        for (int s = 0; s < config->scale.count; ++s)
            BW_TRY(compare_result(&m, m.alphas.items[a], config->scale.items[s]));
    return BW_OK;
}

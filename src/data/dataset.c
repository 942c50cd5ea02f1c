/* dataset.c - rows to samples of tokens: prompt + answer + end, tokenised together as one text; the prompt's length is that of
 * the prompt tokenised alone, as the method's authors have it. Where BPE merges over that border the two disagree: counted. */
#include "breakwater/data.h"

#include <string.h>

enum { NAMED_ROWS = 8 }; /* rows that a warning names */

typedef struct row_list { /* rows counted, and the first of them named */
    int32_t named[NAMED_ROWS];
    int64_t count;
} row_list;

typedef struct builder {
    bw_dataset *dataset;
    const bw_tokenizer *tokenizer;
    bw_template template;
    const char *end; /* closes an answer */
    int64_t max_length;
    bool drop;
    bw_tokens prompt, joint; /* of the row at hand */
    bw_text text;
    bw_tokens all;
    int64_t capacity;
    row_list dropped, empty; /* of the file at hand */
} builder;

static int grow(builder *in)
{
    bw_dataset *dataset = in->dataset;
    if (dataset->count < in->capacity)
        return BW_OK;
    int64_t capacity = in->capacity ? in->capacity * 2 : 256;
    bw_sample *samples;
    BW_TRY(BW_NEW(samples, capacity, "data set"));
    if (dataset->count)
        memcpy(samples, dataset->samples, (size_t)dataset->count * sizeof *samples);
    bw_free(dataset->samples);
    dataset->samples = samples;
    in->capacity = capacity;
    return BW_OK;
}

/* Tokenise a row: in->prompt and in->joint. */
static int encode_row(builder *in, const bw_row *row, const char *path)
{
    in->text.length = 0;
    in->prompt.count = in->joint.count = 0;
    BW_TRY(bw_row_prompt(row, in->template, path, &in->text));
    BW_TRY(bw_tokenizer_encode(in->tokenizer, in->text.data ? in->text.data : "", in->text.length, true, &in->prompt));
    BW_TRY(bw_text_addf(&in->text, "%s%s", row->output, in->end));
    return bw_tokenizer_encode(in->tokenizer, in->text.data, in->text.length, true, &in->joint);
}

static bool borders_differ(const bw_tokens *prompt, const bw_tokens *joint)
{
    return prompt->count > joint->count || memcmp(prompt->ids, joint->ids, (size_t)prompt->count * sizeof *joint->ids) != 0;
}

static void note_row(row_list *list, const bw_row *row)
{
    if (list->count < NAMED_ROWS)
        list->named[list->count] = row->row;
    list->count++;
}

static bool is_blank(const char *text)
{
    return text[strspn(text, " \t\r\n")] == '\0';
}

static int drop_row(builder *in, const bw_row *row, const char *path)
{
    if (!in->drop)
        return bw_fail(BW_DATA,
                       "%s: %s %d: no token of the answer is left within max_length %lld (the prompt alone has %lld); raise --max-length or take the "
                       "row out, or --on-unsupervised drop",
                       path, row->unit, row->row, (long long)in->max_length, (long long)in->prompt.count);
    note_row(&in->dropped, row);
    return BW_OK;
}

static int add_row(builder *in, const bw_row *row, const char *path)
{
    BW_TRY(encode_row(in, row, path));
    int64_t length = in->joint.count < in->max_length ? in->joint.count : in->max_length;
    /* The first token is never asked for: nothing stands before it to predict it from. */
    int64_t unasked = in->prompt.count > 1 ? in->prompt.count : 1;
    if (unasked >= length)
        return drop_row(in, row, path);
    BW_TRY(grow(in));
    if (is_blank(row->instruction) || is_blank(row->output))
        note_row(&in->empty, row);
    bw_dataset *dataset = in->dataset;
    dataset->samples[dataset->count++] = (bw_sample){.offset = in->all.count,
                                                     .length = (int32_t)length,
                                                     .prompt_length = (int32_t)in->prompt.count,
                                                     .row = row->row,
                                                     .file = dataset->file_count - 1};
    dataset->merged_borders += borders_differ(&in->prompt, &in->joint);
    dataset->answer_tokens += length - unasked;
    for (int64_t i = 0; i < length; i++)
        BW_TRY(bw_tokens_add(&in->all, in->joint.ids[i]));
    return BW_OK;
}

static void name_rows(const row_list *list, const char *unit, bw_text *out)
{
    (void)bw_text_addf(out, "%s", unit); /* a warning may be short of names, not leak them */
    for (int64_t i = 0; i < list->count && i < NAMED_ROWS; i++)
        (void)bw_text_addf(out, "%s%d", i ? ", " : " ", list->named[i]);
    if (list->count > NAMED_ROWS)
        (void)bw_text_addf(out, ", ...");
}

static void warn_of_rows(const builder *in, const char *path, const char *unit)
{
    bw_text dropped = {0}, empty = {0};
    name_rows(&in->dropped, unit, &dropped);
    name_rows(&in->empty, unit, &empty);
    if (in->dropped.count > 0)
        bw_warn("%s: %lld rows have no token of the answer left within max_length %lld and are left out: %s", path, (long long)in->dropped.count,
                (long long)in->max_length, dropped.data ? dropped.data : "?");
    if (in->empty.count > 0)
        bw_warn("%s: %lld rows have an empty instruction or answer and are trained on as they are, an empty answer teaching to say nothing: %s", path,
                (long long)in->empty.count, empty.data ? empty.data : "?");
    bw_text_free(&dropped);
    bw_text_free(&empty);
}

/* The file that samples are about to come from. */
static int name_file(bw_dataset *dataset, const char *path, const char *unit)
{
    bw_data_file *file = &dataset->files[dataset->file_count];
    BW_TRY(BW_NEW(file->path, strlen(path) + 1, "data set"));
    memcpy(file->path, path, strlen(path));
    file->unit = unit;
    dataset->file_count++;
    return BW_OK;
}

static int add_file(builder *in, const char *path)
{
    bw_rows rows;
    BW_TRY(bw_rows_load(&rows, path, true, in->drop));
    int status = name_file(in->dataset, path, rows.count ? rows.rows[0].unit : "row");
    in->dropped = in->empty = (row_list){0};
    for (int64_t i = 0; i < rows.count && status == BW_OK; i++)
        status = add_row(in, &rows.rows[i], path);
    if (status == BW_OK)
        warn_of_rows(in, path, rows.rows[0].unit);
    in->dataset->dropped += in->dropped.count + rows.dropped;
    in->dataset->fingerprint = bw_hash_join(in->dataset->fingerprint, rows.fingerprint);
    bw_rows_free(&rows);
    return status;
}

static int find_end(builder *in)
{
    in->end = bw_template_end(in->template);
    if (in->end && bw_tokenizer_id(in->tokenizer, in->end) < 0)
        return bw_fail(BW_DATA,
                       "the template %s closes an answer with %s, which this model's tokenizer does not have; choose the model's own --template",
                       bw_template_name(in->template), in->end);
    if (!in->end)
        in->end = bw_tokenizer_eos_text(in->tokenizer);
    return in->end ? BW_OK
                   : bw_fail(BW_DATA, "the model's tokenizer names no end-of-text token (eos), so an answer would never end; add eos_token to its "
                                      "tokenizer_config.json");
}

/* What else decides the tokens, beside the files. */
static bw_hash fingerprint_settings(bw_template which, int64_t max_length, int32_t vocab)
{
    char text[96];
    int length = snprintf(text, sizeof text, "%s %lld %d", bw_template_name(which), (long long)max_length, vocab);
    return bw_hash_bytes(text, (size_t)length);
}

int bw_dataset_fingerprint(bw_hash *out, int32_t vocab, const bw_list *paths, bw_template which, int64_t max_length)
{
    *out = fingerprint_settings(which, max_length, vocab);
    for (int i = 0; i < paths->count; i++) {
        bw_hash file;
        BW_TRY(bw_hash_file(&file, paths->items[i]));
        *out = bw_hash_join(*out, file);
    }
    return BW_OK;
}

static int check_arguments(const bw_list *paths, int64_t max_length, const char *on_unsupervised)
{
    if (paths->count < 1)
        return bw_fail(BW_USAGE, "no data file is given; name at least one with --data");
    if (max_length < 2 || max_length > INT32_MAX)
        return bw_fail(BW_USAGE, "max_length is %lld; it must be at least 2", (long long)max_length);
    if (strcmp(on_unsupervised, "drop") != 0 && strcmp(on_unsupervised, "error") != 0)
        return bw_fail(BW_USAGE, "on_unsupervised is '%s'; it must be drop or error", on_unsupervised);
    return BW_OK;
}

int bw_dataset_load(bw_dataset *dataset, const bw_tokenizer *tokenizer, const bw_list *paths, bw_template which, int64_t max_length,
                    const char *on_unsupervised)
{
    int status;
    *dataset = (bw_dataset){0};
    builder in = {.dataset = dataset, .tokenizer = tokenizer, .template = which, .max_length = max_length};
    BW_GO(check_arguments(paths, max_length, on_unsupervised));
    in.drop = strcmp(on_unsupervised, "drop") == 0;
    BW_GO(find_end(&in));
    dataset->fingerprint = fingerprint_settings(which, max_length, bw_tokenizer_vocab(tokenizer));
    BW_GO(BW_NEW(dataset->files, paths->count, "data set"));
    for (int i = 0; i < paths->count; i++)
        BW_GO(add_file(&in, paths->items[i]));
    if (dataset->count == 0)
        BW_GO(bw_fail(BW_DATA, "%s: no row can be used: all %lld are longer than max_length %lld before their answer begins; raise --max-length",
                      paths->items[0], (long long)dataset->dropped, (long long)max_length));
    if (dataset->count > INT32_MAX)
        BW_GO(bw_fail(BW_DATA, "%lld rows are more than a data set can hold (2147483647)", (long long)dataset->count));
    dataset->tokens = in.all.ids;
    dataset->token_count = in.all.count;
    in.all = (bw_tokens){0};
done:
    bw_tokens_free(&in.prompt);
    bw_tokens_free(&in.joint);
    bw_tokens_free(&in.all);
    bw_text_free(&in.text);
    if (status != BW_OK)
        bw_dataset_free(dataset);
    return status;
}

void bw_dataset_free(bw_dataset *dataset)
{
    bw_free(dataset->tokens);
    bw_free(dataset->samples);
    for (int32_t i = 0; i < dataset->file_count; i++)
        bw_free(dataset->files[i].path);
    bw_free(dataset->files);
    *dataset = (bw_dataset){0};
}

int bw_dataset_place(const bw_dataset *dataset, int64_t sample, bw_text *out)
{
    const bw_sample *at = &dataset->samples[sample];
    const bw_data_file *file = &dataset->files[at->file];
    return bw_text_addf(out, "%s, %s %d", file->path, file->unit, at->row);
}

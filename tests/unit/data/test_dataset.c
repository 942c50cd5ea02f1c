/* Data files are somebody else's: each fault is named by file and line. And what becomes of a good row. */
#include "byte_tokenizer.h"

/* ---- good files ---------------------------------------------------------------------------------------------------*/
static void check_row(const bw_row *row, const char *instruction, const char *input, const char *output, int32_t number)
{
    assert_string_equal(row->instruction, instruction);
    assert_string_equal(row->input ? row->input : "", input);
    assert_string_equal(row->output ? row->output : "", output);
    assert_int_equal(row->row, number);
}

static void array_and_lines_give_the_same_rows(void **state)
{
    bw_rows array, lines;
    (void)state;
    const char *a = write_file(
        "a.json", " \n[{\"instruction\":\"i\\n\u00e9\",\"output\":\"o\",\"tag\":[1]},\n{\"instruction\":\"j\",\"input\":\"k\",\"output\":\"\"}]");
    const char *b = write_file(
        "b.jsonl",
        "{\"instruction\":\"i\\n\u00e9\",\"input\":null,\"output\":\"o\"}\r\n\n  \n{\"instruction\":\"j\",\"input\":\"k\",\"output\":\"\"}");
    assert_int_equal(bw_rows_load(&array, a, true, false), BW_OK);
    assert_int_equal(bw_rows_load(&lines, b, true, false), BW_OK);
    assert_int_equal(array.count, 2);
    assert_int_equal(lines.count, 2);
    check_row(&array.rows[0], "i\n\u00e9", "", "o", 1);
    check_row(&array.rows[1], "j", "k", "", 2);
    check_row(&lines.rows[0], "i\n\u00e9", "", "o", 1);
    check_row(&lines.rows[1], "j", "k", "", 4);
    bw_rows_free(&array);
    bw_rows_free(&lines);
}

static void messages_become_prompt_and_answer(void **state)
{
    bw_rows rows;
    bw_text prompt = {0};
    (void)state;
    const char *path = write_file("m.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"U\"},{\"role\":\"assistant\",\"content\":\"A\"}]}\n"
                                             "{\"messages\":[{\"role\":\"system\",\"content\":\"S\"},{\"role\":\"user\",\"content\":\"U\"},"
                                             "{\"role\":\"assistant\",\"content\":\"A\"},{\"role\":\"user\",\"content\":\"V\"},"
                                             "{\"role\":\"assistant\",\"content\":\"B\"}]}\n");
    assert_int_equal(bw_rows_load(&rows, path, true, false), BW_OK);
    check_row(&rows.rows[0], "U", "", "A", 1);
    check_row(&rows.rows[1], "V", "", "B", 2);
    assert_null(rows.rows[0].turns);
    assert_int_equal(rows.rows[1].turn_count, 4);
    assert_int_equal(bw_row_prompt(&rows.rows[1], BW_TEMPLATE_CHATML, path, &prompt), BW_OK);
    assert_string_equal(prompt.data, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
                                     "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n");
    assert_int_equal(bw_row_prompt(&rows.rows[1], BW_TEMPLATE_ALPACA, path, &prompt), BW_DATA);
    assert_non_null(strstr(bw_error(), "line 2"));
    bw_error_clear();
    bw_text_free(&prompt);
    bw_rows_free(&rows);
}

static void prompts_alone_need_no_output(void **state)
{
    bw_rows rows;
    (void)state;
    const char *path = write_file("p.jsonl", "{\"instruction\":\"i\"}\n{\"messages\":[{\"role\":\"user\",\"content\":\"U\"}]}\n"
                                             "{\"messages\":[{\"role\":\"user\",\"content\":\"U\"},{\"role\":\"assistant\",\"content\":\"A\"}]}\n");
    assert_int_equal(bw_rows_load(&rows, path, false, false), BW_OK);
    assert_null(rows.rows[0].output);
    assert_null(rows.rows[1].output);
    assert_string_equal(rows.rows[2].output, "A");
    bw_rows_free(&rows);
}

/* ---- bad files ----------------------------------------------------------------------------------------------------*/
typedef struct bad_file {
    const char *content, *message;
} bad_file;
#define GOOD           "{\"instruction\":\"i\",\"output\":\"o\"}\n"
#define TALK(MESSAGES) GOOD "{\"messages\":[" MESSAGES "]}\n"
#define SAYS(ROLE)     "{\"role\":\"" ROLE "\",\"content\":\"x\"}"
static const bad_file BAD_FILES[] = {
    {"", "is empty"},
    {" \n\r\n", "is empty"},
    {"[]", "no elements"},
    {"\xEF\xBB\xBF" GOOD, "line 1: the file begins with a byte order mark"},
    {GOOD "{\"instruction\":\"\xC3(\",\"output\":\"o\"}\n", "line 2: not UTF-8: byte 0xC3 at offset"},
    {GOOD GOOD "{\"instruction\":\"i\",\n", "line 3"},
    {GOOD "not json\n", ": line 2, column 3: this is not valid JSON"},
    {"{\n  \"instruction\": \"i\",\n  \"output\": \"o\"\n}\n", "line 1: the line ends in the middle of its JSON; write each row on one line"},
    {"{\"data\": [\n" GOOD "]}\n", "line 1: the line ends in the middle of its JSON"},
    {"GGUF\3\1\1\1", "this is a model in GGUF; expected a JSON array of rows, or one JSON object a line"},
    {"PAR1\x15", "this is a Parquet file"},
    {"\x1F\x8B\x08", "this is a gzip file"},
    {GOOD "{\"instruction\":\"i\",\"instruction\":\"j\",\"output\":\"o\"}\n", "line 2"},
    {GOOD GOOD, NULL},
    {GOOD "\n{\"output\":\"o\"}\n", "line 3: there is no \"instruction\""},
    {GOOD "{\"prompt\":\"i\",\"output\":\"o\"}\n", "line 2: there is no \"instruction\""},
    {GOOD "{\"instruction\":\"i\"}\n", "line 2: there is no \"output\""},
    {GOOD "{\"instruction\":5,\"output\":\"o\"}\n", "line 2: \"instruction\" is a number"},
    {GOOD "{\"instruction\":\"i\",\"output\":null}\n", "line 2: \"output\" is null"},
    {GOOD "{\"instruction\":\"i\",\"input\":[],\"output\":\"o\"}\n", "line 2: \"input\" is an array"},
    {GOOD "{\"instruction\":\"i\\u0000\",\"output\":\"o\"}\n", "line 2: \"instruction\" holds a NUL"},
    {GOOD "7\n", "line 2: this is a number"},
    {"[{\"instruction\":\"i\",\"output\":\"o\"}, \"x\"]", "element 2: this is a string"},
    {"[{\"instruction\":\"i\",\"output\":\"o\"}, {\"instruction\":\"i\"}]", "element 2: there is no \"output\""},
    {"[{\"instruction\":\"i\",\"output\":\"o\"},\n{\"instruction\":", "line 2"},
    {GOOD "{\"messages\":{}}\n", "line 2: \"messages\" is not a list"},
    {GOOD "{\"messages\":[]}\n", "line 2: \"messages\" is not a list"},
    {GOOD "{\"instruction\":\"i\",\"messages\":[]}\n", "line 2: there is an \"instruction\" and there are \"messages\""},
    {TALK(SAYS("user")), "line 2: the last message is not the assistant's"},
    {TALK(SAYS("assistant")), "line 2: message 1 has the role assistant"},
    {TALK(SAYS("user") "," SAYS("user") "," SAYS("assistant")), "line 2: message 2 has the role user"},
    {TALK(SAYS("user") "," SAYS("system") "," SAYS("assistant")), "line 2: message 2 has the role system"},
    {TALK(SAYS("system") "," SAYS("assistant")), "line 2: message 2 has the role assistant"},
    {TALK(SAYS("tool")), "line 2: a message has the role \"tool\""},
    {TALK("{\"role\":\"user\"}"), "line 2: a message has no \"content\""},
    {TALK("{\"content\":\"x\"}"), "line 2: a message has no \"role\""},
    {TALK("{\"role\":\"user\",\"content\":[\"x\"]}"), "line 2: \"content\" is an array"},
    {TALK("5"), "line 2: a message has no \"role\""},
};

static void every_bad_file_is_refused_by_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof BAD_FILES / sizeof BAD_FILES[0]; i++) {
        bw_rows rows;
        const char *path = write_file("bad", BAD_FILES[i].content);
        int status = bw_rows_load(&rows, path, true, false);
        path_count--; /* the next one takes its place */
        assert_int_equal(status, BAD_FILES[i].message ? BW_DATA : BW_OK);
        if (status != BW_OK && (!strstr(bw_error(), BAD_FILES[i].message) || !strstr(bw_error(), path)))
            fail_msg("case %zu: expected \"%s\" in: %s", i, BAD_FILES[i].message, bw_error());
        bw_error_clear();
        bw_rows_free(&rows);
    }
    path_count++;
}

static void bad_rows_are_left_out_and_counted_where_asked(void **state)
{
    (void)state;
    static const char content[] = "{\"instruction\":\"a\",\"output\":\"b\"}\nnot JSON\n{\"instruction\":\"\xff\",\"output\":\"b\"}\n"
                                  "{\"question\":\"a\"}\n{\"instruction\":\"c\",\"output\":\"d\"}\n";
    bw_rows rows;
    assert_int_equal(bw_rows_load(&rows, write_file("some-bad", content), true, true), BW_OK);
    assert_int_equal(rows.count, 2);
    assert_int_equal(rows.dropped, 3);
    assert_int_equal(rows.rows[1].row, 5); /* lines keep their numbers */
    assert_string_equal(rows.rows[1].instruction, "c");
    bw_rows_free(&rows);
    assert_int_equal(bw_rows_load(&rows, write_file("all-bad", "1\n2\n"), true, true), BW_DATA);
    assert_non_null(strstr(bw_error(), "none of its 2 rows can be used; the first: "));
    bw_error_clear();
}

static void a_missing_file_is_no_input(void **state)
{
    bw_rows rows;
    (void)state;
    assert_int_equal(bw_rows_load(&rows, "/nonexistent/rows.jsonl", true, false), BW_NOINPUT);
    bw_error_clear();
}

/* ---- samples ------------------------------------------------------------------------------------------------------*/
static int load(bw_dataset *dataset, const bw_tokenizer *tokenizer, const char *content, int64_t max_length, const char *on_unsupervised)
{
    bw_list list = {.items = {(char *)(uintptr_t)write_file("rows.jsonl", content)}, .count = 1};
    path_count--;
    int status = bw_dataset_load(dataset, tokenizer, &list, BW_TEMPLATE_PLAIN, max_length, on_unsupervised);
    path_count++;
    return status;
}

static void check_tokens(const bw_dataset *dataset, int64_t index, const char *text, int32_t prompt_length)
{
    const bw_sample *sample = &dataset->samples[index];
    for (int32_t i = 0; i < sample->length; i++)
        assert_int_equal(dataset->tokens[sample->offset + i], text[i] ? (uint8_t)text[i] : 256);
    assert_true((size_t)sample->length <= strlen(text) + 1);
    assert_int_equal(sample->prompt_length, prompt_length);
}

static void a_sample_is_prompt_answer_and_end(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer(NULL, 0);
    bw_dataset dataset;
    (void)state;
    assert_int_equal(load(&dataset, tokenizer,
                          "{\"instruction\":\"ask\",\"output\":\"yes\"}\n{\"instruction\":\"q\",\"input\":\"r\",\"output\":\"\"}\n", 64, "error"),
                     BW_OK);
    assert_int_equal(dataset.count, 2);
    check_tokens(&dataset, 0, "ask\nyes", 4);
    check_tokens(&dataset, 1, "q\n\nr\n", 5);
    assert_int_equal(dataset.samples[0].length, 8);
    assert_int_equal(dataset.token_count, 8 + 6);
    assert_int_equal(dataset.answer_tokens, 4 + 1);
    assert_int_equal(dataset.merged_borders, 0);
    bw_dataset_free(&dataset);
    bw_tokenizer_free(tokenizer);
}

/* Prompt "askN" of 4 tokens: at 5 one answer token is left, at 4 none. */
static void truncation_drops_or_refuses_rows_without_an_answer(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer(NULL, 0);
    bw_dataset dataset;
    const char *rows = "{\"instruction\":\"ask\",\"output\":\"yes\"}\n{\"instruction\":\"a\",\"output\":\"yes\"}\n";
    (void)state;
    assert_int_equal(load(&dataset, tokenizer, rows, 5, "error"), BW_OK);
    assert_int_equal(dataset.samples[0].length, 5);
    assert_int_equal(dataset.answer_tokens, 1 + 3);
    bw_dataset_free(&dataset);
    assert_int_equal(load(&dataset, tokenizer, rows, 4, "drop"), BW_OK);
    assert_int_equal(dataset.count, 1);
    assert_int_equal(dataset.dropped, 1);
    assert_int_equal(dataset.samples[0].row, 2);
    bw_dataset_free(&dataset);
    assert_int_equal(load(&dataset, tokenizer, rows, 4, "error"), BW_DATA);
    assert_non_null(strstr(bw_error(), "line 1: no token of the answer is left"));
    bw_error_clear();
    assert_int_equal(load(&dataset, tokenizer, rows, 2, "drop"), BW_DATA);
    assert_non_null(strstr(bw_error(), "no row can be used"));
    bw_error_clear();
    assert_int_equal(load(&dataset, tokenizer, rows, 2, "maybe"), BW_USAGE);
    bw_error_clear();
    bw_tokenizer_free(tokenizer);
}

/* With a merge of "newline, y" (written as the byte-level character for newline) the border of prompt and answer vanishes. */
static void rows_that_merge_over_the_border_are_counted(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer((const char *const[]){"ya"}, 1);
    bw_merges_add(&tokenizer->merges, '\n', 'y', 1, 257); /* id 257 stands for it here: only the count matters */
    bw_dataset dataset;
    (void)state;
    assert_int_equal(
        load(&dataset, tokenizer, "{\"instruction\":\"q\",\"output\":\"yes\"}\n{\"instruction\":\"q\",\"output\":\"no\"}\n", 64, "error"), BW_OK);
    assert_int_equal(dataset.merged_borders, 1);
    bw_dataset_free(&dataset);
    bw_tokenizer_free(tokenizer);
}

static bw_hash fingerprint(const bw_tokenizer *tokenizer, const char *content, int64_t max_length)
{
    bw_dataset dataset;
    assert_int_equal(load(&dataset, tokenizer, content, max_length, "error"), BW_OK);
    bw_hash hash = dataset.fingerprint;
    bw_dataset_free(&dataset);
    return hash;
}

static void the_fingerprint_sees_bytes_and_settings(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer(NULL, 0);
    (void)state;
    bw_hash first = fingerprint(tokenizer, GOOD, 64), again = fingerprint(tokenizer, GOOD, 64);
    assert_memory_equal(&first, &again, sizeof first);
    bw_hash longer = fingerprint(tokenizer, GOOD, 65), spaced = fingerprint(tokenizer, GOOD " \n", 64);
    assert_memory_not_equal(&first, &longer, sizeof first);
    assert_memory_not_equal(&first, &spaced, sizeof first);
    bw_tokenizer_free(tokenizer);
}

static void several_files_are_one_data_set(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer(NULL, 0);
    bw_dataset dataset, turned;
    (void)state;
    char *one = (char *)(uintptr_t)write_file("1.jsonl", GOOD), *two = (char *)(uintptr_t)write_file("2.json", "[" GOOD "," GOOD "]");
    bw_list list = {.items = {one, two}, .count = 2}, back = {.items = {two, one}, .count = 2};
    assert_int_equal(bw_dataset_load(&dataset, tokenizer, &list, BW_TEMPLATE_PLAIN, 64, "drop"), BW_OK);
    assert_int_equal(bw_dataset_load(&turned, tokenizer, &back, BW_TEMPLATE_PLAIN, 64, "drop"), BW_OK);
    assert_int_equal(dataset.count, 3);
    bw_text places = {0}, wanted = {0};
    for (int64_t i = 0; i < 3; i++)
        assert_int_equal(bw_dataset_place(&dataset, i, &places), BW_OK);
    assert_int_equal(bw_text_addf(&wanted, "%s, line 1%s, element 1%s, element 2", one, two, two), BW_OK);
    assert_string_equal(places.data, wanted.data);
    bw_text_free(&places);
    bw_text_free(&wanted);
    assert_memory_not_equal(&dataset.fingerprint, &turned.fingerprint, sizeof(bw_hash));
    bw_dataset_free(&dataset);
    bw_dataset_free(&turned);
    assert_int_equal(bw_dataset_load(&dataset, tokenizer, &list, BW_TEMPLATE_CHATML, 64, "drop"), BW_DATA);
    assert_non_null(strstr(bw_error(), "<|im_end|>")); /* this tokenizer has no such token */
    bw_error_clear();
    bw_tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(array_and_lines_give_the_same_rows),
        TEST(messages_become_prompt_and_answer),
        TEST(prompts_alone_need_no_output),
        TEST(every_bad_file_is_refused_by_line),
        TEST(bad_rows_are_left_out_and_counted_where_asked),
        TEST(a_missing_file_is_no_input),
        TEST(a_sample_is_prompt_answer_and_end),
        TEST(truncation_drops_or_refuses_rows_without_an_answer),
        TEST(rows_that_merge_over_the_border_are_counted),
        TEST(the_fingerprint_sees_bytes_and_settings),
        TEST(several_files_are_one_data_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

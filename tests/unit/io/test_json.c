/* JSON: what a reader gets, what is refused and where the message points, and texts written back. */
#include "bytes.h"

static bw_json *parse(const char *text)
{
    bw_json *root;
    if (bw_json_parse(&root, text, strlen(text), "test") != BW_OK)
        fail_msg("%s: %s", text, bw_error());
    return root;
}

static void values_keep_their_kind_and_value(void **state)
{
    (void)state;
    bw_json *root = parse("{\"a\": [1, -2.5, true, null, \"x\\u0000y\"], \"b\": {\"c\": 9007199254740993}, \"d\": 3.0}");
    const bw_json *a = bw_json_get(root, "a");
    assert_int_equal(bw_json_kind(root), BW_JSON_OBJECT);
    assert_int_equal(bw_json_size(root), 3);
    assert_int_equal(bw_json_size(a), 5);
    assert_int_equal(bw_json_int(bw_json_at(a, 0), -1), 1);
    assert_true(bw_json_number(bw_json_at(a, 0), 0) == 1.0);
    assert_true(bw_json_number(bw_json_at(a, 1), 0) == -2.5);
    assert_int_equal(bw_json_int(bw_json_at(a, 1), 7), 7);
    assert_true(bw_json_true(bw_json_at(a, 2), false));
    assert_int_equal(bw_json_kind(bw_json_at(a, 3)), BW_JSON_NULL);
    size_t length;
    const char *text = bw_json_text(bw_json_at(a, 4), &length);
    assert_int_equal(length, 3);
    assert_memory_equal(text, "x\0y", 3);
    assert_int_equal(bw_json_int(bw_json_get(bw_json_get(root, "b"), "c"), 0), 9007199254740993);
    assert_int_equal(bw_json_int(bw_json_get(root, "d"), 0), 3);
    bw_json_free(root);
}

/* As in tokenizer_config.json, where 10^30 says that there is no limit: the other integers of that text keep their value. */
static void an_integer_beyond_64_bits_is_a_number_and_no_reason_to_refuse_the_file(void **state)
{
    (void)state;
    bw_json *root = parse("{\"model_max_length\": 1000000000000000019884624838656, \"vocab_size\": 49152}");
    assert_true(bw_json_number(bw_json_get(root, "model_max_length"), 0) == 1e30);
    assert_int_equal(bw_json_int(bw_json_get(root, "model_max_length"), -1), -1);
    assert_int_equal(bw_json_int(bw_json_get(root, "vocab_size"), 0), 49152);
    bw_json_free(root);
}

static void what_is_absent_or_of_another_kind_gives_the_default(void **state)
{
    (void)state;
    bw_json *root = parse("[\"x\", {}]");
    void *at = NULL;
    const char *key;
    const bw_json *value;
    assert_null(bw_json_get(root, "a"));
    assert_null(bw_json_get(NULL, "a"));
    assert_null(bw_json_at(root, 2));
    assert_null(bw_json_at(root, -1));
    assert_null(bw_json_text(root, NULL));
    assert_int_equal(bw_json_size(bw_json_at(root, 0)), 0);
    assert_int_equal(bw_json_int(bw_json_at(root, 0), 5), 5);
    assert_true(bw_json_number(NULL, 0.5) == 0.5);
    assert_true(bw_json_true(NULL, true));
    assert_false(bw_json_next(root, &at, &key, &value));
    assert_false(bw_json_next(bw_json_at(root, 1), &at, &key, &value));
    bw_json_free(root);
}

static void an_object_is_walked_in_file_order(void **state)
{
    (void)state;
    enum { COUNT = 20000 }; /* a vocabulary: a walk by index would take a minute */
    bw_text text = {0};
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(bw_text_addf(&text, "%s\"%x\": %d", i ? ", " : "{", (unsigned)i * 2654435761u, i), BW_OK);
    put(&text, "}", 1);
    bw_json *root = parse(text.data);
    void *at = NULL;
    const char *key;
    const bw_json *value;
    int64_t seen = 0;
    while (bw_json_next(root, &at, &key, &value)) {
        assert_int_equal(bw_json_int(value, -1), seen);
        assert_int_equal(strtoul(key, NULL, 16), (unsigned)seen * 2654435761u);
        seen++;
    }
    assert_int_equal(seen, COUNT);
    bw_json_free(root);
    bw_text_free(&text);
}

static void bad_text_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct {
        const char *text, *wanted;
    } cases[] = {
        {"", "test: line 1"},
        {"{\"a\": 1,\n \"b\": 2,\n \"a\": 3}", "line 3"},
        {"{\"a\": 1} x", "line 1"},
        {"{\"a\": \"\xc0\xaf\"}", "UTF-8"},
        {"{\"a\": \"\xed\xa0\x80\"}", "UTF-8"},
        {"{\"a\": \"\\ud800\"}", "line 1"},
        {"{\"a\": 1e999}", "real"},
        {"{\"a\": NaN}", "line 1"},
        {"{'a': 1}", "line 1"},
        {"[1, 2,]", "line 1"},
        {"\"\x1b[31m\"", "line 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_json *root = (bw_json *)1;
        int status = bw_json_parse(&root, cases[i].text, strlen(cases[i].text), "test");
        assert_null(root);
        assert_null(strchr(bw_error(), '\x1b')); /* what the file holds must not steer a terminal */
        expect_failure(status, BW_DATA, cases[i].wanted);
    }
}

static void deep_nesting_is_refused_without_using_up_the_stack(void **state)
{
    (void)state;
    enum { DEPTH = 1000000 };
    char *text = malloc(DEPTH);
    memset(text, '[', DEPTH);
    bw_json *root;
    expect_failure(bw_json_parse(&root, text, DEPTH, "test"), BW_DATA, "depth");
    free(text);
}

static void text_cut_anywhere_is_refused(void **state)
{
    (void)state;
    const char *text = "{\"a\": [1, -2.5e3, true, null], \"b\\n\": {\"c\": \"\xc3\xa9\"}}";
    for (size_t length = 0; length < strlen(text); length++) {
        char *exact = malloc(length ? length : 1); /* so that a sanitizer sees a byte too many */
        memcpy(exact, text, length);
        bw_json *root;
        expect_failure(bw_json_parse(&root, exact, length, "test"), BW_DATA, "test: line ");
        free(exact);
    }
}

static void damaged_text_is_read_or_refused(void **state)
{
    (void)state;
    const char *text = "{\"a\": [1, -2.5e3, true, null, 12], \"b\\n\": {\"c\": \"\xc3\xa9\\u00e9\"}}";
    uint64_t random = 3;
    char copy[100];
    for (int i = 0; i < 20000; i++) {
        memcpy(copy, text, strlen(text));
        for (int flips = 0; flips < 3; flips++)
            copy[next_random(&random) % strlen(text)] = (char)next_random(&random);
        bw_json *root;
        int status = bw_json_parse(&root, copy, strlen(text), "test");
        assert_true(status == BW_OK || (status == BW_DATA && bw_error()[0]));
        bw_json_free(root);
        bw_error_clear();
    }
}

static void a_missing_file_and_an_empty_one_are_told_apart(void **state)
{
    (void)state;
    char *folder = new_folder(), *path = path_in(folder, "empty.json");
    bw_json *root;
    expect_failure(bw_json_load(&root, path), BW_NOINPUT, "empty.json");
    store(path, "", 0);
    expect_failure(bw_json_load(&root, path), BW_DATA, "empty.json: line 1");
    store(path, "{\"a\":\n1}", 8);
    assert_int_equal(bw_json_load(&root, path), BW_OK);
    bw_json_free(root);
    free(path);
    remove_folder(folder);
}

static void quoted(const char *bytes, size_t length, const char *wanted)
{
    bw_text out = {0};
    assert_int_equal(bw_json_quote(&out, bytes, length), BW_OK);
    assert_string_equal(out.data, wanted);
    bw_text_free(&out);
}

static void control_bytes_are_escaped_and_bad_utf8_is_replaced(void **state)
{
    (void)state;
    quoted("", 0, "\"\"");
    quoted("a\"b\\c\n\t\r\b\f\x01\x7f\0z", 14, "\"a\\\"b\\\\c\\n\\t\\r\\b\\f\\u0001\\u007f\\u0000z\"");
    quoted("\xc3\xa9\xf0\x9f\x8c\x8a", 6, "\"\xc3\xa9\xf0\x9f\x8c\x8a\"");
    /* One U+FFFD per longest start of a character (Unicode 15, table 3-8 and following). */
    quoted("\xc0\xaf\xe0\x80\xbf", 5, "\"\ufffd\ufffd\ufffd\ufffd\ufffd\"");
    quoted("\xed\xa0\x80", 3, "\"\ufffd\ufffd\ufffd\"");
    quoted("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", 9, "\"\ufffd\ufffd\ufffd\ufffd\ufffd\x41\ufffd\ufffd\x42\"");
    quoted("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", 9, "\"\ufffd\ufffd\ufffd\ufffd\x41\"");
}

static void any_bytes_quoted_are_json_and_text_comes_back(void **state)
{
    (void)state;
    uint64_t random = 5;
    for (int i = 0; i < 20000; i++) {
        char bytes[12];
        size_t length = next_random(&random) % 12;
        bool ascii = i % 2;
        for (size_t k = 0; k < length; k++)
            bytes[k] = (char)(next_random(&random) & (ascii ? 0x7f : 0xff));
        bw_text out = {0};
        bw_json *root;
        assert_int_equal(bw_json_quote(&out, bytes, length), BW_OK);
        assert_int_equal(bw_json_parse(&root, out.data, out.length, "quoted"), BW_OK);
        size_t back_length;
        const char *back = bw_json_text(root, &back_length);
        if (ascii) {
            assert_int_equal(back_length, length);
            assert_memory_equal(back, bytes, length);
        }
        bw_json_free(root);
        bw_text_free(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_keep_their_kind_and_value),
        cmocka_unit_test(an_integer_beyond_64_bits_is_a_number_and_no_reason_to_refuse_the_file),
        cmocka_unit_test(what_is_absent_or_of_another_kind_gives_the_default),
        cmocka_unit_test(an_object_is_walked_in_file_order),
        cmocka_unit_test(bad_text_is_refused_with_its_place),
        cmocka_unit_test(deep_nesting_is_refused_without_using_up_the_stack),
        cmocka_unit_test(text_cut_anywhere_is_refused),
        cmocka_unit_test(damaged_text_is_read_or_refused),
        cmocka_unit_test(a_missing_file_and_an_empty_one_are_told_apart),
        cmocka_unit_test(control_bytes_are_escaped_and_bad_utf8_is_replaced),
        cmocka_unit_test(any_bytes_quoted_are_json_and_text_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

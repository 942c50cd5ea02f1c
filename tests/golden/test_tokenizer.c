/* Parity with Hugging Face's `tokenizers` (tests/golden/tokenizer/make.py): zero differences, encode and decode. The small
 * tokenizers cover the kinds of pre-tokeniser and normaliser; SmolLM2's own is read from the model's GGUF where BW_MODEL names it. */
#include "breakwater/data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { SMALL_STRIDE = 5, SKIPPED = 77 };

static bool load(const char *name, const char *ending, bw_map *map)
{
    char path[1024];
    const char *root = getenv("BW_TEST_DATA");
    snprintf(path, sizeof path, "%s/golden/tokenizer/%s%s", root ? root : "tests", name, ending);
    if (bw_map_open(map, path) == BW_OK)
        return true;
    print_error("%s\n", bw_error());
    return false;
}

/* The next line of JSON, or NULL at the end. */
static bw_json *next_line(const bw_map *map, size_t *at)
{
    bw_json *value = NULL;
    if (*at >= map->size)
        return NULL;
    const char *line = (const char *)map->data + *at, *end = memchr(line, '\n', map->size - *at);
    assert_non_null(end);
    assert_int_equal(bw_json_parse(&value, line, (size_t)(end - line), map->path), BW_OK);
    *at += (size_t)(end - line) + 1;
    return value;
}

static bool same_ids(const bw_tokens *found, const bw_json *expected)
{
    if (found->count != bw_json_size(expected))
        return false;
    for (int64_t i = 0; i < found->count; i++)
        if (found->ids[i] != bw_json_int(bw_json_at(expected, i), -1))
            return false;
    return true;
}

static void print_ids(const char *what, const bw_tokens *found, const bw_json *expected)
{
    bw_text text = {0};
    for (int64_t i = 0; i < found->count; i++)
        bw_text_addf(&text, " %d", found->ids[i]);
    bw_text_addf(&text, "; expected");
    for (int64_t i = 0; i < bw_json_size(expected); i++)
        bw_text_addf(&text, " %d", (int)bw_json_int(bw_json_at(expected, i), -1));
    print_error("%s:%s\n", what, text.data);
    bw_text_free(&text);
}

/* Every `stride`-th string of the corpus gives the ids of the next line. */
static void check_ids(const bw_tokenizer *tokenizer, const char *name, int stride)
{
    bw_map corpus, ids;
    size_t text_at = 0, ids_at = 0;
    int differences = 0, number = 0;
    bw_tokens found = {0};
    assert_true(load("corpus", ".jsonl", &corpus) && load(name, ".ids.jsonl", &ids));
    for (bw_json *string; (string = next_line(&corpus, &text_at)); number++, bw_json_free(string)) {
        if (number % stride)
            continue;
        size_t length = 0;
        const char *text = bw_json_text(string, &length);
        bw_json *expected = next_line(&ids, &ids_at);
        found.count = 0;
        assert_int_equal(bw_tokenizer_encode(tokenizer, text, length, true, &found), BW_OK);
        if (!same_ids(&found, expected) && differences++ < 10)
            print_ids(text, &found, expected);
        bw_json_free(expected);
    }
    assert_true(number >= 2000);
    assert_int_equal(ids_at, ids.size);
    bw_tokens_free(&found);
    bw_map_close(&corpus);
    bw_map_close(&ids);
    assert_int_equal(differences, 0);
}

static int64_t read_ids(const bw_json *list, int32_t *ids)
{
    int64_t count = bw_json_size(list);
    assert_true(count <= 64);
    for (int64_t i = 0; i < count; i++)
        ids[i] = (int32_t)bw_json_int(bw_json_at(list, i), -1);
    return count;
}

static int check_decoded(const bw_tokenizer *tokenizer, const bw_json *line, bool skip)
{
    int32_t ids[64];
    int64_t count = read_ids(bw_json_get(line, "ids"), ids);
    size_t length = 0;
    const char *expected = bw_json_text(bw_json_get(line, skip ? "skip" : "keep"), &length);
    bw_text found = {0};
    assert_int_equal(bw_tokenizer_decode(tokenizer, ids, count, skip, &found), BW_OK);
    bool same = found.length == length && memcmp(found.data, expected, length) == 0;
    if (!same)
        print_error("decoded \"%s\", expected \"%s\"\n", found.data, expected);
    bw_text_free(&found);
    return !same;
}

static void check_decode(const bw_tokenizer *tokenizer, const char *name)
{
    bw_map lines;
    size_t at = 0;
    int differences = 0;
    assert_true(load(name, ".decode.jsonl", &lines));
    for (bw_json *line; (line = next_line(&lines, &at)); bw_json_free(line))
        differences += check_decoded(tokenizer, line, false) + check_decoded(tokenizer, line, true);
    bw_map_close(&lines);
    assert_int_equal(differences, 0);
}

static void add_character(bw_text *out, uint32_t c)
{
    uint8_t bytes[4] = {(uint8_t)(0xF0 | c >> 18), (uint8_t)(0x80 | (c >> 12 & 0x3F)), (uint8_t)(0x80 | (c >> 6 & 0x3F)),
                        (uint8_t)(0x80 | (c & 0x3F))};
    int first = c < 0x80 ? 3 : c < 0x800 ? 2 : c < 0x10000 ? 1 : 0;
    bytes[first] = c < 0x80 ? (uint8_t)c : c < 0x800 ? (uint8_t)(0xC0 | c >> 6) : c < 0x10000 ? (uint8_t)(0xE0 | c >> 12) : bytes[0];
    assert_int_equal(bw_text_add(out, bytes + first, (size_t)(4 - first)), BW_OK);
}

/* "aCb CC1C  C'C" for 64 code points, as make.py has it. */
static void code_text(bw_text *out, uint32_t start)
{
    static const char *const between[] = {"a", "b ", "", "1", "  ", "'"};
    out->length = 0;
    for (uint32_t c = start; c < start + 64; c++) {
        for (int i = 0; i < 6 && !(c >= 0xD800 && c < 0xE000); i++) {
            assert_int_equal(bw_text_add(out, between[i], strlen(between[i])), BW_OK);
            add_character(out, c);
        }
    }
}

static uint64_t block_sum(const bw_tokenizer *tokenizer, uint32_t block)
{
    bw_text text = {0};
    bw_tokens ids = {0};
    uint64_t sum = 0;
    for (uint32_t start = block; start < block + 4096; start += 64) {
        code_text(&text, start);
        ids.count = 0;
        assert_int_equal(bw_tokenizer_encode(tokenizer, text.data ? text.data : "", text.length, false, &ids), BW_OK);
        for (int64_t i = 0; i < ids.count; i++)
            sum = sum * 0x9E3779B97F4A7C15u + (uint64_t)ids.ids[i] + 1;
    }
    bw_text_free(&text);
    bw_tokens_free(&ids);
    return sum;
}

/* Every code point is the letter, digit, space or other sign that Hugging Face takes it for, and normalises to the same. */
static void check_codes(const bw_tokenizer *tokenizer, const char *name)
{
    bw_map lines;
    size_t at = 0;
    int differences = 0;
    assert_true(load(name, ".codes.jsonl", &lines));
    for (bw_json *line; (line = next_line(&lines, &at)); bw_json_free(line)) {
        char sum[24];
        int64_t block = bw_json_int(bw_json_get(line, "block"), -1);
        snprintf(sum, sizeof sum, "%016llx", (unsigned long long)block_sum(tokenizer, (uint32_t)block));
        if (strcmp(sum, bw_json_text(bw_json_get(line, "sum"), NULL)) != 0 && differences++ < 10)
            print_error("code points U+%04llX and the 4095 after it differ\n", (long long)block);
    }
    bw_map_close(&lines);
    assert_int_equal(differences, 0);
}

static void check_small(const char *name)
{
    char path[1024];
    const char *root = getenv("BW_TEST_DATA");
    bw_tokenizer *tokenizer = NULL;
    snprintf(path, sizeof path, "%s/golden/tokenizer/%s.json", root ? root : "tests", name);
    if (bw_tokenizer_load(&tokenizer, path) != BW_OK)
        fail_msg("%s", bw_error());
    check_ids(tokenizer, name, SMALL_STRIDE);
    check_decode(tokenizer, name);
    check_codes(tokenizer, name);
    bw_tokenizer_free(tokenizer);
}

static void digits_and_byte_level(void **state)
{
    (void)state, check_small("digits");
}
static void prefix_space_and_contiguous_digits(void **state)
{
    (void)state, check_small("prefix");
}
static void nfc_split_and_normalized_added_tokens(void **state)
{
    (void)state, check_small("qwen");
}
static void split_ignore_merges_and_bos(void **state)
{
    (void)state, check_small("llama");
}

static void smollm2_from_gguf(void **state)
{
    bw_tokenizer *tokenizer = NULL;
    (void)state;
    if (bw_tokenizer_open(&tokenizer, getenv("BW_MODEL")) != BW_OK)
        fail_msg("%s", bw_error());
    assert_int_equal(bw_tokenizer_vocab(tokenizer), 49152);
    assert_int_equal(bw_tokenizer_eos(tokenizer), 2);
    assert_string_equal(bw_tokenizer_eos_text(tokenizer), "<|im_end|>");
    check_ids(tokenizer, "smollm2", 1);
    check_decode(tokenizer, "smollm2");
    check_codes(tokenizer, "smollm2");
    bw_tokenizer_free(tokenizer);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest small[] = {
        cmocka_unit_test(digits_and_byte_level),
        cmocka_unit_test(prefix_space_and_contiguous_digits),
        cmocka_unit_test(nfc_split_and_normalized_added_tokens),
        cmocka_unit_test(split_ignore_merges_and_bos),
    };
    const struct CMUnitTest real[] = {cmocka_unit_test(smollm2_from_gguf)};
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failures = cmocka_run_group_tests(small, NULL, NULL);
    const char *model = getenv("BW_MODEL");
    if (failures)
        return 1;
    if (!model || !bw_file_exists(model)) {
        print_message("BW_MODEL does not name a model: parity on SmolLM2's own tokenizer was not tested\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(real, NULL, NULL) ? 1 : 0;
}

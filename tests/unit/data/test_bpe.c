/* The tokenizer's own arithmetic and its refusals; parity with Hugging Face is tests/golden/test_tokenizer.c. */
#include "byte_tokenizer.h"

/* ---- merging ------------------------------------------------------------------------------------------------------*/
/* Byte-pair merging as it is defined: look through the whole word for the lowest rank, the leftmost first, merge, repeat. */
static int64_t merge_slowly(const bw_merges *merges, int32_t *ids, int64_t count)
{
    for (;;) {
        const bw_merge *best = NULL;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < count; i++) {
            const bw_merge *merge = bw_merges_find(merges, ids[i], ids[i + 1]);
            if (merge && (!best || merge->rank < best->rank)) {
                best = merge;
                at = i;
            }
        }
        if (!best)
            return count;
        ids[at] = best->id;
        memmove(ids + at + 1, ids + at + 2, (size_t)(count - at - 2) * sizeof *ids);
        count--;
    }
}

static uint32_t random_bits(uint32_t position)
{
    uint32_t out[4];
    bw_key key = {.seed = 5, .purpose = BW_PURPOSE_TEST};
    bw_rng(&key, position, out);
    return out[0];
}

/* Merges of merges over an alphabet of three letters, so that every word has many ways to go. */
static void merging_is_lowest_rank_first_leftmost_first(void **state)
{
    static const char *const pairs[] = {"ba", "ab", "cc", "ac", "bc", "aa"};
    bw_tokenizer *tokenizer = make_tokenizer(pairs, 6);
    (void)state;
    bw_merges_free(&tokenizer->merges); /* its table has room for 6 */
    assert_int_equal(bw_merges_create(&tokenizer->merges, 46), BW_OK);
    for (int32_t i = 0; i < 6; i++)
        bw_merges_add(&tokenizer->merges, pairs[i][0], pairs[i][1], i, 257 + i);
    for (int32_t i = 0; i < 40; i++) { /* pairs of anything made so far; the texts they would have do not matter here */
        int32_t made = (int32_t)(257 + random_bits((uint32_t)i) % (6 + (uint32_t)i)), letter = (int32_t)(97 + random_bits((uint32_t)i + 100) % 3);
        bw_merges_add(&tokenizer->merges, i % 2 ? made : letter, i % 2 ? letter : made, 6 + i, 263 + i);
    }
    for (uint32_t word = 0; word < 400; word++) {
        char text[200];
        int32_t expected[200];
        uint32_t length = 1 + random_bits(1000 + word) % 199;
        for (uint32_t i = 0; i < length; i++) {
            text[i] = (char)('a' + random_bits(5000 + 200 * word + i) % 3);
            expected[i] = text[i];
        }
        bw_tokens ids = {0};
        assert_int_equal(bw_tokenizer_encode(tokenizer, text, length, true, &ids), BW_OK);
        assert_int_equal(ids.count, merge_slowly(&tokenizer->merges, expected, length));
        assert_memory_equal(ids.ids, expected, (size_t)ids.count * sizeof *expected);
        bw_tokens_free(&ids);
    }
    bw_tokenizer_free(tokenizer);
}

/* Two million letters in one word: 2e12 steps, an hour of processor time, if the merging were quadratic; the time that a test may take ends it. */
static void a_long_run_is_not_quadratic(void **state)
{
    enum { LENGTH = 2000000 };
    bw_tokenizer *tokenizer = make_tokenizer((const char *const[]){"aa"}, 1);
    bw_tokens ids = {0};
    char *text;
    (void)state;
    assert_int_equal(BW_NEW(text, LENGTH, "test"), BW_OK);
    memset(text, 'a', LENGTH);
    assert_int_equal(bw_tokenizer_encode(tokenizer, text, LENGTH, true, &ids), BW_OK);
    assert_int_equal(ids.count, LENGTH / 2);
    bw_tokens_free(&ids);
    bw_free(text);
    bw_tokenizer_free(tokenizer);
}

/* ---- any text, any ids --------------------------------------------------------------------------------------------*/
static void every_text_survives_there_and_back(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer((const char *const[]){"th", "he"}, 2);
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c += c < 0x3000 ? 1 : 251) {
        char text[16] = "the \xF0\x9F\x98\x80 ";
        size_t length = strlen(text);
        if (c >= 0xD800 && c < 0xE000)
            continue;
        if (c < 0x80) {
            text[length++] = (char)c;
        } else if (c < 0x800) {
            text[length++] = (char)(0xC0 | c >> 6);
            text[length++] = (char)(0x80 | (c & 0x3F));
        } else {
            if (c < 0x10000) {
                text[length++] = (char)(0xE0 | c >> 12);
            } else {
                text[length++] = (char)(0xF0 | c >> 18);
                text[length++] = (char)(0x80 | (c >> 12 & 0x3F));
            }
            text[length++] = (char)(0x80 | (c >> 6 & 0x3F));
            text[length++] = (char)(0x80 | (c & 0x3F));
        }
        bw_tokens ids = {0};
        bw_text back = {0};
        assert_int_equal(bw_tokenizer_encode(tokenizer, text, length, true, &ids), BW_OK);
        assert_int_equal(bw_tokenizer_decode(tokenizer, ids.ids, ids.count, false, &back), BW_OK);
        assert_int_equal(back.length, length);
        assert_memory_equal(back.data, text, length);
        bw_tokens_free(&ids);
        bw_text_free(&back);
    }
    bw_tokenizer_free(tokenizer);
}

typedef struct decoded {
    int32_t ids[6];
    int64_t count;
    const char *text;
} decoded;

static void ill_formed_bytes_become_replacement_characters(void **state)
{
    static const decoded cases[] = {
        {{0xC3, 0xA9}, 2, "\u00e9"},
        {{0xC3}, 1, "\uFFFD"},
        {{0xE2, 0x82, 'x'}, 3, "\uFFFDx"}, /* one for a cut-off sequence */
        {{0xF0, 0x9F, 0x98}, 3, "\uFFFD"},
        {{0xC0, 0x80}, 2, "\uFFFD\uFFFD"},             /* overlong: one for each byte */
        {{0xED, 0xA0, 0x80}, 3, "\uFFFD\uFFFD\uFFFD"}, /* a surrogate */
        {{0xF4, 0x90, 0x80, 0x80}, 4, "\uFFFD\uFFFD\uFFFD\uFFFD"},
        {{0xFF, 'a', 0xFE}, 3, "\uFFFDa\uFFFD"},
        {{'a', -1, 1 << 30, 'b'}, 4, "ab"}, /* ids that no token has are left out */
        {{'a', 256, 'b'}, 3, "a<eos>b"},
        {{0}, 0, ""},
    };
    bw_tokenizer *tokenizer = make_tokenizer(NULL, 0);
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bw_text text = {0};
        assert_int_equal(bw_tokenizer_decode(tokenizer, cases[i].ids, cases[i].count, false, &text), BW_OK);
        assert_string_equal(text.data, cases[i].text);
        bw_text_free(&text);
    }
    bw_text text = {0};
    assert_int_equal(bw_tokenizer_decode(tokenizer, (int32_t[]){'a', 256, 'b'}, 3, true, &text), BW_OK);
    assert_string_equal(text.data, "ab");
    bw_text_free(&text);
    bw_tokenizer_free(tokenizer);
}

static void special_tokens_in_text_are_recognised(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer(NULL, 0);
    bw_tokens ids = {0};
    (void)state;
    assert_int_equal(bw_tokenizer_encode(tokenizer, "a<eos><eo", 9, true, &ids), BW_OK);
    assert_int_equal(ids.count, 5);
    assert_int_equal(ids.ids[1], 256);
    assert_int_equal(bw_tokenizer_eos(tokenizer), 256);
    assert_int_equal(bw_tokenizer_id(tokenizer, "<eos>"), 256);
    assert_int_equal(bw_tokenizer_id(tokenizer, "<bos>"), -1);
    bw_tokens_free(&ids);
    bw_tokenizer_free(tokenizer);
}

static void text_that_is_not_utf8_is_refused(void **state)
{
    bw_tokenizer *tokenizer = make_tokenizer(NULL, 0);
    bw_tokens ids = {0};
    (void)state;
    assert_int_equal(bw_tokenizer_encode(tokenizer, "ok\xE2\x82", 4, true, &ids), BW_DATA);
    assert_non_null(strstr(bw_error(), "byte 0xE2 at 2"));
    bw_error_clear();
    bw_tokens_free(&ids);
    bw_tokenizer_free(tokenizer);
}

/* ---- tokenizers that are not ours to read -------------------------------------------------------------------------*/
typedef struct refusal {
    const char *json, *message;
} refusal;
#define BPE(MORE) "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]" MORE "}"
#define BYTES     "\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"decoder\":{\"type\":\"ByteLevel\"}"
#define SPLIT(PATTERN, MORE)                                                                                                                         \
    "{" BPE("") ",\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","             \
                "\"pattern\":" PATTERN "," MORE "},{\"type\":\"ByteLevel\"}]}}"
#define ISOLATED "\"behavior\":\"Isolated\",\"invert\":false"
static const refusal REFUSALS[] = {
    {"", "not valid JSON"},
    {"{}", "the model's type is missing"},
    {"{\"model\":{\"type\":\"Unigram\"}}", "the model's type is Unigram"},
    {"{\"model\":{\"type\":\"BPE\"}}", "no \"vocab\""},
    {"{" BPE(",\"byte_fallback\":true") "," BYTES "}", "byte_fallback"},
    {"{" BPE(",\"dropout\":0.1") "," BYTES "}", "dropout"},
    {"{" BPE(",\"end_of_word_suffix\":\"</w>\"") "," BYTES "}", "end_of_word_suffix is </w>"},
    {"{" BPE("") "," BYTES ",\"normalizer\":{\"type\":\"Lowercase\"}}", "the normaliser is Lowercase"},
    {"{" BPE("") ",\"decoder\":{\"type\":\"ByteLevel\"}}", "the pre-tokeniser is missing"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "the pre-tokeniser is Metaspace"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"Digits\"}}", "not ByteLevel"},
    {"{" BPE("") ",\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"decoder\":{\"type\":\"Replace\"}}", "the decoder is Replace"},
    {"{" BPE("") "," BYTES ",\"post_processor\":{\"type\":\"BertProcessing\"}}", "the post-processor is BertProcessing"},
    {"{" BPE("") "," BYTES ",\"added_tokens\":[{\"id\":3,\"content\":\"x\",\"lstrip\":true}]}", "asks for lstrip"},
    {"{" BPE("") "," BYTES ",\"added_tokens\":[{\"id\":2,\"content\":\"x\"}]}", "the id 2 is used by two tokens"},
    {"{" BPE("") "," BYTES ",\"added_tokens\":[{\"id\":5,\"content\":\"a\"}]}", "is there twice"},
    {"{" BPE("") "," BYTES ",\"added_tokens\":[{\"id\":99999999999,\"content\":\"x\"}]}", "has no id from 0"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}," BYTES "}", "has no id from 0"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}," BYTES "}", "used by two tokens"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}," BYTES "}", "that token is not in the vocabulary"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"ab\":1},\"merges\":[[\"a\",\"b\"]]}," BYTES "}", "one of its two parts is not"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}," BYTES "}", "merge 0 is not two tokens"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}," BYTES "}", "merge 0 is not two tokens"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[7]}," BYTES "}", "merge 0 is not two tokens"},
    {SPLIT("{\"Regex\":\"(\"}", ISOLATED), "does not compile"},
    {SPLIT("{\"Regex\":\"\\\\h\"}", ISOLATED), "uses \\h"},
    {SPLIT("{\"Regex\":\"[a&&b]\"}", ISOLATED), "uses &&"},
    {SPLIT("{\"String\":\" \"}", ISOLATED), "{\"Regex\": ...}"},
    {SPLIT("{\"Regex\":\"a\"}", "\"behavior\":\"Removed\""), "behavior of the pre-tokeniser Split is Removed"},
    {SPLIT("{\"Regex\":\"a\"}", "\"behavior\":\"Isolated\",\"invert\":true"), "invert"},
};

static void what_is_not_read_is_refused_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof REFUSALS / sizeof REFUSALS[0]; i++) {
        bw_tokenizer *tokenizer = NULL;
        const char *path = write_file("tokenizer.json", REFUSALS[i].json);
        int status = bw_tokenizer_load(&tokenizer, path);
        path_count--;
        if (status != BW_DATA || !strstr(bw_error(), REFUSALS[i].message) || !strstr(bw_error(), path))
            fail_msg("case %zu: status %d, expected \"%s\" in: %s", i, status, REFUSALS[i].message, bw_error());
        assert_null(tokenizer);
        bw_error_clear();
    }
    path_count++;
}

/* Possessive, lazy, with properties in and out of classes: patterns as they are found in the wild must compile. */
static void known_patterns_compile(void **state)
{
    static const char *const patterns[] = {
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
        "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{M}]*[\\p{Ll}\\p{M}]+|\\p{Lu}++|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s+",
        "[\\S]+|\\\\s|[\\]\\[]",
    };
    (void)state;
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        bw_split split;
        if (bw_split_compile(&split, patterns[i], "test") != BW_OK)
            fail_msg("%s", bw_error());
        bw_split_free(&split);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(merging_is_lowest_rank_first_leftmost_first), TEST(a_long_run_is_not_quadratic),
        TEST(every_text_survives_there_and_back),          TEST(ill_formed_bytes_become_replacement_characters),
        TEST(special_tokens_in_text_are_recognised),       TEST(text_that_is_not_utf8_is_refused),
        TEST(what_is_not_read_is_refused_by_name),         TEST(known_patterns_compile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

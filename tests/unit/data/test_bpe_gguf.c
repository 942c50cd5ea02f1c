/* A tokenizer from GGUF metadata: the table of pre-tokenisers, bos, and what is refused. The file is put together here: 256 byte
 * tokens (id = byte), <bos> 256, <eos> 257, "ab" 258. */
#include "byte_tokenizer.h"

static void add_number(bw_text *out, uint64_t number, size_t bytes)
{
    assert_int_equal(bw_text_add(out, &number, bytes), BW_OK); /* GGUF is little-endian, and so are we */
}

static void add_string(bw_text *out, const char *text, size_t length)
{
    add_number(out, length, 8);
    assert_int_equal(bw_text_add(out, text, length), BW_OK);
}

enum { U32 = 4, I32 = 5, BOOL = 7, STRING = 8, ARRAY = 9 };

static void add_key(bw_text *out, const char *key, uint32_t type)
{
    add_string(out, key, strlen(key));
    add_number(out, type, 4);
}

static void add_array(bw_text *out, const char *key, uint32_t type, uint64_t count)
{
    add_key(out, key, ARRAY);
    add_number(out, type, 4);
    add_number(out, count, 8);
}

typedef struct recipe {
    const char *model, *pre, *merge;
    uint32_t eos;
    int add_bos; /* -1: not said */
} recipe;

static void add_tokens(bw_text *out)
{
    bw_alphabet alphabet;
    bw_alphabet_create(&alphabet);
    add_array(out, "tokenizer.ggml.tokens", STRING, 259);
    for (int byte = 0; byte < 256; byte++)
        add_string(out, alphabet.symbols[byte], alphabet.sizes[byte]);
    add_string(out, "<bos>", 5);
    add_string(out, "<eos>", 5);
    add_string(out, "ab", 2);
    add_array(out, "tokenizer.ggml.token_type", I32, 259);
    for (int id = 0; id < 259; id++)
        add_number(out, id == 256 || id == 257 ? 3 : 1, 4);
}

static int open_recipe(bw_tokenizer **tokenizer, const recipe *recipe)
{
    bw_text out = {0};
    assert_int_equal(bw_text_add(&out, "GGUF", 4), BW_OK);
    add_number(&out, 3, 4);
    add_number(&out, 0, 8);
    add_number(&out, recipe->add_bos >= 0 ? 8 : 7, 8);
    add_key(&out, "tokenizer.ggml.model", STRING);
    add_string(&out, recipe->model, strlen(recipe->model));
    add_key(&out, "tokenizer.ggml.pre", STRING);
    add_string(&out, recipe->pre, strlen(recipe->pre));
    add_tokens(&out);
    add_array(&out, "tokenizer.ggml.merges", STRING, 1);
    add_string(&out, recipe->merge, strlen(recipe->merge));
    add_key(&out, "tokenizer.ggml.eos_token_id", U32);
    add_number(&out, recipe->eos, 4);
    add_key(&out, "tokenizer.ggml.bos_token_id", U32);
    add_number(&out, 256, 4);
    if (recipe->add_bos >= 0) {
        add_key(&out, "tokenizer.ggml.add_bos_token", BOOL);
        add_number(&out, (uint64_t)recipe->add_bos, 1);
    }
    int status = bw_tokenizer_open(tokenizer, write_bytes("model.gguf", out.data, out.length));
    path_count--;
    bw_text_free(&out);
    return status;
}

static void check(const recipe *recipe, const char *text, const int32_t *ids, int64_t count)
{
    bw_tokenizer *tokenizer = NULL;
    bw_tokens found = {0};
    if (open_recipe(&tokenizer, recipe) != BW_OK)
        fail_msg("%s", bw_error());
    assert_int_equal(bw_tokenizer_encode(tokenizer, text, strlen(text), true, &found), BW_OK);
    assert_int_equal(found.count, count);
    assert_memory_equal(found.ids, ids, (size_t)count * sizeof *ids);
    bw_tokens_free(&found);
    bw_tokenizer_free(tokenizer);
}

static void bos_is_added_where_the_file_or_its_kind_says_so(void **state)
{
    recipe smollm = {"gpt2", "smollm", "a b", 257, -1}, llama = {"gpt2", "llama-bpe", "a b", 257, -1};
    (void)state;
    check(&smollm, "ab<eos>", (int32_t[]){258, 257}, 2);
    check(&llama, "ab<eos>", (int32_t[]){256, 258, 257}, 3);
    smollm.add_bos = 1;
    llama.add_bos = 0;
    check(&smollm, "ab<eos>", (int32_t[]){256, 258, 257}, 3);
    check(&llama, "ab<eos>", (int32_t[]){258, 257}, 2);
    path_count++;
}

/* U+0061 U+030A is a with a ring, one character of two bytes in NFC. */
static void only_qwen_normalises(void **state)
{
    recipe qwen = {"gpt2", "qwen2", "a b", 257, -1}, gpt2 = {"gpt2", "gpt-2", "a b", 257, -1};
    (void)state;
    check(&qwen, "a\xCC\x8A", (int32_t[]){0xC3, 0xA5}, 2);
    check(&gpt2, "a\xCC\x8A", (int32_t[]){'a', 0xCC, 0x8A}, 3);
    path_count++;
}

static void refuse(const recipe *recipe, const char *message)
{
    bw_tokenizer *tokenizer = NULL;
    assert_int_equal(open_recipe(&tokenizer, recipe), BW_DATA);
    assert_null(tokenizer);
    if (!strstr(bw_error(), message) || !strstr(bw_error(), "model.gguf"))
        fail_msg("expected \"%s\" in: %s", message, bw_error());
    bw_error_clear();
}

static void what_is_not_known_is_refused_by_name(void **state)
{
    (void)state;
    refuse(&(recipe){"llama", "smollm", "a b", 257, -1}, "of the kind \"llama\"");
    refuse(&(recipe){"gpt2", "default", "a b", 257, -1}, "tokenizer.ggml.pre is \"default\"");
    refuse(&(recipe){"gpt2", "smollm", "ab", 257, -1}, "merge 0 is not two tokens");
    refuse(&(recipe){"gpt2", "smollm", "b a", 257, -1}, "that token is not in the vocabulary");
    refuse(&(recipe){"gpt2", "smollm", "a b", 259, -1}, "eos_token_id is 259");
    path_count++;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bos_is_added_where_the_file_or_its_kind_says_so),
        TEST(only_qwen_normalises),
        TEST(what_is_not_known_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

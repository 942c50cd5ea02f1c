/* byte_tokenizer.h - for tests: a tokenizer.json in a folder of its own, whose tokens are the 256 bytes (id = byte), what the
 * caller's merges make, and <eos>. Files are written with `write_file`, and all goes away with `folder_free`. */
#ifndef TEST_BYTE_TOKENIZER_H
#define TEST_BYTE_TOKENIZER_H
#include "data/tokenizer_parts.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[64];
static char paths[64][128]; /* of the files written */
static int path_count;

static inline void folder_make(void)
{
    strcpy(folder, "/tmp/bw-data-XXXXXX");
    assert_non_null(mkdtemp(folder));
}

static inline void folder_free(void)
{
    for (; path_count; path_count--)
        unlink(paths[path_count - 1]);
    rmdir(folder);
}

static inline const char *write_bytes(const char *name, const void *bytes, size_t length)
{
    assert_true(path_count < 64);
    char *path = paths[path_count++];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    assert_int_equal(bw_file_write(path, bytes, length, 0644), BW_OK);
    return path;
}

static inline const char *write_file(const char *name, const char *text)
{
    return write_bytes(name, text, strlen(text));
}

/* `pairs`: "ab", "bc": two ASCII letters that merge, in order of rank, the ids 257 onwards. `parts`: more keys of the file, or "". */
static inline bw_text tokenizer_json(const char *const *pairs, int pair_count, const char *parts)
{
    bw_alphabet alphabet;
    bw_text out = {0};
    bw_alphabet_create(&alphabet);
    bw_text_addf(&out, "{%s\"added_tokens\":[{\"id\":256,\"content\":\"<eos>\",\"special\":true,\"normalized\":false}],", parts);
    bw_text_addf(&out,
                 "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false},\"decoder\":{\"type\":\"ByteLevel\"},");
    bw_text_addf(&out, "\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int byte = 0; byte < 256; byte++) {
        bw_json_quote(&out, alphabet.symbols[byte], alphabet.sizes[byte]);
        bw_text_addf(&out, ":%d,", byte);
    }
    for (int i = 0; i < pair_count; i++)
        bw_text_addf(&out, "\"%s\":%d,", pairs[i], 257 + i);
    bw_text_addf(&out, "\"<eos>\":256},\"merges\":[");
    for (int i = 0; i < pair_count; i++)
        bw_text_addf(&out, "%s\"%c %c\"", i ? "," : "", pairs[i][0], pairs[i][1]);
    bw_text_addf(&out, "]}}");
    return out;
}

static inline bw_tokenizer *make_tokenizer(const char *const *pairs, int pair_count)
{
    bw_tokenizer *tokenizer = NULL;
    bw_text json = tokenizer_json(pairs, pair_count, "");
    write_file("tokenizer_config.json", "{\"eos_token\":\"<eos>\"}");
    if (bw_tokenizer_load(&tokenizer, write_bytes("tokenizer.json", json.data, json.length)) != BW_OK)
        fail_msg("%s", bw_error());
    bw_text_free(&json);
    return tokenizer;
}

/* Every test gets a folder of its own, and fails where it leaves memory behind. */
static inline int set_up(void **state)
{
    (void)state;
    folder_make();
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    folder_free();
    return bw_mem_now() ? print_error("%lld bytes are not freed\n", (long long)bw_mem_now()), 1 : 0;
}

#define TEST(NAME) cmocka_unit_test_setup_teardown(NAME, set_up, tear_down)
#endif

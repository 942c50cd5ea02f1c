/* GGUF: what is read back, and what is refused; every file is written here, byte by byte. */
#include "bytes.h"

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };      /* types of values in the file */
enum { FILE_F32 = 0, FILE_Q4_0 = 2, FILE_Q4_1 = 3, FILE_Q5_0 = 6, FILE_Q8_0 = 8 }; /* types of tensors in the file */

/* ---- writing -------------------------------------------------------------------------------------------------------*/
static void put_text(bw_text *file, const char *text)
{
    put_u64(file, strlen(text));
    put(file, text, strlen(text));
}

static void put_start(bw_text *file, uint32_t version, uint64_t tensors, uint64_t pairs)
{
    put(file, "GGUF", 4);
    put_u32(file, version);
    put_u64(file, tensors);
    put_u64(file, pairs);
}

static void put_key(bw_text *file, const char *key, uint32_t type)
{
    put_text(file, key);
    put_u32(file, type);
}

static void put_array(bw_text *file, const char *key, uint32_t type, uint64_t count)
{
    put_key(file, key, ARRAY);
    put_u32(file, type);
    put_u64(file, count);
}

/* `rows` 0: a vector */
static void put_tensor(bw_text *file, const char *name, uint64_t columns, uint64_t rows, uint32_t type, uint64_t offset)
{
    put_text(file, name);
    put_u32(file, rows ? 2 : 1);
    put_u64(file, columns);
    if (rows)
        put_u64(file, rows);
    put_u32(file, type);
    put_u64(file, offset);
}

static size_t round_up(size_t length, size_t alignment)
{
    return (length + alignment - 1) / alignment * alignment;
}

static void pad(bw_text *file, size_t alignment)
{
    put_zeros(file, round_up(file->length, alignment) - file->length);
}

/* One value of every type, arrays of numbers, texts and arrays, three tensors that end with the file. Returns where the data starts. */
static size_t put_sample(bw_text *file, uint32_t version, uint32_t alignment)
{
    put_start(file, version, 3, 10);
    put_key(file, "general.architecture", STRING);
    put_text(file, "llama");
    put_key(file, "general.alignment", U32);
    put_u32(file, alignment);
    put_key(file, "byte", I8);
    put(file, "\xfe", 1);
    put_key(file, "short", U16);
    put(file, "\x01\x02", 2);
    put_key(file, "flag", BOOL);
    put(file, "\x01", 1);
    put_key(file, "big", U64);
    put_u64(file, 1ull << 40);
    put_key(file, "real", F64);
    put(file, &(double){0.25}, 8);
    put_array(file, "tokens", STRING, 3);
    put_text(file, "a");
    put_text(file, "");
    put_u64(file, 4);
    put(file, "\xc3\xa9\0z", 4);
    put_array(file, "scores", F32, 2);
    put(file, (float[]){1.5f, -2}, 8);
    put_array(file, "nested", ARRAY, 1);
    put_u32(file, I16);
    put_u64(file, 2);
    put_zeros(file, 4);
    put_tensor(file, "norm", 3, 0, FILE_F32, 0);
    uint64_t matrix = round_up(12, alignment), head = matrix + round_up(40, alignment);
    put_tensor(file, "matrix", 32, 2, FILE_Q4_1, matrix);
    put_tensor(file, "head", 2, 4, FILE_F32, head);
    pad(file, alignment);
    size_t data = file->length;
    put(file, (float[]){1, 2, 3}, 12);
    pad(file, alignment);
    for (int row = 0; row < 2; row++) {
        put(file, "\x00\x3c\x00\x40", 4); /* d = 1, m = 2 */
        for (int i = 0; i < 16; i++)
            put(file, &(uint8_t){(uint8_t)(i | (15 - i) << 4)}, 1);
    }
    pad(file, alignment);
    put(file, (float[]){0, 1, 2, 3, 4, 5, 6, 7}, 32);
    return data;
}

/* ---- the folder that the tests share ------------------------------------------------------------------------------- */
static char *folder, *path;

static int set_up(void **state)
{
    (void)state;
    folder = new_folder();
    path = path_in(folder, "sample.gguf");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(path);
    remove_folder(folder);
    return 0;
}

static bw_tensors *open_bytes(const bw_text *file)
{
    bw_tensors *gguf;
    store(path, file->data, file->length);
    if (bw_gguf_open(&gguf, path) != BW_OK)
        fail_msg("%s", bw_error());
    return gguf;
}

static void refused(bw_text *file, const char *wanted)
{
    bw_tensors *gguf = (bw_tensors *)1;
    store(path, file->data, file->length);
    int status = bw_gguf_open(&gguf, path);
    assert_null(gguf);
    expect_failure(status, BW_DATA, wanted);
    bw_text_free(file);
}

/* ---- reading -------------------------------------------------------------------------------------------------------*/
static void check_values(const bw_tensors *gguf)
{
    size_t length;
    assert_string_equal(bw_gguf_text(gguf, "general.architecture", &length), "llama");
    assert_int_equal(length, 5);
    assert_true(bw_gguf_number(gguf, "byte", 0) == -2);
    assert_true(bw_gguf_number(gguf, "short", 0) == 513);
    assert_true(bw_gguf_number(gguf, "flag", 0) == 1);
    assert_true(bw_gguf_number(gguf, "big", 0) == 0x1p40);
    assert_true(bw_gguf_number(gguf, "real", 0) == 0.25);
    assert_int_equal(bw_gguf_array_size(gguf, "tokens"), 3);
    assert_string_equal(bw_gguf_array_text(gguf, "tokens", 0, NULL), "a");
    assert_string_equal(bw_gguf_array_text(gguf, "tokens", 1, &length), "");
    assert_int_equal(length, 0);
    assert_memory_equal(bw_gguf_array_text(gguf, "tokens", 2, &length), "\xc3\xa9\0z\0", 5);
    assert_int_equal(length, 4);
    assert_true(bw_gguf_array_number(gguf, "scores", 1, 0) == -2);
    assert_int_equal(bw_gguf_array_size(gguf, "nested"), 1);
}

static void check_absent(const bw_tensors *gguf)
{
    assert_null(bw_gguf_text(gguf, "byte", NULL));
    assert_null(bw_gguf_text(gguf, "tokens", NULL));
    assert_null(bw_gguf_text(gguf, "absent", NULL));
    assert_true(bw_gguf_number(gguf, "general.architecture", 7) == 7);
    assert_true(bw_gguf_number(gguf, "scores", 7) == 7);
    assert_true(bw_gguf_number(gguf, "absent", 7) == 7);
    assert_int_equal(bw_gguf_array_size(gguf, "byte"), 0);
    assert_null(bw_gguf_array_text(gguf, "tokens", 3, NULL));
    assert_null(bw_gguf_array_text(gguf, "tokens", -1, NULL));
    assert_null(bw_gguf_array_text(gguf, "scores", 0, NULL));
    assert_true(bw_gguf_array_number(gguf, "scores", 2, 7) == 7);
    assert_true(bw_gguf_array_number(gguf, "nested", 0, 7) == 7);
    assert_null(bw_tensors_find(gguf, "matri"));
}

static void check_tensors(const bw_tensors *gguf)
{
    assert_int_equal(bw_tensors_count(gguf), 3);
    assert_string_equal(bw_tensors_at(gguf, 0)->name, "norm");
    assert_null(bw_tensors_at(gguf, 3));
    assert_string_equal(bw_tensors_path(gguf), path);
    const bw_tensor *head = bw_tensors_find(gguf, "head"), *matrix = bw_tensors_find(gguf, "matrix");
    assert_int_equal(head->n_dims, 2);
    assert_int_equal(head->shape[0], 4); /* outermost first; the file has 2, 4 */
    assert_int_equal(head->shape[1], 2);
    float out[32];
    assert_int_equal(bw_tensor_read(head, 2, 1, 1, 1, out, 1), BW_OK);
    assert_true(out[0] == 5);
    assert_int_equal(matrix->dtype, BW_Q4_1);
    assert_int_equal(matrix->bytes, 40);
    assert_int_equal(bw_tensor_read(matrix, 1, 1, 0, 32, out, 32), BW_OK);
    for (int i = 0; i < 32; i++)
        assert_true(out[i] == 2.0f + (float)(i < 16 ? i : 31 - i));
}

static void a_file_of_either_version_and_alignment_is_read_back(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        for (uint32_t alignment = 8; alignment <= 128; alignment *= 4) {
            bw_text file = {0};
            put_sample(&file, version, alignment);
            bw_tensors *gguf = open_bytes(&file);
            check_values(gguf);
            check_absent(gguf);
            check_tensors(gguf);
            read_everything(gguf);
            bw_tensors_close(gguf);
            bw_text_free(&file);
        }
    }
    assert_int_equal(bw_mem_now(), 0);
}

static void a_file_without_tensors_or_keys_is_a_file(void **state)
{
    (void)state;
    bw_text file = {0};
    put_start(&file, 3, 0, 0);
    bw_tensors *gguf = open_bytes(&file);
    assert_int_equal(bw_tensors_count(gguf), 0);
    assert_null(bw_tensors_find(gguf, "x"));
    bw_tensors_close(gguf);
    bw_text_free(&file);
}

/* ---- refusing ------------------------------------------------------------------------------------------------------*/
static void a_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    put_sample(&file, 3, 32);
    cut_everywhere(bw_gguf_open, &file, path);
    assert_int_equal(bw_mem_now(), (int64_t)file.capacity);
    bw_text_free(&file);
}

static void a_damaged_file_is_read_or_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    size_t data = put_sample(&file, 3, 32);
    damage_randomly(bw_gguf_open, &file, data, path, 4000);
    bw_text_free(&file);
}

static void a_file_that_is_none_is_refused(void **state)
{
    (void)state;
    bw_tensors *gguf;
    char *missing = path_in(folder, "missing.gguf");
    expect_failure(bw_gguf_open(&gguf, missing), BW_NOINPUT, "missing.gguf");
    free(missing);
    bw_text file = {0};
    put(&file, "GGML\3\0\0\0", 8);
    refused(&file, "no GGUF file");
    put_start(&file, 1, 0, 0);
    refused(&file, "version 1");
    put_start(&file, 4, 0, 0);
    refused(&file, "version 4");
    put_start(&file, 3u << 24, 0, 0);
    refused(&file, "big-endian");
}

static void counts_that_the_file_cannot_hold_are_refused_before_memory_is_taken(void **state)
{
    (void)state;
    static const uint64_t huge[] = {1000, 1ull << 32, 1ull << 59, 1ull << 61, 1ull << 63, UINT64_MAX};
    int64_t peak = bw_mem_peak();
    for (size_t i = 0; i < sizeof huge / sizeof *huge; i++) {
        bw_text file = {0};
        put_start(&file, 3, huge[i], 0);
        refused(&file, "number of tensors");
        put_start(&file, 3, 0, huge[i]);
        refused(&file, "number of metadata keys");
        put_start(&file, 3, 0, 1);
        put_u64(&file, huge[i]);
        put_zeros(&file, 16);
        refused(&file, "a key needs");
        for (uint32_t type = U8; type <= F64; type++) {
            put_start(&file, 3, 0, 1);
            put_array(&file, "k", type, huge[i]);
            refused(&file, "array's length");
        }
    }
    assert_true(bw_mem_peak() <= peak + 100000);
}

static void nesting_is_bounded(void **state)
{
    (void)state;
    bw_text file = {0};
    put_start(&file, 3, 0, 1);
    put_key(&file, "deep", ARRAY);
    for (int i = 0; i < 100000; i++) {
        put_u32(&file, ARRAY);
        put_u64(&file, 1);
    }
    refused(&file, "deep nests arrays");
}

static void unknown_value_types_are_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    put_start(&file, 3, 0, 1);
    put_key(&file, "k", 13);
    refused(&file, "key k has a value of the unknown type 13");
    put_start(&file, 3, 0, 1);
    put_array(&file, "k", 99, 0);
    refused(&file, "unknown type 99");
}

static void bad_names_are_refused_and_shown_harmlessly(void **state)
{
    (void)state;
    bw_text file = {0};
    put_start(&file, 3, 0, 1);
    put_key(&file, "\xff", U8);
    put(&file, "", 1);
    refused(&file, "UTF-8");
    put_start(&file, 3, 0, 1);
    put_key(&file, "", U8);
    put(&file, "", 1);
    refused(&file, "empty");
    put_start(&file, 3, 1, 0);
    put_tensor(&file, "", 1, 0, FILE_F32, 0);
    refused(&file, "empty");
    put_start(&file, 3, 0, 1);
    put_key(&file, "k", STRING);
    put_text(&file, "ab\xe2\x82");
    refused(&file, "k is not UTF-8");
    put_start(&file, 3, 1, 0);
    put_tensor(&file, "a\x1b[2J\nb", 1, 0, 77, 0);
    refused(&file, "tensor a?[2J?b is of type 77");
    char long_name[5001] = {0};
    memset(long_name, 'n', 5000);
    put_start(&file, 3, 1, 0);
    put_tensor(&file, long_name, 1, 0, 77, 0);
    refused(&file, "nnn... is of type 77");
}

static void the_same_name_twice_is_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    put_start(&file, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_key(&file, "twice", U8);
        put(&file, "", 1);
    }
    refused(&file, "two metadata keys have the name twice");
    put_start(&file, 3, 2, 0);
    put_tensor(&file, "double", 8, 0, FILE_F32, 0);
    put_tensor(&file, "double", 8, 0, FILE_F32, 32);
    pad(&file, 32);
    put_zeros(&file, 64);
    refused(&file, "two tensors have the name double");
}

static void shapes_and_types_that_cannot_be_are_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    put_start(&file, 3, 1, 0);
    put_tensor(&file, "t", 1ull << 32, 1ull << 32, FILE_F32, 0);
    refused(&file, "63 bits");
    put_start(&file, 3, 1, 0);
    put_tensor(&file, "t", 1ull << 31, 1ull << 31, FILE_F32, 0); /* the count fits, its bytes do not */
    refused(&file, "63 bits");
    put_start(&file, 3, 1, 0);
    put_tensor(&file, "t", UINT64_MAX, 0, FILE_F32, 0);
    refused(&file, "dimension of 18446744073709551615");
    put_start(&file, 3, 1, 0);
    put_tensor(&file, "t", 48, 2, FILE_Q4_0, 0);
    refused(&file, "rows of 48 entries cannot be Q4_0");
    put_start(&file, 3, 1, 0);
    put_tensor(&file, "blk.0.attn_q.weight", 32, 2, FILE_Q5_0, 0);
    refused(&file, "tensor blk.0.attn_q.weight is of type 6 (Q5_0); supported are F32, F16, BF16, F64, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K");
    put_start(&file, 3, 1, 0);
    put_text(&file, "t");
    put_u32(&file, 5);
    put_zeros(&file, 60);
    refused(&file, "5 dimensions");
}

/* Two tensors of 64 bytes in 128 bytes of data. */
static void put_pair_of_tensors(bw_text *file, uint64_t first, uint64_t second)
{
    put_start(file, 3, 2, 0);
    put_tensor(file, "a", 16, 0, FILE_F32, first);
    put_tensor(file, "b", 16, 0, FILE_F32, second);
    pad(file, 32);
    put_zeros(file, 128);
}

static void places_in_the_file_are_checked(void **state)
{
    (void)state;
    bw_text file = {0};
    put_pair_of_tensors(&file, 64, 0); /* any order is fine */
    bw_tensors_close(open_bytes(&file));
    bw_text_free(&file);
    put_pair_of_tensors(&file, 0, 32);
    refused(&file, "tensor b overlaps tensor a");
    put_pair_of_tensors(&file, 0, 0);
    refused(&file, "overlaps");
    put_pair_of_tensors(&file, 0, 96);
    refused(&file, "tensor b has 64 bytes at offset 96, and the data of the file has 128");
    put_pair_of_tensors(&file, 0, 1ull << 63);
    refused(&file, "at offset 9223372036854775808");
    put_pair_of_tensors(&file, 0, UINT64_MAX - 31);
    refused(&file, "at offset");
    put_pair_of_tensors(&file, 0, 68);
    refused(&file, "no multiple of the alignment 32");
}

static void alignments_that_cannot_be_are_refused(void **state)
{
    (void)state;
    static const uint32_t bad[] = {0, 3, 48, 1u << 21, 1u << 31};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bw_text file = {0};
        put_start(&file, 3, 0, 1);
        put_key(&file, "general.alignment", U32);
        put_u32(&file, bad[i]);
        refused(&file, "general.alignment must be a power of two");
    }
    bw_text file = {0};
    put_start(&file, 3, 0, 1);
    put_array(&file, "general.alignment", U32, 0);
    refused(&file, "general.alignment must be a power of two");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_of_either_version_and_alignment_is_read_back),
        cmocka_unit_test(a_file_without_tensors_or_keys_is_a_file),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(a_damaged_file_is_read_or_refused),
        cmocka_unit_test(a_file_that_is_none_is_refused),
        cmocka_unit_test(counts_that_the_file_cannot_hold_are_refused_before_memory_is_taken),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(unknown_value_types_are_refused),
        cmocka_unit_test(bad_names_are_refused_and_shown_harmlessly),
        cmocka_unit_test(the_same_name_twice_is_refused),
        cmocka_unit_test(shapes_and_types_that_cannot_be_are_refused),
        cmocka_unit_test(places_in_the_file_are_checked),
        cmocka_unit_test(alignments_that_cannot_be_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

/* Safetensors: written and read back, folders of shards, and what is refused. */
#include "bytes.h"

static char *folder, *path;

static int set_up(void **state)
{
    (void)state;
    folder = new_folder();
    path = path_in(folder, "sample.safetensors");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    free(path);
    remove_folder(folder);
    return 0;
}

/* A file of this header and so many bytes of data. */
static void put_file(bw_text *file, const char *header, size_t data_bytes)
{
    put_u64(file, strlen(header));
    put(file, header, strlen(header));
    put_zeros(file, data_bytes);
}

static void store_file(const char *to, const char *header, size_t data_bytes)
{
    bw_text file = {0};
    put_file(&file, header, data_bytes);
    store(to, file.data, file.length);
    bw_text_free(&file);
}

static void refused(const char *header, size_t data_bytes, const char *wanted)
{
    bw_tensors *tensors = (bw_tensors *)1;
    store_file(path, header, data_bytes);
    int status = bw_safetensors_open(&tensors, path);
    assert_null(tensors);
    expect_failure(status, BW_DATA, wanted);
}

/* ---- writing and reading back --------------------------------------------------------------------------------------*/
static const float numbers[6] = {1, -2, 3.5f, 0, 5, 6};
static const uint16_t halves[3] = {0x3c00, 0xc000, 0x0001};
static const char *const metadata[] = {"format", "pt", "made by", "a \"test\"\n\xc3\xa9", NULL};

enum { SPECS = 5 };

static void fill_specs(bw_tensor_spec specs[SPECS])
{
    const bw_tensor_spec all[SPECS] = {
        {.name = "b.half", .dtype = BW_F16, .n_dims = 1, .shape = {3}, .data = halves},
        {.name = "z.matrix", .dtype = BW_F32, .n_dims = 2, .shape = {2, 3}, .data = numbers},
        {.name = "a.vector", .dtype = BW_F32, .n_dims = 1, .shape = {6}, .data = numbers},
        {.name = "scalar", .dtype = BW_BF16, .n_dims = 0, .data = halves},
        {.name = "empty", .dtype = BW_F64, .n_dims = 2, .shape = {0, 7}},
    };
    memcpy(specs, all, sizeof all);
}

static void a_written_file_is_read_back(void **state)
{
    (void)state;
    bw_tensor_spec specs[SPECS];
    fill_specs(specs);
    assert_int_equal(bw_safetensors_write(path, specs, SPECS, metadata, 0600), BW_OK);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
    bw_tensors *tensors;
    assert_int_equal(bw_safetensors_open(&tensors, path), BW_OK);
    assert_int_equal(bw_tensors_count(tensors), SPECS);
    for (int i = 0; i < SPECS; i++) {
        const bw_tensor *tensor = bw_tensors_find(tensors, specs[i].name);
        assert_non_null(tensor);
        assert_int_equal(tensor->dtype, specs[i].dtype);
        assert_int_equal(tensor->n_dims, specs[i].n_dims);
        assert_memory_equal(tensor->shape, specs[i].shape, sizeof tensor->shape);
        assert_int_equal(tensor->bytes, specs[i].bytes);
        if (tensor->bytes)
            assert_memory_equal(tensor->data, specs[i].data, (size_t)tensor->bytes);
    }
    read_everything(tensors);
    assert_string_equal(bw_safetensors_metadata(tensors, "format"), "pt");
    assert_string_equal(bw_safetensors_metadata(tensors, "made by"), metadata[3]);
    assert_null(bw_safetensors_metadata(tensors, "absent"));
    bw_tensors_close(tensors);
    assert_int_equal(bw_mem_now(), 0);
}

static void a_plan_is_aligned_dense_and_the_size_of_the_file(void **state)
{
    (void)state;
    bw_tensor_spec specs[SPECS];
    bw_text header = {0};
    int64_t bytes, sum = 0;
    fill_specs(specs);
    assert_int_equal(bw_safetensors_plan(specs, SPECS, metadata, &header, &bytes), BW_OK);
    assert_int_equal(header.length % 8, 0);
    for (int i = 0; i < SPECS; i++) {
        assert_int_equal(specs[i].offset % bw_dtype_bytes(specs[i].dtype, 1), 0);
        assert_true(specs[i].offset >= (int64_t)header.length && specs[i].offset + specs[i].bytes <= bytes);
        sum += specs[i].bytes;
    }
    assert_int_equal((int64_t)header.length + sum, bytes);
    assert_string_equal(header.data + 8, "{\"__metadata__\":{\"format\":\"pt\",\"made by\":\"a \\\"test\\\"\\n\xc3\xa9\"},"
                                         "\"empty\":{\"dtype\":\"F64\",\"shape\":[0,7],\"data_offsets\":[0,0]},"
                                         "\"a.vector\":{\"dtype\":\"F32\",\"shape\":[6],\"data_offsets\":[0,24]},"
                                         "\"z.matrix\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[24,48]},"
                                         "\"b.half\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[48,54]},"
                                         "\"scalar\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[54,56]}}     ");
    bw_text_free(&header);
}

static void the_order_of_the_specs_does_not_change_the_file(void **state)
{
    (void)state;
    bw_tensor_spec specs[SPECS], turned[SPECS];
    bw_text first = {0}, second = {0};
    int64_t bytes;
    fill_specs(specs);
    for (int i = 0; i < SPECS; i++)
        turned[i] = specs[SPECS - 1 - i];
    assert_int_equal(bw_safetensors_plan(specs, SPECS, NULL, &first, &bytes), BW_OK);
    assert_int_equal(bw_safetensors_plan(turned, SPECS, NULL, &second, &bytes), BW_OK);
    assert_int_equal(first.length, second.length);
    assert_memory_equal(first.data, second.data, first.length);
    for (int i = 0; i < SPECS; i++)
        assert_int_equal(turned[i].offset, specs[SPECS - 1 - i].offset);
    bw_text_free(&first);
    bw_text_free(&second);
}

static void a_file_of_no_tensors_is_written_and_read(void **state)
{
    (void)state;
    bw_tensors *tensors;
    assert_int_equal(bw_safetensors_write(path, NULL, 0, NULL, 0644), BW_OK);
    assert_int_equal(bw_safetensors_open(&tensors, path), BW_OK);
    assert_int_equal(bw_tensors_count(tensors), 0);
    bw_tensors_close(tensors);
}

static void a_plan_that_no_reader_would_take_is_refused(void **state)
{
    (void)state;
    static const struct {
        bw_tensor_spec specs[2];
        int status;
        const char *wanted;
    } cases[] = {
        {{{.name = "x", .dtype = BW_F32}, {.name = "x", .dtype = BW_F16}}, BW_BUG, "tensor x is there twice"},
        {{{.name = "x", .dtype = BW_F32}, {.name = "__metadata__", .dtype = BW_F32}}, BW_BUG, "metadata_key"},
        {{{.name = "x", .dtype = BW_F32}, {.name = "\xff", .dtype = BW_F32}}, BW_BUG, "utf8"},
        {{{.name = "x", .dtype = BW_F32}, {.name = "q", .dtype = BW_Q8_0, .n_dims = 1, .shape = {32}}}, BW_BUG, "safetensors"},
        {{{.name = "x", .dtype = BW_F32}, {.name = "y", .dtype = BW_F32, .n_dims = 2, .shape = {1ll << 31, 1ll << 31}}}, BW_DATA, "63 bits"},
        {{{.name = "x", .dtype = BW_F32, .n_dims = 1, .shape = {1ll << 60}}, {.name = "y", .dtype = BW_F32, .n_dims = 1, .shape = {1ll << 60}}},
         BW_BUG,
         "2^63"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bw_tensor_spec specs[2] = {cases[i].specs[0], cases[i].specs[1]};
        bw_text header = {0};
        int64_t bytes;
        expect_failure(bw_safetensors_plan(specs, 2, NULL, &header, &bytes), cases[i].status, cases[i].wanted);
        bw_text_free(&header);
    }
}

/* ---- refusing ------------------------------------------------------------------------------------------------------*/
static void put_sample(bw_text *file)
{
    bw_tensor_spec specs[SPECS];
    int64_t bytes;
    fill_specs(specs);
    assert_int_equal(bw_safetensors_plan(specs, SPECS, metadata, file, &bytes), BW_OK);
    put_zeros(file, (size_t)bytes - file->length);
}

static void a_file_cut_anywhere_or_too_long_is_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    put_sample(&file);
    cut_everywhere(bw_safetensors_open, &file, path);
    put_zeros(&file, 1);
    bw_tensors *tensors;
    store(path, file.data, file.length);
    expect_failure(bw_safetensors_open(&tensors, path), BW_DATA, "1 bytes behind the last tensor");
    bw_text_free(&file);
}

static void a_damaged_file_is_read_or_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    put_sample(&file);
    damage_randomly(bw_safetensors_open, &file, file.length - 56, path, 4000);
    bw_text_free(&file);
}

static void header_lengths_that_cannot_be_are_refused(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {3, 100000001, 1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bw_tensors *tensors;
        bw_text file = {0};
        put_u64(&file, lengths[i]);
        put(&file, "{}", 2);
        store(path, file.data, file.length);
        expect_failure(bw_safetensors_open(&tensors, path), BW_DATA, "the header claims");
        bw_text_free(&file);
    }
}

#define ENTRY(dtype, shape, begin, end) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

/* With no rows the width meets no bound of the file: nothing may be computed from it. */
static void a_tensor_of_no_rows_and_any_width_is_read_as_nothing(void **state)
{
    (void)state;
    bw_tensors *tensors;
    float untouched = 7;
    store_file(path, "{\"a\":{\"dtype\":\"F32\",\"shape\":[0,4611686018427387904],\"data_offsets\":[0,0]}}", 0);
    assert_int_equal(bw_safetensors_open(&tensors, path), BW_OK);
    const bw_tensor *tensor = bw_tensors_find(tensors, "a");
    assert_int_equal(bw_tensor_read(tensor, 0, 0, 0, tensor->shape[1], &untouched, tensor->shape[1]), BW_OK);
    assert_true(untouched == 7);
    bw_tensors_close(tensors);
}

static void headers_that_contradict_themselves_are_refused(void **state)
{
    (void)state;
    refused("[]", 0, "must be a JSON object");
    refused("{\"a\":1}", 0, "entry for tensor a must be an object");
    refused("{\"a\":" ENTRY("F32", "[1]", "0", "4") ",\"a\":" ENTRY("F32", "[1]", "4", "8") "}", 8, "line 1");
    refused("{\"a\":" ENTRY("I64", "[1]", "0", "8") "}", 8, "tensor a has dtype I64; supported are F32, F16, BF16, F64");
    refused("{\"a\":" ENTRY("Q8_0", "[32]", "0", "34") "}", 34, "tensor a has dtype Q8_0");
    refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor a has dtype missing");
    refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "\"shape\" must be");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "\"data_offsets\" must be");
    refused("{\"a\":" ENTRY("F32", "[1,1,1,1,1]", "0", "4") "}", 4, "\"shape\" must be");
    refused("{\"a\":" ENTRY("F32", "[-1]", "0", "4") "}", 4, "\"shape\" must be");
    refused("{\"a\":" ENTRY("F32", "[1.0]", "0", "4") "}", 4, "\"shape\" must be");
    refused("{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "0", "4") "}", 4, "63 bits");
    refused("{\"a\":" ENTRY("F32", "[2305843009213693952]", "0", "4") "}", 4, "63 bits");
    refused("{\"a\":" ENTRY("F32", "[2]", "0", "4") "}", 4, "need 8 bytes, and its offsets give it 4");
    refused("{\"a\":" ENTRY("F32", "[1]", "4", "0") "}", 4, "lies at bytes 4 to 0");
    refused("{\"a\":" ENTRY("F32", "[1]", "-4", "0") "}", 4, "lies at bytes -4 to 0");
    refused("{\"a\":" ENTRY("F32", "[1]", "0", "4.0") "}", 4, "two whole numbers");
    refused("{\"a\":" ENTRY("F32", "[1]", "4", "8") "}", 4, "of 4 bytes of data");
    refused("{\"a\":" ENTRY("F32", "[1]", "0", "4") "}", 3, "of 3 bytes of data");
    refused("{\"a\":" ENTRY("F32", "[1]", "4", "8") "}", 8, "4 bytes before tensor a belong to no tensor");
    refused("{\"a\":" ENTRY("F32", "[2]", "0", "8") ",\"b\":" ENTRY("F32", "[1]", "4", "8") "}", 8, "tensor b overlaps tensor a");
    refused("{\"a\":" ENTRY("F32", "[0]", "2", "2") ",\"b\":" ENTRY("F32", "[1]", "0", "4") "}", 4, "tensor a overlaps tensor b");
    refused("{\"\":" ENTRY("F32", "[1]", "0", "4") "}", 4, "is empty");
    refused("{\"a\xff\":" ENTRY("F32", "[1]", "0", "4") "}", 4, "not UTF-8");
    refused("{\"__metadata__\":[]}", 0, "must be an object of texts");
    refused("{\"__metadata__\":{\"format\":1}}", 0, "value of format must be a text");
    refused("{}", 4, "4 bytes behind the last tensor");
}

/* ---- folders -------------------------------------------------------------------------------------------------------*/
static void store_in(const char *name, const char *header, size_t data_bytes)
{
    char *to = path_in(folder, name);
    if (header)
        store_file(to, header, data_bytes);
    else
        unlink(to);
    free(to);
}

static void store_index(const char *text)
{
    char *to = path_in(folder, "model.safetensors.index.json");
    store(to, text, strlen(text));
    free(to);
}

static void folder_refused(const char *index, int wanted_status, const char *wanted)
{
    bw_tensors *tensors = (bw_tensors *)1;
    store_index(index);
    int status = bw_safetensors_open_model(&tensors, folder);
    assert_null(tensors);
    expect_failure(status, wanted_status, wanted);
}

static void shards_are_read_as_one_model(void **state)
{
    (void)state;
    store_in("one.safetensors",
             "{\"__metadata__\":{\"format\":\"pt\"},\"c\":" ENTRY("F32", "[1]", "0", "4") ",\"a\":" ENTRY("F16", "[2]", "4", "8") "}", 8);
    store_in("two.safetensors", "{\"__metadata__\":{\"format\":\"other\",\"x\":\"y\"},\"b\":" ENTRY("F32", "[2,1]", "0", "8") "}", 8);
    store_index("{\"metadata\":{\"total_size\":16},\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"one.safetensors\"}}");
    bw_tensors *tensors;
    assert_int_equal(bw_safetensors_open_model(&tensors, folder), BW_OK);
    assert_int_equal(bw_tensors_count(tensors), 3);
    assert_int_equal(bw_tensors_find(tensors, "b")->shape[0], 2);
    assert_int_equal(bw_tensors_find(tensors, "a")->dtype, BW_F16);
    assert_string_equal(bw_safetensors_metadata(tensors, "format"), "pt");
    assert_string_equal(bw_safetensors_metadata(tensors, "x"), "y");
    read_everything(tensors);
    bw_tensors_close(tensors);
    assert_int_equal(bw_mem_now(), 0);
}

/* Two shards with the same 200,000 metadata keys, one with 200,000 tensors: what compares every entry with every other takes minutes. */
/* A search of every key for every key would take hours here: the time that a test may take ends it. */
static void a_header_of_many_names_is_read(void **state)
{
    (void)state;
    enum { ENTRIES = 200000 };
    bw_text keys = {0}, names = {0}, map = {0}, header = {0};
    for (int i = 0; i < ENTRIES; i++) {
        assert_int_equal(bw_text_addf(&keys, "%s\"k%d\":\"v\"", i ? "," : "", i), BW_OK);
        assert_int_equal(bw_text_addf(&names, ",\"t%d\":" ENTRY("F32", "[0]", "0", "0"), i), BW_OK);
        assert_int_equal(bw_text_addf(&map, ",\"t%d\":\"two.safetensors\"", i), BW_OK);
    }
    assert_int_equal(bw_text_addf(&header, "{\"__metadata__\":{%s,\"only one\":\"1\"},\"a\":" ENTRY("F32", "[1]", "0", "4") "}", keys.data), BW_OK);
    store_in("one.safetensors", header.data, 4);
    header.length = 0;
    assert_int_equal(bw_text_addf(&header, "{\"__metadata__\":{%s,\"only two\":\"2\"}%s}", keys.data, names.data), BW_OK);
    store_in("two.safetensors", header.data, 0);
    header.length = 0;
    assert_int_equal(bw_text_addf(&header, "{\"weight_map\":{\"a\":\"one.safetensors\"%s}}", map.data), BW_OK);
    store_index(header.data);
    bw_tensors *tensors;
    assert_int_equal(bw_safetensors_open_model(&tensors, folder), BW_OK);
    assert_int_equal(bw_tensors_count(tensors), ENTRIES + 1);
    assert_non_null(bw_tensors_find(tensors, "t123456"));
    assert_string_equal(bw_safetensors_metadata(tensors, "k199999"), "v");
    assert_string_equal(bw_safetensors_metadata(tensors, "only one"), "1");
    assert_string_equal(bw_safetensors_metadata(tensors, "only two"), "2");
    bw_tensors_close(tensors);
    bw_text *texts[] = {&keys, &names, &map, &header};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        bw_text_free(texts[i]);
    assert_int_equal(bw_mem_now(), 0);
}

static void an_index_and_shards_that_disagree_are_refused(void **state)
{
    (void)state;
    store_in("one.safetensors", "{\"a\":" ENTRY("F32", "[1]", "0", "4") "}", 4);
    store_in("two.safetensors", "{\"a\":" ENTRY("F32", "[1]", "0", "4") "}", 4);
    folder_refused("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\"}}", BW_DATA, "one.safetensors: tensor b is missing");
    folder_refused("{\"weight_map\":{\"b\":\"one.safetensors\"}}", BW_DATA, "one.safetensors: tensor a is surplus");
    folder_refused("{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}", BW_DATA, "two.safetensors: tensor a is surplus");
    folder_refused("{\"weight_map\":{\"a\":\"none.safetensors\"}}", BW_NOINPUT, "none.safetensors");
    folder_refused("{\"weight_map\":{\"a\":\"../one.safetensors\"}}", BW_DATA, "tensor a: \"../one.safetensors\" is not a plain file name");
    folder_refused("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", BW_DATA, "not a plain file name");
    folder_refused("{\"weight_map\":{\"a\":\"..\"}}", BW_DATA, "not a plain file name");
    folder_refused("{\"weight_map\":{\"a\":\"one.safetensors\\u0000x\"}}", BW_DATA, "not a plain file name");
    folder_refused("{\"weight_map\":{\"a\":\"\"}}", BW_DATA, "not a plain file name");
    folder_refused("{\"weight_map\":{\"a\":7}}", BW_DATA, "not a plain file name");
    folder_refused("{\"weight_map\":{}}", BW_DATA, "weight_map");
    folder_refused("[]", BW_DATA, "weight_map");
    folder_refused("{", BW_DATA, "line 1");
}

static void a_single_file_is_taken_before_an_index_and_nothing_is_named(void **state)
{
    (void)state;
    bw_tensors *tensors;
    store_index("{");
    store_in("model.safetensors", "{\"a\":" ENTRY("F32", "[1]", "0", "4") "}", 4);
    assert_int_equal(bw_safetensors_open_model(&tensors, folder), BW_OK);
    assert_int_equal(bw_tensors_count(tensors), 1);
    bw_tensors_close(tensors);
    store_in("model.safetensors", NULL, 0);
    store_in("model.safetensors.index.json", NULL, 0);
    expect_failure(bw_safetensors_open_model(&tensors, folder), BW_NOINPUT, "pickle");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_written_file_is_read_back),
        cmocka_unit_test(a_plan_is_aligned_dense_and_the_size_of_the_file),
        cmocka_unit_test(the_order_of_the_specs_does_not_change_the_file),
        cmocka_unit_test(a_file_of_no_tensors_is_written_and_read),
        cmocka_unit_test(a_plan_that_no_reader_would_take_is_refused),
        cmocka_unit_test(a_file_cut_anywhere_or_too_long_is_refused),
        cmocka_unit_test(a_damaged_file_is_read_or_refused),
        cmocka_unit_test(header_lengths_that_cannot_be_are_refused),
        cmocka_unit_test(a_tensor_of_no_rows_and_any_width_is_read_as_nothing),
        cmocka_unit_test(headers_that_contradict_themselves_are_refused),
        cmocka_unit_test(shards_are_read_as_one_model),
        cmocka_unit_test(a_header_of_many_names_is_read),
        cmocka_unit_test(an_index_and_shards_that_disagree_are_refused),
        cmocka_unit_test(a_single_file_is_taken_before_an_index_and_nothing_is_named),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

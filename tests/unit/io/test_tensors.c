/* Reading a piece of a tensor: any rows and columns, of any type, and no byte beside them. */
#include "bytes.h"
#include <sys/mman.h>

enum { ROWS = 3, COLUMNS = 96, LD = 101, MAX_COLUMNS = 768 };

static const float untouched = -12345;

/* Every piece of one row (every `step`-th where rows are long) must equal that piece of the whole matrix; nothing may be written behind it. */
static void check_row(const bw_tensor *tensor, const float *whole, int64_t row, int64_t step)
{
    int64_t columns = tensor->shape[1];
    for (int64_t col = 0; col <= columns; col += step) {
        for (int64_t cols = 0; col + cols <= columns; cols += step) {
            float out[MAX_COLUMNS + 1];
            out[cols] = untouched;
            assert_int_equal(bw_tensor_read(tensor, row, 1, col, cols, out, columns), BW_OK);
            if (memcmp(out, whole + row * columns + col, (size_t)cols * sizeof *out) != 0 || out[cols] != untouched)
                fail_msg("%s: row %lld, columns %lld to %lld differ", tensor->name, (long long)row, (long long)col, (long long)(col + cols));
        }
    }
}

static void every_piece_of_every_type_equals_the_part_of_the_whole(void **state)
{
    (void)state;
    uint64_t random = 11;
    for (bw_dtype dtype = 0; dtype < BW_DTYPES; dtype++) {
        bool long_blocks = bw_dtype_bytes(dtype, 32) == bw_dtype_bytes(dtype, 256);
        int64_t columns = long_blocks ? MAX_COLUMNS : COLUMNS, step = long_blocks ? 16 : 1;
        bw_tensor tensor = {.name = (char *)(uintptr_t)bw_dtype_name(dtype), .dtype = dtype, .n_dims = 2, .shape = {ROWS, columns}};
        tensor.bytes = bw_dtype_bytes(dtype, ROWS * columns);
        uint8_t *data = malloc((size_t)tensor.bytes); /* exactly so many, for a sanitizer */
        for (int64_t i = 0; i < tensor.bytes; i++)
            data[i] = (uint8_t)(next_random(&random) & 0x3f); /* no NaN, no infinity in any type */
        tensor.data = data;
        float whole[ROWS * MAX_COLUMNS];
        bw_to_f32(whole, data, dtype, ROWS * columns);
        for (int64_t row = 0; row < ROWS; row++)
            check_row(&tensor, whole, row, step);
        free(data);
    }
}

static void a_leading_dimension_leaves_what_is_between_the_rows(void **state)
{
    (void)state;
    float data[ROWS * COLUMNS], out[ROWS * LD];
    for (int i = 0; i < ROWS * COLUMNS; i++)
        data[i] = (float)i;
    for (int i = 0; i < ROWS * LD; i++)
        out[i] = untouched;
    bw_tensor tensor = {.name = (char[]){"t"}, .dtype = BW_F32, .n_dims = 2, .shape = {ROWS, COLUMNS}, .data = (const uint8_t *)data};
    assert_int_equal(bw_tensor_read(&tensor, 1, 2, 5, 90, out, LD), BW_OK);
    for (int i = 0; i < ROWS * LD; i++) {
        int row = i / LD, column = i % LD;
        assert_true(out[i] == (row < 2 && column < 90 ? (float)((row + 1) * COLUMNS + column + 5) : untouched));
    }
}

/* Pages beside the wanted one cannot be read at all: touching a byte of them ends this test. */
static void only_the_bytes_wanted_are_touched(void **state)
{
    (void)state;
    long page = sysconf(_SC_PAGESIZE);
    uint8_t *memory = mmap(NULL, (size_t)page * 3, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(memory, MAP_FAILED);
    int64_t entries = page / 4;
    for (int64_t i = 0; i < entries * 3; i++)
        memcpy(memory + 4 * i, &(float){(float)i}, 4);
    assert_int_equal(mprotect(memory, (size_t)page, PROT_NONE), 0);
    assert_int_equal(mprotect(memory + 2 * page, (size_t)page, PROT_NONE), 0);
    bw_tensor rows = {.name = (char[]){"rows"}, .dtype = BW_F32, .n_dims = 2, .shape = {3, entries}, .data = memory};
    bw_tensor vector = {.name = (char[]){"vector"}, .dtype = BW_F32, .n_dims = 1, .shape = {3 * entries}, .data = memory};
    float *out = calloc((size_t)entries, sizeof *out);
    assert_int_equal(bw_tensor_read(&rows, 1, 1, 0, entries, out, entries), BW_OK);
    assert_true(out[0] == (float)entries && out[entries - 1] == (float)(2 * entries - 1));
    assert_int_equal(bw_tensor_read(&vector, 0, 1, entries, entries, out, entries), BW_OK);
    assert_true(out[0] == (float)entries);
    assert_int_equal(bw_tensor_read(&rows, 0, 0, 0, entries, out, entries), BW_OK);
    assert_int_equal(bw_tensor_read(&rows, 0, 3, 7, 0, out, entries), BW_OK);
    free(out);
    munmap(memory, (size_t)page * 3);
}

static void pieces_outside_the_tensor_are_refused(void **state)
{
    (void)state;
    static const int64_t pieces[][4] = {{-1, 1, 0, 1}, {0, 4, 0, 1},  {3, 1, 0, 1},  {0, 1, -1, 1},        {0, 1, 2, 4},
                                        {0, 1, 6, 1},  {0, -1, 0, 1}, {0, 1, 0, -1}, {0, INT64_MAX, 0, 1}, {0, 1, 1, INT64_MAX}};
    float data[15] = {0}, out[15];
    bw_tensor tensor = {.name = (char[]){"small"}, .dtype = BW_F32, .n_dims = 2, .shape = {3, 5}, .data = (const uint8_t *)data};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        expect_failure(bw_tensor_read(&tensor, pieces[i][0], pieces[i][1], pieces[i][2], pieces[i][3], out, 5), BW_BUG, "tensor small is 3 x 5");
    tensor.n_dims = 3;
    expect_failure(bw_tensor_read(&tensor, 0, 1, 0, 1, out, 5), BW_DATA, "tensor small has 3 dimensions");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_piece_of_every_type_equals_the_part_of_the_whole),
        cmocka_unit_test(a_leading_dimension_leaves_what_is_between_the_rows),
        cmocka_unit_test(only_the_bytes_wanted_are_touched),
        cmocka_unit_test(pieces_outside_the_tensor_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

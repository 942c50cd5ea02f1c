/* What an interrupted job keeps: parts come back as they were put in, and not one changed or missing byte is taken for them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>
#include "post/inside.h"

enum { MOST = 9 };
static const char first[] = "bytes\0with a zero", second[] = "";

static void fill(bw_text *file)
{
    assert_int_equal(bw_kept_add(file, 7, first, sizeof first), BW_OK);
    assert_int_equal(bw_kept_add(file, 0, second, 0), BW_OK);
}

/* Both parts and the end; checks what it gets where all is well. */
static int read_all(const char *bytes, size_t length)
{
    bw_kept kept = {"answers.part", bytes, bytes + length};
    const char *part = NULL;
    int64_t done = -1, size = -1;
    BW_TRY(bw_kept_next(&kept, MOST, &done, &part, &size));
    assert_int_equal(done, 7);
    assert_int_equal(size, sizeof first);
    assert_memory_equal(part, first, sizeof first);
    BW_TRY(bw_kept_next(&kept, MOST, &done, &part, &size));
    assert_int_equal(done, 0);
    assert_int_equal(size, 0);
    return bw_kept_end(&kept);
}

static void refused(int status)
{
    assert_int_equal(status, BW_DATA);
    assert_non_null(strstr(bw_error(), "answers.part"));
    assert_non_null(strstr(bw_error(), "delete the file"));
    bw_error_clear();
}

static void parts_come_back_as_they_were(void **state)
{
    (void)state;
    bw_text file = {0};
    fill(&file);
    assert_int_equal(read_all(file.data, file.length), BW_OK);
    bw_text_free(&file);
}

static void no_changed_bit_is_taken(void **state)
{
    (void)state;
    bw_text file = {0};
    fill(&file);
    for (size_t bit = 0; bit < 8 * file.length; bit++) {
        file.data[bit / 8] = (char)(file.data[bit / 8] ^ (1 << bit % 8));
        refused(read_all(file.data, file.length));
        file.data[bit / 8] = (char)(file.data[bit / 8] ^ (1 << bit % 8));
    }
    bw_text_free(&file);
}

static void no_other_length_is_taken(void **state)
{
    (void)state;
    bw_text file = {0};
    fill(&file);
    for (size_t length = 0; length < file.length; length++)
        refused(read_all(file.data, length));
    assert_int_equal(bw_text_add(&file, "x", 1), BW_OK);
    refused(read_all(file.data, file.length));
    bw_text_free(&file);
}

/* More than there can be is of another run, whatever its checksum says. */
static void more_than_all_is_refused(void **state)
{
    (void)state;
    bw_text file = {0};
    assert_int_equal(bw_kept_add(&file, MOST + 1, first, sizeof first), BW_OK);
    refused(read_all(file.data, file.length));
    bw_text_free(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(parts_come_back_as_they_were), cmocka_unit_test(no_changed_bit_is_taken),
                                       cmocka_unit_test(no_other_length_is_taken), cmocka_unit_test(more_than_all_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

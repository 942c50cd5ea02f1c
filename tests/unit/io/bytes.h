/* Build small files byte by byte, and damage them. */
#ifndef TEST_IO_BYTES_H
#define TEST_IO_BYTES_H
#include "breakwater/io.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static inline void put(bw_text *file, const void *bytes, size_t length)
{
    assert_int_equal(bw_text_add(file, bytes, length), BW_OK);
}

static inline void put_u32(bw_text *file, uint32_t value)
{
    put(file, &value, sizeof value);
}

static inline void put_u64(bw_text *file, uint64_t value)
{
    put(file, &value, sizeof value);
}

static inline void put_zeros(bw_text *file, size_t length)
{
    for (size_t i = 0; i < length; i++)
        put(file, "", 1);
}

/* A folder of this test alone, in memory where that is possible: thousands of small files are written over one another. */
static inline char *new_folder(void)
{
    char *folder = strdup(access("/dev/shm", W_OK) == 0 ? "/dev/shm/bw-io-XXXXXX" : "/tmp/bw-io-XXXXXX");
    assert_non_null(mkdtemp(folder));
    return folder;
}

static inline void remove_folder(char *folder)
{
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
    free(folder);
}

static inline char *path_in(const char *folder, const char *name)
{
    char *path = malloc(strlen(folder) + strlen(name) + 2);
    sprintf(path, "%s/%s", folder, name);
    return path;
}

static inline void store(const char *path, const void *bytes, size_t length)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* The message must say `wanted`, so that its reader knows what to do. */
static inline void expect_failure(int status, int wanted_status, const char *wanted)
{
    if (status != wanted_status || !strstr(bw_error(), wanted))
        fail_msg("status %d, message \"%s\"; wanted %d and \"%s\"", status, bw_error(), wanted_status, wanted);
    bw_error_clear();
}

/* Small numbers from a fixed seed: a failure can be repeated. */
static inline uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

typedef int open_function(bw_tensors **out, const char *path);

/* Every byte of every tensor is read, so that a sanitizer sees a pointer that leads astray. */
static inline void read_everything(const bw_tensors *tensors)
{
    for (int64_t i = 0; i < bw_tensors_count(tensors); i++) {
        const bw_tensor *tensor = bw_tensors_at(tensors, i);
        assert_ptr_equal(bw_tensors_find(tensors, tensor->name), tensor);
        int64_t rows = tensor->n_dims == 2 ? tensor->shape[0] : 1, columns = tensor->n_dims ? tensor->shape[tensor->n_dims - 1] : 1;
        if (tensor->n_dims > 2 || rows == 0 || columns == 0)
            continue;
        float *row = calloc((size_t)columns, sizeof *row);
        for (int64_t r = 0; r < rows; r++)
            assert_int_equal(bw_tensor_read(tensor, r, 1, 0, columns, row, columns), BW_OK);
        free(row);
    }
}

/* A file cut off anywhere is refused with a message. */
static inline void cut_everywhere(open_function *open, const bw_text *file, const char *path)
{
    for (size_t length = 0; length < file->length; length++) {
        bw_tensors *tensors = (bw_tensors *)1;
        store(path, file->data, length);
        int status = open(&tensors, path);
        if (status != BW_DATA || tensors || !strstr(bw_error(), path))
            fail_msg("cut to %zu bytes: status %d, message \"%s\"", length, status, bw_error());
        bw_error_clear();
    }
}

/* A file with one to four wrong bytes is read or refused, and nothing else happens. */
static inline void damage_randomly(open_function *open, const bw_text *file, size_t damaged_part, const char *path, int times)
{
    uint64_t state = 20260101;
    char *copy = malloc(file->length);
    for (int i = 0; i < times; i++) {
        memcpy(copy, file->data, file->length);
        for (uint32_t flips = 1 + next_random(&state) % 4; flips > 0; flips--)
            copy[next_random(&state) % damaged_part] = (char)next_random(&state);
        store(path, copy, file->length);
        bw_tensors *tensors;
        int status = open(&tensors, path);
        if (status == BW_OK)
            read_everything(tensors);
        else if (status != BW_DATA || tensors || bw_error()[0] == '\0')
            fail_msg("damage %d: status %d, message \"%s\"", i, status, bw_error());
        bw_tensors_close(tensors);
        bw_error_clear();
    }
    free(copy);
}

#endif

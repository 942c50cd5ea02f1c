/* test_h5.c - what one grid writes any other reads, bit for bit, and a damaged file is refused by every rank. */
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../par/check.h"
#include "breakwater/h5.h"

static char folder[64], file[128];

/* ---- matrices ----------------------------------------------------------------------------------------------------- */
typedef struct shape {
    int64_t m, n;
    int mb, nb; /* when written, and the other way round when read */
    bw_piece_type type;
} shape;

static const shape shapes[] = {{16, 16, 4, 4, BW_PIECE_F32},   {37, 19, 5, 3, BW_PIECE_F64}, {64, 1, 7, 2, BW_PIECE_F32},
                               {3, 50, 64, 1, BW_PIECE_F32},   {1, 1, 1, 1, BW_PIECE_F64},   {0, 5, 2, 2, BW_PIECE_F32},
                               {41, 29, 13, 29, BW_PIECE_F32}, {32, 8, 8, 1, BW_PIECE_F64}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static double entry(int64_t i, int64_t j, int64_t salt)
{
    return (double)(float)(0.37 * (double)i - 1.1 * (double)j + (double)salt);
}

static int fill(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++)
            if (matrix->type == BW_PIECE_F64)
                ((double *)block)[r + c * matrix->ld] = entry(i + r, j + c, *(int64_t *)context);
            else
                ((float *)block)[r + c * matrix->ld] = (float)entry(i + r, j + c, *(int64_t *)context);
    return BW_OK;
}

static int compare(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = r + c * matrix->ld;
            double found = matrix->type == BW_PIECE_F64 ? ((double *)block)[at] : (double)((float *)block)[at];
            CHECK(found == entry(i + r, j + c, *(int64_t *)context));
        }
    return BW_OK;
}

static void create(bw_matrix *matrix, const bw_grid *grid, int index, bool turned)
{
    const shape *s = &shapes[index];
    CHECK_OK(bw_matrix_create(matrix, grid, s->type, s->m, s->n, turned ? s->nb : s->mb, turned ? s->mb : s->nb, "test"));
}

static void dataset_name(char name[32], int index)
{
    snprintf(name, 32, "/lora/%d/q/A", index);
}

/* ---- write and read ----------------------------------------------------------------------------------------------- */
static void write_all(const bw_grid *grid)
{
    bw_h5 *h5 = NULL;
    const int64_t step[3] = {12, -5, INT64_MAX};
    CHECK_OK(bw_h5_create(&h5, grid, file, NULL));
    for (int64_t i = 0; h5 && i < SHAPES; i++) {
        bw_matrix matrix;
        char name[32];
        dataset_name(name, (int)i);
        create(&matrix, grid, (int)i, false);
        CHECK_OK(bw_matrix_visit(&matrix, fill, &i));
        CHECK_OK(bw_h5_write_matrix(h5, name, &matrix));
        bw_matrix_free(&matrix);
    }
    if (h5) {
        CHECK_OK(bw_h5_set_text(h5, "/", "model", "SmolLM2 \xc3\xa9"));
        CHECK_OK(bw_h5_set_text(h5, "/run/config", "empty", ""));
        CHECK_OK(bw_h5_set_ints(h5, "/run/config", "step", step, 3));
    }
    CHECK_OK(bw_h5_close(&h5));
    CHECK(h5 == NULL);
}

static void read_all(const bw_grid *grid)
{
    bw_h5 *h5 = NULL;
    CHECK_OK(bw_h5_open(&h5, grid, file));
    for (int64_t i = 0; h5 && i < SHAPES; i++) {
        bw_matrix matrix;
        char name[32];
        dataset_name(name, (int)i);
        create(&matrix, grid, (int)i, true);
        CHECK_OK(bw_h5_read_matrix(h5, name, &matrix));
        CHECK_OK(bw_matrix_visit(&matrix, compare, &i));
        bw_matrix_free(&matrix);
    }
    CHECK_OK(bw_h5_close(&h5));
}

/* The first replica writes, as a checkpoint is written; then every replica of every grid reads. */
static void any_grid_reads_what_this_grid_wrote(const bw_grid *grid)
{
    if (grid->replica == 0)
        write_all(grid);
    CHECK_OK(bw_barrier(grid));
    check_every_shape(1, read_all);
}

/* ---- attributes --------------------------------------------------------------------------------------------------- */
static void attributes_come_back(const bw_grid *grid)
{
    bw_h5 *h5 = NULL;
    bw_text text = {0}, empty = {0};
    int64_t step[3] = {0};
    CHECK_OK(bw_h5_open(&h5, grid, file));
    CHECK_OK(bw_h5_get_text(h5, "/", "model", &text));
    CHECK(text.data && strcmp(text.data, "SmolLM2 \xc3\xa9") == 0);
    CHECK_OK(bw_h5_get_text(h5, "/run/config", "empty", &empty));
    CHECK(empty.length == 0);
    CHECK_OK(bw_h5_get_ints(h5, "/run/config", "step", step, 3));
    CHECK(step[0] == 12 && step[1] == -5 && step[2] == INT64_MAX);
    CHECK(bw_h5_has(h5, "/lora/0/q/A") && bw_h5_has(h5, "/lora/0") && !bw_h5_has(h5, "/lora/0/q/B") && !bw_h5_has(h5, "/nowhere/0/q"));
    CHECK(bw_h5_get_ints(h5, "/run/config", "step", step, 2) == BW_DATA);
    bw_error_clear();
    CHECK(bw_h5_get_ints(h5, "/", "model", step, 1) == BW_DATA);
    bw_error_clear();
    CHECK(bw_h5_get_text(h5, "/nowhere", "model", &text) == BW_DATA);
    CHECK(strstr(bw_error(), "model") != NULL);
    bw_error_clear();
    CHECK_OK(bw_h5_close(&h5));
    bw_text_free(&text);
    bw_text_free(&empty);
}

/* A whole configuration goes into one attribute, and those of HDF5's older formats end at 64 KiB. */
static void a_long_text_comes_back(const bw_grid *grid)
{
    enum { LENGTH = 200000 };
    bw_h5 *h5 = NULL;
    bw_text text = {0};
    char *longest = NULL;
    CHECK_OK(BW_NEW(longest, LENGTH + 1, "test"));
    memset(longest, 'x', LENGTH);
    CHECK_OK(bw_h5_create(&h5, grid, file, NULL));
    CHECK_OK(bw_h5_set_text(h5, "/", "config", longest));
    CHECK_OK(bw_h5_close(&h5));
    CHECK_OK(bw_h5_open(&h5, grid, file));
    CHECK_OK(bw_h5_get_text(h5, "/", "config", &text));
    CHECK(text.length == LENGTH && memcmp(text.data, longest, LENGTH) == 0);
    CHECK_OK(bw_h5_close(&h5));
    bw_text_free(&text);
    bw_free(longest);
}

/* ---- room --------------------------------------------------------------------------------------------------------- */
/* Known before the first byte, and to all ranks; what is claimed and not used is not part of the file. */
static void room_that_is_not_there_is_noticed_by_all_ranks(const bw_grid *grid)
{
    bw_h5 *h5 = NULL;
    const int64_t step = 7;
    struct stat about;
    CHECK_OK(bw_h5_create(&h5, grid, file, NULL));
    bw_error_clear();
    CHECK(bw_h5_claim(h5, INT64_C(1) << 60) == BW_IO && strstr(bw_error(), file) && strstr(bw_error(), "cannot be had"));
    bw_error_clear();
    CHECK_OK(bw_h5_claim(h5, 10 << 20));
    CHECK_OK(bw_h5_set_ints(h5, "/", "step", &step, 1));
    CHECK_OK(bw_h5_close(&h5));
    CHECK_OK(bw_barrier(grid));
    CHECK(stat(file, &about) == 0 && about.st_size < 1 << 20 && about.st_blocks * 512 < 1 << 20);
    CHECK_OK(bw_barrier(grid));
}

/* ---- refused ------------------------------------------------------------------------------------------------------- */
static void expect_read(const bw_grid *grid, int expected, const char *name, bw_piece_type type, int64_t m, int64_t n)
{
    bw_h5 *h5 = NULL;
    bw_matrix matrix;
    CHECK_OK(bw_matrix_create(&matrix, grid, type, m, n, 3, 3, "test"));
    bw_error_clear();
    int status = bw_h5_open(&h5, grid, file);
    if (status == BW_OK)
        status = bw_h5_read_matrix(h5, name, &matrix);
    CHECK(status == expected);
    CHECK(status == BW_OK || strstr(bw_error(), file) != NULL); /* the message names the file */
    bw_error_clear();
    CHECK_OK(bw_h5_close(&h5));
    bw_matrix_free(&matrix);
}

static void another_shape_or_type_is_refused(const bw_grid *grid)
{
    expect_read(grid, BW_OK, "/lora/0/q/A", BW_PIECE_F32, 16, 16);
    expect_read(grid, BW_DATA, "/lora/0/q/A", BW_PIECE_F32, 16, 17);
    expect_read(grid, BW_DATA, "/lora/0/q/A", BW_PIECE_F64, 16, 16);
    expect_read(grid, BW_DATA, "/lora/0/q", BW_PIECE_F32, 16, 16);
    expect_read(grid, BW_DATA, "/lora/99/q/A", BW_PIECE_F32, 16, 16);
}

/* Rank 0 changes the file, the others wait; then all of them look. */
static void change_file(const bw_grid *grid, off_t offset, unsigned char flip, off_t length)
{
    if (grid->rank == 0) {
        FILE *stream = fopen(file, "r+b");
        CHECK(stream != NULL);
        if (stream && flip) {
            fseek(stream, offset, SEEK_SET);
            int byte = fgetc(stream);
            fseek(stream, offset, SEEK_SET);
            fputc(byte ^ flip, stream);
        }
        if (stream)
            fclose(stream);
        if (length >= 0)
            CHECK(truncate(file, length) == 0);
    }
    CHECK_OK(bw_barrier(grid));
}

/* Where the bytes of one entry lie in the file: no other place holds that number. */
static off_t find_entry(float value)
{
    FILE *stream = fopen(file, "rb");
    off_t found = -1;
    char window[sizeof value] = {0};
    for (off_t at = 0; stream && found < 0; at++) {
        int byte = fgetc(stream);
        if (byte == EOF)
            break;
        memmove(window, window + 1, sizeof window - 1);
        window[sizeof window - 1] = (char)byte;
        if (memcmp(window, &value, sizeof value) == 0)
            found = at - (off_t)sizeof value + 1;
    }
    if (stream)
        fclose(stream);
    return found;
}

static void a_flipped_bit_is_noticed(const bw_grid *grid)
{
    off_t offset = find_entry((float)entry(11, 7, 0));
    CHECK(offset > 0);
    CHECK_OK(bw_barrier(grid));
    change_file(grid, offset, 1, -1);
    expect_read(grid, BW_DATA, "/lora/0/q/A", BW_PIECE_F32, 16, 16);
    change_file(grid, offset, 1, -1);
    expect_read(grid, BW_OK, "/lora/0/q/A", BW_PIECE_F32, 16, 16);
}

/* Rank 0, behind the library's back. */
static void swap_names(const char *one, const char *other)
{
    hid_t whole = H5Fopen(file, H5F_ACC_RDWR, H5P_DEFAULT);
    CHECK(whole >= 0 && H5Lmove(whole, one, whole, "/aside", H5P_DEFAULT, H5P_DEFAULT) >= 0);
    CHECK(H5Lmove(whole, other, whole, one, H5P_DEFAULT, H5P_DEFAULT) >= 0);
    CHECK(H5Lmove(whole, "/aside", whole, other, H5P_DEFAULT, H5P_DEFAULT) >= 0);
    CHECK(H5Fclose(whole) >= 0);
}

static void a_dataset_in_the_place_of_another_is_noticed(const bw_grid *grid)
{
    static const char *const names[] = {"/adam/0/q/A_m", "/adam/0/q/A_v"};
    bw_h5 *h5 = NULL;
    bw_matrix matrix;
    CHECK_OK(bw_matrix_create(&matrix, grid, BW_PIECE_F32, 16, 16, 3, 3, "test"));
    CHECK_OK(bw_h5_create(&h5, grid, file, NULL));
    for (int64_t i = 0; h5 && i < 2; i++) {
        CHECK_OK(bw_matrix_visit(&matrix, fill, &i));
        CHECK_OK(bw_h5_write_matrix(h5, names[i], &matrix));
    }
    CHECK_OK(bw_h5_close(&h5));
    bw_matrix_free(&matrix);
    for (int swaps = 0; swaps < 3; swaps++) {
        for (int i = 0; i < 2; i++)
            expect_read(grid, swaps % 2 ? BW_DATA : BW_OK, names[i], BW_PIECE_F32, 16, 16);
        CHECK_OK(bw_barrier(grid));
        if (grid->rank == 0)
            swap_names(names[0], names[1]);
        CHECK_OK(bw_barrier(grid));
    }
}

static void a_cut_file_is_refused(const bw_grid *grid)
{
    struct stat whole;
    CHECK(stat(file, &whole) == 0);
    CHECK_OK(bw_barrier(grid));
    for (off_t length = whole.st_size - 1; length >= 0; length = length > 4000 ? length / 2 : length > 0 ? 0 : -1) {
        change_file(grid, 0, 0, length);
        expect_read(grid, BW_DATA, "/lora/0/q/A", BW_PIECE_F32, 16, 16);
    }
}

static void files_that_are_not_there_have_their_own_status(const bw_grid *grid)
{
    bw_h5 *h5 = NULL;
    char path[160];
    snprintf(path, sizeof path, "%s/none/x.h5", folder);
    bw_error_clear();
    CHECK(bw_h5_open(&h5, grid, path) == BW_NOINPUT && h5 == NULL);
    CHECK(strstr(bw_error(), path) != NULL);
    bw_error_clear();
    CHECK(bw_h5_create(&h5, grid, path, NULL) == BW_CANTCREATE && h5 == NULL);
    CHECK(strstr(bw_error(), path) != NULL);
    bw_error_clear();
    CHECK(bw_h5_create(&h5, grid, folder, NULL) == BW_CANTCREATE && h5 == NULL); /* a folder is there already */
    bw_error_clear();
}

/* ---- hints --------------------------------------------------------------------------------------------------------- */
/* What MPI-IO is told comes back from the open file, and large datasets begin at the stripes that were asked for. */
static void hints_come_back_and_stripes_are_kept(const bw_grid *grid)
{
    const bw_list hints = {.items = {"cb_nodes=1", "striping_unit=65536"}, .count = 2};
    static const char *const names[] = {"/small", "/large", "/larger"};
    bw_h5 *h5 = NULL;
    bw_text text = {0};
    CHECK_OK(bw_h5_create(&h5, grid, file, &hints));
    CHECK_OK(bw_h5_add_hints(h5, &text));
    CHECK(text.data && strstr(text.data, "cb_nodes=1") && strstr(text.data, "striping_unit=65536"));
    for (int64_t i = 0; i < 3; i++) {
        bw_matrix matrix;
        CHECK_OK(bw_matrix_create(&matrix, grid, BW_PIECE_F32, 130, i == 0 ? 2 : 128, 8, 8, "test"));
        CHECK_OK(bw_matrix_visit(&matrix, fill, &i));
        CHECK_OK(bw_h5_write_matrix(h5, names[i], &matrix));
        bw_matrix_free(&matrix);
    }
    CHECK_OK(bw_h5_close(&h5));
    expect_read(grid, BW_OK, "/large", BW_PIECE_F32, 130, 128);
    hid_t whole = H5Fopen(file, H5F_ACC_RDONLY, H5P_DEFAULT);
    for (int i = 1; i < 3; i++) {
        hid_t dataset = H5Dopen2(whole, names[i], H5P_DEFAULT);
        CHECK(H5Dget_offset(dataset) != HADDR_UNDEF && H5Dget_offset(dataset) % 65536 == 0);
        CHECK(H5Dclose(dataset) >= 0);
    }
    CHECK(H5Fclose(whole) >= 0);
    bw_text_free(&text);
}

static void what_mpi_cannot_take_as_a_hint_is_refused(const bw_grid *grid)
{
    char key[600], value[3000];
    memset(key, 'k', sizeof key);
    memset(value, 'v', sizeof value);
    strcpy(key + sizeof key - 3, "=v");
    memcpy(value, "key=", 4);
    value[sizeof value - 1] = '\0';
    char *const bad[] = {"", "=", "key", "key=", "=value", key, value};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bw_h5 *h5 = NULL;
        const bw_list hints = {.items = {"cb_nodes=1", bad[i]}, .count = 2};
        bw_error_clear();
        CHECK(bw_hints_check(&hints) == BW_USAGE && strstr(bw_error(), "is not KEY=VALUE"));
        CHECK(bw_h5_create(&h5, grid, file, &hints) == BW_USAGE && h5 == NULL);
    }
    const bw_list good = {.items = {"key==", "striping_unit=1", "key=a=b"}, .count = 3};
    bw_error_clear();
    CHECK_OK(bw_hints_check(&good));
    CHECK(strcmp(bw_hint_find(&good, "key"), "a=b") == 0 && !bw_hint_find(&good, "ke") && !bw_hint_find(&good, "key="));
}

/* ---- other programs ------------------------------------------------------------------------------------------------ */
/* h5dump prints the numbers in the order of the global matrix, so that a person can read a checkpoint. */
static void h5dump_shows_the_global_matrix(void)
{
    char command[256], line[256];
    int64_t count = 0, n = shapes[6].n;
    snprintf(command, sizeof command, "h5dump -y -w 1 -m %%.9g -d /lora/6/q/A %s 2>/dev/null", file);
    FILE *dump = popen(command, "r");
    bool data = false;
    while (dump && count < shapes[6].m * n && fgets(line, sizeof line, dump)) {
        double value;
        if (strstr(line, "DATA {"))
            data = true;
        else if (data && sscanf(line, " %lf", &value) == 1) {
            CHECK((float)value == (float)entry(count / n, count % n, 6));
            count++;
        }
    }
    while (dump && fgets(line, sizeof line, dump)) /* the checksum, an attribute, comes after the entries */
        ;
    if (dump && pclose(dump) != 0)
        printf("h5dump is not here: not checked\n");
    else
        CHECK(count == shapes[6].m * n);
}

int main(int argc, char **argv)
{
    bw_grid *grid = NULL;
    CHECK_OK(bw_par_start(&argc, &argv));
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    snprintf(folder, sizeof folder, "/tmp/test_h5.XXXXXX");
    if (grid->rank == 0)
        CHECK(mkdtemp(folder) != NULL);
    CHECK_OK(bw_broadcast(grid, folder, sizeof folder));
    snprintf(file, sizeof file, "%s/step-000012.h5", folder);
    check_every_shape(1, any_grid_reads_what_this_grid_wrote);
    attributes_come_back(grid);
    another_shape_or_type_is_refused(grid);
    if (grid->rank == 0)
        h5dump_shows_the_global_matrix();
    CHECK_OK(bw_barrier(grid));
    a_flipped_bit_is_noticed(grid);
    a_cut_file_is_refused(grid);
    a_dataset_in_the_place_of_another_is_noticed(grid);
    files_that_are_not_there_have_their_own_status(grid);
    a_long_text_comes_back(grid);
    room_that_is_not_there_is_noticed_by_all_ranks(grid);
    hints_come_back_and_stripes_are_kept(grid);
    what_mpi_cannot_take_as_a_hint_is_refused(grid);
    CHECK_OK(bw_barrier(grid));
    if (grid->rank == 0)
        CHECK(remove(file) == 0 && rmdir(folder) == 0);
    bw_grid_destroy(&grid);
    return check_finish("test_h5");
}

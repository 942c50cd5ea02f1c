/* h5.c - parallel HDF5, its only caller.
 *
 * A block-cyclic piece is at most four regular hyperslabs of the global dataset: whole blocks and a last ragged block, in either
 * dimension. HDF5 walks their union row by row, so the piece is turned from columns to rows before it is written.
 *
 * Every dataset carries "sum64": the sum, modulo 2^64, of a mixture of each entry's bits and its place, and of a hash of its name, so that none
 * stands in another's place. A sum knows no order, so any grid can make it and any other can check it. */
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "breakwater/h5.h"
#include "par/comms.h"

struct bw_h5 {
    const bw_grid *grid;
    hid_t file, access; /* access: how it is opened */
    char *path;
    const bw_list *hints; /* borrowed, NULL for none; read by create only */
    hsize_t alignment;    /* of large datasets, when it is made */
    bool claimed;         /* of rank 0: more room than it fills may be the file's */
    int reserve;          /* of rank 0: a nameless file that keeps room on the disk, -1 elsewhere */
};

enum { LARGE_BLOCK = 1 << 20, SMALLEST_ALIGNMENT = 512, LARGEST_ALIGNMENT = 1 << 30 };
enum { MOST_TEXT = 1 << 24 }; /* bytes of an attribute that is believed */
static const char checksum[] = "sum64";

/* ---- errors ------------------------------------------------------------------------------------------------------- */
/* HDF5 forgets an error at its next call, the one that releases something included, so the reason is kept when it arises. */
static char last_reason[256];

static herr_t keep_innermost(unsigned depth, const H5E_error2_t *error, void *unused)
{
    (void)unused;
    if (depth == 0)
        snprintf(last_reason, sizeof last_reason, "%s", error->desc ? error->desc : "");
    return 0;
}

static herr_t on_error(hid_t stack, void *unused)
{
    return H5Ewalk2(stack, H5E_WALK_UPWARD, keep_innermost, unused);
}

/* `what` the caller wanted of `object`, and what HDF5 says stood in the way. */
static int fail_with(int status, const char *path, const char *what, const char *object)
{
    struct statvfs room;
    char space[64] = "";
    if (status == BW_IO && statvfs(path, &room) == 0)
        snprintf(space, sizeof space, " (%.1f MiB free there)", (double)room.f_bavail * (double)room.f_frsize / 1048576);
    bw_fail(status, "%s: cannot %s %s%s: %s", path, what, object, space, last_reason[0] ? last_reason : "no reason given");
    last_reason[0] = '\0';
    return status;
}

static int agree(const bw_h5 *h5, int status)
{
    return bw_agree_on(h5->grid->comms->grid, status);
}

/* Close what is open: each HDF5 kind has its own call, H5Idec_ref does for all. */
static void release(hid_t id)
{
    if (id >= 0)
        H5Idec_ref(id);
}

/* ---- files -------------------------------------------------------------------------------------------------------- */
/* No messages of HDF5's own, and no way from a checkpoint into other files. */
static void prepare_library(void)
{
    H5Eset_auto2(H5E_DEFAULT, on_error, NULL);
    if (H5Lis_registered(H5L_TYPE_EXTERNAL) > 0)
        H5Lunregister(H5L_TYPE_EXTERNAL);
}

/* What large datasets are aligned to: the stripe that is asked for, else the file system's block where it has large ones; 1: nothing. */
static hsize_t alignment_of(const char *folder, const bw_list *hints)
{
    struct stat about;
    const char *stripe = hints ? bw_hint_find(hints, "striping_unit") : NULL;
    long long block = stat(folder, &about) == 0 && about.st_blksize >= LARGE_BLOCK ? (long long)about.st_blksize : 1;
    if (stripe)
        block = atoll(stripe);
    return block >= SMALLEST_ALIGNMENT && block <= LARGEST_ALIGNMENT ? (hsize_t)block : 1;
}

/* Collective, for HDF5 makes a communicator of its own: only once all ranks have agreed that the file can be had. */
static int make_access(bw_h5 *h5)
{
    MPI_Info info;
    int status = bw_hints_info(h5->hints, &info);
    h5->access = H5Pcreate(H5P_FILE_ACCESS);
    bool set = status == BW_OK && h5->access >= 0 && H5Pset_fapl_mpio(h5->access, h5->grid->comms->grid, info) >= 0 &&
               H5Pset_libver_bounds(h5->access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 && H5Pset_coll_metadata_write(h5->access, 1) >= 0 &&
               H5Pset_all_coll_metadata_ops(h5->access, 1) >= 0 && H5Pset_alignment(h5->access, h5->alignment, h5->alignment) >= 0;
    if (info != MPI_INFO_NULL)
        MPI_Info_free(&info); /* HDF5 has its own copy */
    return set || status != BW_OK ? status : fail_with(BW_SYSTEM, h5->path, "prepare", "the access to this file");
}

static int allocate(bw_h5 **out, const bw_grid *grid, const char *path)
{
    bw_h5 *h5 = NULL;
    size_t length = strlen(path) + 1;
    BW_TRY(BW_NEW(h5, 1, "hdf5"));
    *out = h5;
    h5->grid = grid;
    h5->file = h5->access = h5->reserve = -1;
    BW_TRY(BW_NEW(h5->path, length, "hdf5"));
    memcpy(h5->path, path, length);
    return BW_OK;
}

/* HDF5 cannot close a file whose metadata find no room: it crashes, or its ranks wait for one another. So a few MiB are set aside while data
 * are written and given back before the file is closed: a disk that fills up stops the data, and never the closing. */
static int reserve_room(bw_h5 *h5)
{
    char name[4096];
    if (h5->grid->myrow != 0 || h5->grid->mycol != 0)
        return BW_OK;
    if ((size_t)snprintf(name, sizeof name, "%s.XXXXXX", h5->path) >= sizeof name)
        return bw_fail(BW_CANTCREATE, "%s: the path is too long", h5->path);
    h5->reserve = mkstemp(name);
    if (h5->reserve < 0)
        return bw_fail(BW_CANTCREATE, "%s: cannot create a file there: %s", h5->path, strerror(errno));
    unlink(name);
    int error = posix_fallocate(h5->reserve, 0, BW_H5_RESERVE);
    return error == 0 ? BW_OK : bw_fail(BW_IO, "%s: not even %d MiB can be written there: %s", h5->path, BW_H5_RESERVE >> 20, strerror(error));
}

static void give_room_back(bw_h5 *h5)
{
    if (h5->reserve >= 0)
        close(h5->reserve);
    h5->reserve = -1;
}

static void deallocate(bw_h5 **h5)
{
    if (*h5) {
        give_room_back(*h5);
        release((*h5)->access);
        bw_free((*h5)->path);
    }
    bw_free(*h5);
    *h5 = NULL;
}

static int create_file(bw_h5 *h5)
{
    h5->file = H5Fcreate(h5->path, H5F_ACC_TRUNC, H5P_DEFAULT, h5->access);
    return h5->file >= 0 ? BW_OK : fail_with(BW_CANTCREATE, h5->path, "create", "this HDF5 file");
}

static int open_file(bw_h5 *h5)
{
    h5->file = H5Fopen(h5->path, H5F_ACC_RDONLY, h5->access);
    return h5->file >= 0 ? BW_OK : fail_with(BW_DATA, h5->path, "open", "as HDF5 (truncated, or not HDF5)");
}

/* Asked before HDF5 is, whose collective open may leave ranks waiting for one that cannot see the file. */
static int check_readable(bw_h5 *h5)
{
    if (access(h5->path, R_OK) != 0)
        return bw_fail(BW_NOINPUT, "%s: cannot open: %s", h5->path, strerror(errno));
    return BW_OK;
}

static int claim(const bw_h5 *h5, int64_t bytes)
{
    int descriptor = open(h5->path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0)
        return bw_fail(BW_CANTCREATE, "%s: cannot open: %s", h5->path, strerror(errno));
    int error = fallocate(descriptor, FALLOC_FL_KEEP_SIZE, 0, bytes) == 0 ? 0 : errno;
    close(descriptor);
    if (error == 0 || error == EOPNOTSUPP || error == ENOSYS)
        return BW_OK;
    return bw_fail(BW_IO, "%s: its %.1f MiB cannot be had there: %s", h5->path, (double)bytes / 1048576, strerror(error));
}

int bw_h5_claim(bw_h5 *h5, int64_t bytes)
{
    bool first = h5->grid->myrow == 0 && h5->grid->mycol == 0;
    h5->claimed = first;
    return agree(h5, first ? claim(h5, bytes) : BW_OK);
}

/* All ranks lay the file out alike, so one says how. */
static int agree_on_alignment(bw_h5 *h5, const char *folder)
{
    uint64_t value = alignment_of(folder, h5->hints);
    BW_MPI(MPI_Bcast(&value, 1, MPI_UINT64_T, 0, h5->grid->comms->grid));
    h5->alignment = value;
    return BW_OK;
}

static int check_folder(bw_h5 *h5)
{
    const char *slash = strrchr(h5->path, '/');
    char folder[4096] = ".";
    if (slash)
        snprintf(folder, sizeof folder, "%.*s", slash == h5->path ? 1 : (int)(slash - h5->path), h5->path);
    BW_TRY(agree_on_alignment(h5, folder));
    if (access(folder, W_OK | X_OK) != 0)
        return bw_fail(BW_CANTCREATE, "%s: cannot create: folder %s: %s", h5->path, folder, strerror(errno));
    return reserve_room(h5);
}

static int start(bw_h5 **out, const bw_grid *grid, const char *path, const bw_list *hints, int (*check)(bw_h5 *), int (*open)(bw_h5 *))
{
    bw_h5 *h5 = NULL;
    int status;
    BW_GO(bw_agree_on(grid->comms->grid, allocate(&h5, grid, path)));
    h5->hints = hints;
    h5->alignment = 1;
    prepare_library();
    BW_GO(agree(h5, check(h5)));
    BW_GO(agree(h5, make_access(h5)));
    BW_GO(agree(h5, open(h5)));
done:
    if (status != BW_OK && h5) {
        release(h5->file);
        deallocate(&h5);
    }
    *out = h5;
    return status;
}

int bw_h5_create(bw_h5 **out, const bw_grid *grid, const char *path, const bw_list *hints)
{
    return start(out, grid, path, hints, check_folder, create_file);
}

int bw_h5_open(bw_h5 **out, const bw_grid *grid, const char *path)
{
    return start(out, grid, path, NULL, check_readable, open_file);
}

int bw_h5_add_hints(bw_h5 *h5, bw_text *text)
{
    MPI_File *handle = NULL;
    MPI_Info info = MPI_INFO_NULL;
    if (H5Fget_vfd_handle(h5->file, H5P_DEFAULT, (void **)&handle) < 0 || MPI_File_get_info(*handle, &info) != MPI_SUCCESS)
        return agree(h5, bw_text_addf(text, "MPI does not tell them"));
    int status = bw_hints_describe(info, text);
    if (info != MPI_INFO_NULL)
        MPI_Info_free(&info);
    return agree(h5, status);
}

/* What was claimed and not used goes back; where that fails, it is a little room lost, and nothing else. */
static void release_claim(const bw_h5 *h5)
{
    struct stat about;
    if (h5->claimed && stat(h5->path, &about) == 0)
        (void)!truncate(h5->path, about.st_size);
}

int bw_h5_close(bw_h5 **h5)
{
    if (!*h5)
        return BW_OK;
    give_room_back(*h5);
    int status = agree(*h5, BW_OK); /* nobody writes before the room is there */
    if (status == BW_OK && H5Fflush((*h5)->file, H5F_SCOPE_GLOBAL) < 0)
        status = fail_with(BW_IO, (*h5)->path, "flush", "this file");
    if (H5Fclose((*h5)->file) < 0 && status == BW_OK)
        status = fail_with(BW_IO, (*h5)->path, "close", "this file");
    status = agree(*h5, status);
    release_claim(*h5);
    deallocate(h5);
    return status;
}

/* ---- selections --------------------------------------------------------------------------------------------------- */
/* One dimension of a piece as runs of equal blocks: the whole blocks, and the last one where it is ragged. */
typedef struct run {
    hsize_t start, stride, count, block;
} run;

static int runs_of(int64_t n, int nb, int proc, int nprocs, run runs[2])
{
    int64_t own = bw_bcyc_count(n, nb, proc, nprocs), whole = own / nb;
    int count = 0;
    hsize_t stride = (hsize_t)nb * (hsize_t)nprocs, start = (hsize_t)proc * (hsize_t)nb;
    if (whole > 0)
        runs[count++] = (run){start, stride, (hsize_t)whole, (hsize_t)nb};
    if (own % nb > 0)
        runs[count++] = (run){start + (hsize_t)whole * stride, stride, 1, (hsize_t)(own % nb)};
    return count;
}

static herr_t select_piece(hid_t space, const bw_matrix *matrix)
{
    const bw_bcyc *layout = &matrix->layout;
    run rows[2], cols[2];
    int n_rows = runs_of(layout->m, layout->mb, matrix->myrow, layout->nprow, rows);
    int n_cols = runs_of(layout->n, layout->nb, matrix->mycol, layout->npcol, cols);
    herr_t result = H5Sselect_none(space);
    H5S_seloper_t operation = H5S_SELECT_SET;
    for (int r = 0; r < n_rows; r++)
        for (int c = 0; c < n_cols && result >= 0; c++, operation = H5S_SELECT_OR) {
            hsize_t start[] = {rows[r].start, cols[c].start}, stride[] = {rows[r].stride, cols[c].stride};
            hsize_t count[] = {rows[r].count, cols[c].count}, block[] = {rows[r].block, cols[c].block};
            result = H5Sselect_hyperslab(space, operation, start, stride, count, block);
        }
    return result;
}

static hid_t memory_space(const bw_matrix *matrix)
{
    hsize_t entries = (hsize_t)(matrix->rows * matrix->cols), one = 1;
    hid_t space = H5Screate_simple(1, entries > 0 ? &entries : &one, NULL);
    if (space >= 0 && entries == 0)
        H5Sselect_none(space);
    return space;
}

/* ---- rows and checksum -------------------------------------------------------------------------------------------- */
static size_t entry_bytes(const bw_matrix *matrix)
{
    return matrix->type == BW_PIECE_F64 ? 8 : 4;
}

/* The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the input touches every bit of the result. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static uint64_t entry_sum(const char *entry, size_t bytes, uint64_t place)
{
    uint64_t bits = 0;
    memcpy(&bits, entry, bytes);
    return mix(bits + mix(place + 1));
}

/* Between the piece, by columns, and `rows`, by rows; adds up the checksum on the way. */
static uint64_t turn(const bw_matrix *matrix, char *rows, bool to_rows)
{
    const bw_bcyc *layout = &matrix->layout;
    size_t bytes = entry_bytes(matrix);
    uint64_t sum = 0;
    for (int64_t r = 0; r < matrix->rows; r++) {
        uint64_t row_place = (uint64_t)bw_bcyc_global(r, layout->mb, matrix->myrow, layout->nprow) * (uint64_t)layout->n;
        for (int64_t c = 0; c < matrix->cols; c++) {
            char *own = (char *)matrix->data + (size_t)(r + c * matrix->ld) * bytes, *other = rows + (size_t)(r * matrix->cols + c) * bytes;
            memcpy(to_rows ? other : own, to_rows ? own : other, bytes);
            sum += entry_sum(other, bytes, row_place + (uint64_t)bw_bcyc_global(c, layout->nb, matrix->mycol, layout->npcol));
        }
    }
    return sum;
}

static int sum_over_grid(const bw_h5 *h5, const char *name, uint64_t *sum)
{
    BW_MPI(MPI_Allreduce(MPI_IN_PLACE, sum, 1, MPI_UINT64_T, MPI_SUM, h5->grid->comms->grid));
    *sum += bw_hash_bytes(name, strlen(name)).low;
    return BW_OK;
}

static hid_t stored_type(const bw_matrix *matrix)
{
    return matrix->type == BW_PIECE_F64 ? H5T_IEEE_F64LE : H5T_IEEE_F32LE;
}

static hid_t native_type(const bw_matrix *matrix)
{
    return matrix->type == BW_PIECE_F64 ? H5T_NATIVE_DOUBLE : H5T_NATIVE_FLOAT;
}

/* ---- transfer ----------------------------------------------------------------------------------------------------- */
static herr_t transfer(hid_t dataset, const bw_matrix *matrix, char *rows, bool writing)
{
    hid_t memory = memory_space(matrix), space = H5Dget_space(dataset), how = H5Pcreate(H5P_DATASET_XFER);
    herr_t result = -1;
    if (matrix->layout.m == 0 || matrix->layout.n == 0)
        result = 0; /* HDF5 has nothing to select, and says so with an error */
    else if (memory >= 0 && space >= 0 && how >= 0 && select_piece(space, matrix) >= 0 && H5Pset_dxpl_mpio(how, H5FD_MPIO_COLLECTIVE) >= 0)
        result = writing ? H5Dwrite(dataset, native_type(matrix), memory, space, how, rows)
                         : H5Dread(dataset, native_type(matrix), memory, space, how, rows);
    release(how);
    release(space);
    release(memory);
    return result;
}

static herr_t write_scalar(hid_t object, const char *name, hid_t stored, hid_t native, const void *value)
{
    hid_t space = H5Screate(H5S_SCALAR), attribute = H5Acreate2(object, name, stored, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t result = attribute >= 0 ? H5Awrite(attribute, native, value) : -1;
    release(attribute);
    release(space);
    return result;
}

/* Space is claimed at once and not filled: every entry is written, by its owner. */
static hid_t create_dataset(bw_h5 *h5, const char *name, const bw_matrix *matrix)
{
    hsize_t shape[] = {(hsize_t)matrix->layout.m, (hsize_t)matrix->layout.n};
    hid_t space = H5Screate_simple(2, shape, NULL), links = H5Pcreate(H5P_LINK_CREATE), how = H5Pcreate(H5P_DATASET_CREATE), dataset = -1;
    if (H5Pset_create_intermediate_group(links, 1) >= 0 && H5Pset_fill_time(how, H5D_FILL_TIME_NEVER) >= 0 &&
        H5Pset_alloc_time(how, H5D_ALLOC_TIME_EARLY) >= 0)
        dataset = H5Dcreate2(h5->file, name, stored_type(matrix), space, links, how, H5P_DEFAULT);
    release(how);
    release(links);
    release(space);
    return dataset;
}

static int check_types(const bw_matrix *matrix)
{
    BW_ASSERT(matrix->type == BW_PIECE_F32 || matrix->type == BW_PIECE_F64);
    return BW_OK;
}

int bw_h5_write_matrix(bw_h5 *h5, const char *name, const bw_matrix *matrix)
{
    hid_t dataset = -1;
    uint64_t sum = 0;
    char *rows = NULL;
    int status = check_types(matrix);
    if (status == BW_OK)
        status = (rows = bw_calloc(matrix->rows * matrix->cols, entry_bytes(matrix), "hdf5")) ? BW_OK : BW_SYSTEM;
    BW_GO(agree(h5, status));
    sum = turn(matrix, rows, true);
    BW_GO(sum_over_grid(h5, name, &sum));
    dataset = create_dataset(h5, name, matrix);
    BW_GO(agree(h5, dataset >= 0 ? BW_OK : fail_with(BW_IO, h5->path, "create dataset", name)));
    BW_GO(agree(h5, write_scalar(dataset, checksum, H5T_STD_U64LE, H5T_NATIVE_UINT64, &sum) >= 0
                        ? BW_OK
                        : fail_with(BW_IO, h5->path, "write checksum of", name)));
    BW_GO(agree(h5, transfer(dataset, matrix, rows, true) >= 0 ? BW_OK : fail_with(BW_IO, h5->path, "write dataset", name)));
done:
    release(dataset);
    bw_free(rows);
    return status;
}

/* ---- read --------------------------------------------------------------------------------------------------------- */
static int check_shape(const bw_h5 *h5, const char *name, hid_t dataset, const bw_bcyc *layout)
{
    hsize_t shape[2] = {0, 0};
    hid_t space = H5Dget_space(dataset);
    int dimensions = H5Sget_simple_extent_ndims(space);
    if (dimensions == 2)
        H5Sget_simple_extent_dims(space, shape, NULL);
    release(space);
    if (dimensions != 2)
        return bw_fail(BW_DATA, "%s: dataset %s has %d dimensions, expected 2", h5->path, name, dimensions);
    if (shape[0] != (hsize_t)layout->m || shape[1] != (hsize_t)layout->n)
        return bw_fail(BW_DATA, "%s: dataset %s is %llu x %llu, expected %lld x %lld", h5->path, name, (unsigned long long)shape[0],
                       (unsigned long long)shape[1], (long long)layout->m, (long long)layout->n);
    return BW_OK;
}

/* Only what bw_h5_write_matrix makes is read: entries in the file itself, in one run, of the type asked for. */
static int check_storage(const bw_h5 *h5, const char *name, hid_t dataset, const bw_matrix *matrix)
{
    hid_t type = H5Dget_type(dataset), how = H5Dget_create_plist(dataset);
    bool same = H5Tequal(type, stored_type(matrix)) > 0, plain = H5Pget_layout(how) == H5D_CONTIGUOUS && H5Pget_external_count(how) == 0;
    release(type);
    release(how);
    if (!same)
        return bw_fail(BW_DATA, "%s: dataset %s does not hold little-endian %zu-byte floats", h5->path, name, entry_bytes(matrix));
    return plain ? BW_OK
                 : bw_fail(BW_DATA, "%s: dataset %s is chunked, virtual or kept in another file; breakwater writes it contiguous", h5->path, name);
}

static int read_checksum(const bw_h5 *h5, const char *name, hid_t dataset, uint64_t *sum)
{
    hid_t attribute = H5Aopen(dataset, checksum, H5P_DEFAULT), space = H5Aget_space(attribute), type = H5Aget_type(attribute);
    herr_t result = -1;
    if (attribute >= 0 && H5Tget_class(type) == H5T_INTEGER && H5Sget_simple_extent_npoints(space) == 1)
        result = H5Aread(attribute, H5T_NATIVE_UINT64, sum);
    release(type);
    release(space);
    release(attribute);
    return result >= 0 ? BW_OK : fail_with(BW_DATA, h5->path, "read the checksum of dataset", name);
}

static int check_dataset(const bw_h5 *h5, const char *name, hid_t dataset, const bw_matrix *matrix, uint64_t *sum)
{
    if (dataset < 0)
        return fail_with(BW_DATA, h5->path, "open dataset", name);
    BW_TRY(check_shape(h5, name, dataset, &matrix->layout));
    BW_TRY(check_storage(h5, name, dataset, matrix));
    return read_checksum(h5, name, dataset, sum);
}

int bw_h5_read_matrix(bw_h5 *h5, const char *name, bw_matrix *matrix)
{
    hid_t dataset = -1;
    uint64_t expected = 0, sum = 0;
    char *rows = NULL;
    int status = check_types(matrix);
    if (status == BW_OK)
        status = (rows = bw_calloc(matrix->rows * matrix->cols, entry_bytes(matrix), "hdf5")) ? BW_OK : BW_SYSTEM;
    BW_GO(agree(h5, status));
    dataset = H5Dopen2(h5->file, name, H5P_DEFAULT);
    BW_GO(agree(h5, check_dataset(h5, name, dataset, matrix, &expected)));
    BW_GO(agree(h5, transfer(dataset, matrix, rows, false) >= 0 ? BW_OK : fail_with(BW_DATA, h5->path, "read dataset", name)));
    sum = turn(matrix, rows, false);
    BW_GO(sum_over_grid(h5, name, &sum));
    if (sum != expected)
        BW_GO(bw_fail(BW_DATA, "%s: dataset %s is damaged, or another one: checksum %016llx, expected %016llx", h5->path, name,
                      (unsigned long long)sum, (unsigned long long)expected));
done:
    release(dataset);
    bw_free(rows);
    return status;
}

/* H5Lexists asks about the last part of a path only, and fails where a part before it is missing. */
bool bw_h5_has(bw_h5 *h5, const char *name)
{
    char part[1024];
    size_t length = strlen(name);
    if (length >= sizeof part)
        return false;
    for (size_t i = 1; i <= length; i++) {
        if (name[i] != '/' && name[i] != '\0')
            continue;
        memcpy(part, name, i);
        part[i] = '\0';
        if (H5Lexists(h5->file, part, H5P_DEFAULT) <= 0 || H5Oexists_by_name(h5->file, part, H5P_DEFAULT) <= 0)
            return false;
    }
    return true;
}

/* ---- attributes --------------------------------------------------------------------------------------------------- */
static hid_t open_or_create_group(bw_h5 *h5, const char *group)
{
    if (strcmp(group, "/") == 0 || bw_h5_has(h5, group))
        return H5Oopen(h5->file, group, H5P_DEFAULT);
    hid_t links = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(links, 1);
    hid_t object = H5Gcreate2(h5->file, group, links, H5P_DEFAULT, H5P_DEFAULT);
    release(links);
    return object;
}

static int set_attribute(bw_h5 *h5, const char *group, const char *name, hid_t stored, hid_t native, hid_t space, const void *values)
{
    hid_t object = open_or_create_group(h5, group);
    hid_t attribute = object >= 0 && space >= 0 ? H5Acreate2(object, name, stored, space, H5P_DEFAULT, H5P_DEFAULT) : -1;
    herr_t result = attribute >= 0 ? H5Awrite(attribute, native, values) : -1;
    release(attribute);
    release(object);
    return agree(h5, result >= 0 ? BW_OK : fail_with(BW_IO, h5->path, "write attribute", name));
}

int bw_h5_set_text(bw_h5 *h5, const char *group, const char *name, const char *value)
{
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, strlen(value) + 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    int status = set_attribute(h5, group, name, type, type, space, value);
    release(space);
    release(type);
    return status;
}

int bw_h5_set_ints(bw_h5 *h5, const char *group, const char *name, const int64_t *values, int count)
{
    hsize_t length = (hsize_t)count;
    hid_t space = H5Screate_simple(1, &length, NULL);
    int status = set_attribute(h5, group, name, H5T_STD_I64LE, H5T_NATIVE_INT64, space, values);
    release(space);
    return status;
}

static hid_t open_attribute(bw_h5 *h5, const char *group, const char *name)
{
    if (strcmp(group, "/") != 0 && !bw_h5_has(h5, group))
        return -1;
    return H5Aopen_by_name(h5->file, group, name, H5P_DEFAULT, H5P_DEFAULT);
}

static int read_text(bw_h5 *h5, const char *name, hid_t attribute, hid_t type, bw_text *value)
{
    size_t size = H5Tget_size(type);
    char *bytes = NULL;
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || size == 0 || size > MOST_TEXT)
        return bw_fail(BW_DATA, "%s: attribute %s is not a text of fixed length up to %d bytes", h5->path, name, MOST_TEXT);
    BW_TRY(BW_NEW(bytes, size + 1, "hdf5"));
    int status =
        H5Aread(attribute, type, bytes) >= 0 ? bw_text_add(value, bytes, strlen(bytes)) : fail_with(BW_DATA, h5->path, "read attribute", name);
    bw_free(bytes);
    return status;
}

static int read_ints(bw_h5 *h5, const char *name, hid_t attribute, hid_t type, int64_t *values)
{
    if (H5Tget_class(type) != H5T_INTEGER)
        return bw_fail(BW_DATA, "%s: attribute %s does not hold integers", h5->path, name);
    return H5Aread(attribute, H5T_NATIVE_INT64, values) >= 0 ? BW_OK : fail_with(BW_DATA, h5->path, "read attribute", name);
}

/* Either `text` or `values` is wanted. */
static int get_attribute(bw_h5 *h5, const char *group, const char *name, bw_text *text, int64_t *values, int count)
{
    hid_t attribute = open_attribute(h5, group, name), space = -1, type = -1;
    int status;
    if (attribute < 0)
        BW_GO(bw_fail(BW_DATA, "%s: no attribute %s in %s", h5->path, name, group));
    space = H5Aget_space(attribute);
    type = H5Aget_type(attribute);
    hssize_t found = H5Sget_simple_extent_npoints(space);
    if (found != count)
        BW_GO(bw_fail(BW_DATA, "%s: attribute %s of %s has %lld entries, expected %d", h5->path, name, group, (long long)found, count));
    BW_GO(text ? read_text(h5, name, attribute, type, text) : read_ints(h5, name, attribute, type, values));
done:
    release(type);
    release(space);
    release(attribute);
    return agree(h5, status);
}

int bw_h5_get_text(bw_h5 *h5, const char *group, const char *name, bw_text *value)
{
    return get_attribute(h5, group, name, value, NULL, 1);
}

int bw_h5_get_ints(bw_h5 *h5, const char *group, const char *name, int64_t *values, int count)
{
    return get_attribute(h5, group, name, NULL, values, count);
}

const char *bw_h5_version(void)
{
    static char text[48];
    unsigned major = 0, minor = 0, patch = 0;
    H5get_libversion(&major, &minor, &patch);
    snprintf(text, sizeof text, "%u.%u.%u", major, minor, patch);
    return text;
}

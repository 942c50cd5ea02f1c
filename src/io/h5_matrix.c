/* h5_matrix.c - block-cyclic matrices as datasets.
 *
 * A block-cyclic piece is at most four regular hyperslabs of the global dataset: whole blocks and a last ragged block, in either
 * dimension. HDF5 walks their union row by row, so the piece is turned from columns to rows before it is written.
 *
 * Every dataset carries "sum64": the sum, modulo 2^64, of a mixture of each entry's bits and its place, and of a hash of its name, so that none
 * stands in another's place. A sum knows no order, so any grid can make it and any other can check it. */
#include <string.h>
#include "io/h5_inside.h"
#include "par/comms.h"

static const char checksum[] = "sum64";

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

/* Of n entries whose places follow one another. One loop for each size, so that nothing but the mixture is left in it. */
static uint64_t run_sum(const char *entries, size_t bytes, int64_t n, uint64_t place)
{
    uint64_t sum = 0;
    if (bytes == 4)
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, entries + 4 * i, sizeof bits);
            sum += mix(bits + mix(place + (uint64_t)i + 1));
        }
    else
        for (int64_t i = 0; i < n; i++) {
            uint64_t bits;
            memcpy(&bits, entries + 8 * i, sizeof bits);
            sum += mix(bits + mix(place + (uint64_t)i + 1));
        }
    return sum;
}

/* Of this rank's piece, which lies in `rows` by rows. */
static uint64_t piece_sum(const bw_matrix *matrix, const char *rows)
{
    const bw_bcyc *layout = &matrix->layout;
    size_t bytes = entry_bytes(matrix);
    uint64_t sum = 0;
    for (int64_t r = 0; r < matrix->rows; r++) {
        uint64_t row_place = (uint64_t)bw_bcyc_global(r, layout->mb, matrix->myrow, layout->nprow) * (uint64_t)layout->n;
        for (int64_t c = 0; c < matrix->cols; c += layout->nb) {
            int64_t here = matrix->cols - c < layout->nb ? matrix->cols - c : layout->nb;
            uint64_t place = row_place + (uint64_t)bw_bcyc_global(c, layout->nb, matrix->mycol, layout->npcol);
            sum += run_sum(rows + (size_t)(r * matrix->cols + c) * bytes, bytes, here, place);
        }
    }
    return sum;
}

/* Between the piece, by columns, and `rows`, by rows. */
static void turn(const bw_matrix *matrix, void *rows, bool to_rows)
{
    if (matrix->type == BW_PIECE_F32 && to_rows)
        bw_block_to_dense(rows, matrix->cols, matrix->data, BW_PIECE_F32, matrix->ld, matrix->rows, matrix->cols);
    else if (matrix->type == BW_PIECE_F32)
        bw_block_from_dense(matrix->data, BW_PIECE_F32, matrix->ld, rows, matrix->cols, matrix->rows, matrix->cols);
    else
        for (int64_t r = 0; r < matrix->rows; r++)
            for (int64_t c = 0; c < matrix->cols; c++) {
                double *own = (double *)matrix->data + r + c * matrix->ld, *other = (double *)rows + r * matrix->cols + c;
                *(to_rows ? other : own) = *(to_rows ? own : other);
            }
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
    bw_h5_release(how);
    bw_h5_release(space);
    bw_h5_release(memory);
    return result;
}

static herr_t write_scalar(hid_t object, const char *name, hid_t stored, hid_t native, const void *value)
{
    hid_t space = H5Screate(H5S_SCALAR), attribute = H5Acreate2(object, name, stored, space, H5P_DEFAULT, H5P_DEFAULT);
    herr_t result = attribute >= 0 ? H5Awrite(attribute, native, value) : -1;
    bw_h5_release(attribute);
    bw_h5_release(space);
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
    bw_h5_release(how);
    bw_h5_release(links);
    bw_h5_release(space);
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
    BW_GO(bw_h5_agree(h5, status));
    turn(matrix, rows, true);
    sum = piece_sum(matrix, rows);
    BW_GO(sum_over_grid(h5, name, &sum));
    dataset = create_dataset(h5, name, matrix);
    BW_GO(bw_h5_agree(h5, dataset >= 0 ? BW_OK : bw_h5_fail(BW_IO, h5->path, "create dataset", name)));
    BW_GO(bw_h5_agree(h5, write_scalar(dataset, checksum, H5T_STD_U64LE, H5T_NATIVE_UINT64, &sum) >= 0
                              ? BW_OK
                              : bw_h5_fail(BW_IO, h5->path, "write checksum of", name)));
    BW_GO(bw_h5_agree(h5, transfer(dataset, matrix, rows, true) >= 0 ? BW_OK : bw_h5_fail(BW_IO, h5->path, "write dataset", name)));
done:
    bw_h5_release(dataset);
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
    bw_h5_release(space);
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
    bw_h5_release(type);
    bw_h5_release(how);
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
    bw_h5_release(type);
    bw_h5_release(space);
    bw_h5_release(attribute);
    return result >= 0 ? BW_OK : bw_h5_fail(BW_DATA, h5->path, "read the checksum of dataset", name);
}

static int check_dataset(const bw_h5 *h5, const char *name, hid_t dataset, const bw_matrix *matrix, uint64_t *sum)
{
    if (dataset < 0)
        return bw_h5_fail(BW_DATA, h5->path, "open dataset", name);
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
    BW_GO(bw_h5_agree(h5, status));
    dataset = H5Dopen2(h5->file, name, H5P_DEFAULT);
    BW_GO(bw_h5_agree(h5, check_dataset(h5, name, dataset, matrix, &expected)));
    BW_GO(bw_h5_agree(h5, transfer(dataset, matrix, rows, false) >= 0 ? BW_OK : bw_h5_fail(BW_DATA, h5->path, "read dataset", name)));
    sum = piece_sum(matrix, rows);
    turn(matrix, rows, false);
    BW_GO(sum_over_grid(h5, name, &sum));
    if (sum != expected)
        BW_GO(bw_fail(BW_DATA, "%s: dataset %s is damaged, or another one: checksum %016llx, expected %016llx", h5->path, name,
                      (unsigned long long)sum, (unsigned long long)expected));
done:
    bw_h5_release(dataset);
    bw_free(rows);
    return status;
}

/* H5Lexists asks about the last part of a path only, and fails where a part before it is missing. */

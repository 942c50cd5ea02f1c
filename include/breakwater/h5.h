/* breakwater/h5.h - parallel HDF5: block-cyclic matrices as datasets of global shape. src/io/h5.c is its only caller. */
#ifndef BREAKWATER_H5_H
#define BREAKWATER_H5_H
#include "breakwater/base.h"
#include "breakwater/par.h"

/* ---- HDF5, parallel. Collective over the grid communicator of one replica unless said otherwise ------------------ */
typedef struct bw_h5 bw_h5;
/* Beside the data, so much must be free for a file to be made: it is kept for closing it, which HDF5 cannot do on a full disk. */
enum { BW_H5_RESERVE = 1 << 22 };
/* Added to the file's name: where that room is while there is a name for it. A job killed in that moment leaves it behind. */
#define BW_H5_ROOM ".room"
/* Truncates; H5F_LIBVER_V110; fails on all or none. hints: "KEY=VALUE" for MPI-IO, NULL for none. What is at least a block of the file system is
 * aligned to it, where a block is 1 MiB or more, or to the hint striping_unit. */
int bw_h5_create(bw_h5 **out, const bw_grid *grid, const char *path, const bw_list *hints);
/* Add "KEY=VALUE, ...", as MPI gives the hints of the open file back ("none" where it has none). The same on every rank. */
int bw_h5_add_hints(bw_h5 *h5, bw_text *text);
/* Give a new file the room it will need, where the file system can: BW_IO where that is not there. A full disk is met here, and not inside MPI-IO,
 * where a rank that fails alone leaves the others waiting. */
int bw_h5_claim(bw_h5 *h5, int64_t bytes);
int bw_h5_open(bw_h5 **out, const bw_grid *grid, const char *path);
int bw_h5_close(bw_h5 **h5); /* flushes; reports what close reports */
/* A block-cyclic matrix as one dataset of global shape [m][n]; groups in `name` are made as needed. dtype F32 or F64. */
int bw_h5_write_matrix(bw_h5 *h5, const char *name, const bw_matrix *matrix);
int bw_h5_read_matrix(bw_h5 *h5, const char *name, bw_matrix *matrix); /* BW_DATA when the shape differs */
bool bw_h5_has(bw_h5 *h5, const char *name);
/* Attributes of a group or the file ("/"); the same values on every rank. */
int bw_h5_set_text(bw_h5 *h5, const char *group, const char *name, const char *value);
int bw_h5_set_ints(bw_h5 *h5, const char *group, const char *name, const int64_t *values, int count);
int bw_h5_get_text(bw_h5 *h5, const char *group, const char *name, bw_text *value);
int bw_h5_get_ints(bw_h5 *h5, const char *group, const char *name, int64_t *values, int count);
const char *bw_h5_version(void);

#endif

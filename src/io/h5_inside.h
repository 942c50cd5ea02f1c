/* What the files of parallel HDF5 share: h5.c, h5_matrix.c, h5_attribute.c. */
#ifndef IO_H5_INSIDE_H
#define IO_H5_INSIDE_H
#include <hdf5.h>
#include "breakwater/h5.h"

struct bw_h5 {
    const bw_grid *grid;
    hid_t file, access; /* access: how it is opened */
    char *path;
    const bw_list *hints; /* borrowed, NULL for none; read by create only */
    hsize_t alignment;    /* of large datasets, when it is made */
    bool writes;          /* it was created, not opened */
    bool claimed;         /* of rank 0: more room than it fills may be the file's */
    int reserve;          /* of rank 0: a nameless file that keeps room on the disk, -1 elsewhere */
};

/* `what` the caller wanted of `object`, and what HDF5 says stood in the way. */
int bw_h5_fail(int status, const char *path, const char *what, const char *object);
int bw_h5_agree(const bw_h5 *h5, int status); /* collective over the grid */
/* Unless bw_h5_watch_over() comes within half a minute (ten where the file is closed and nothing is known to be wrong), this rank leaves, and with it
 * the job ends. The message is bw_error(); only one that `speaks` says it. Local. */
void bw_h5_watch_failure(bool speaks);
void bw_h5_watch_closing(const char *path, bool speaks);
void bw_h5_watch_over(void);
/* Close what is open: each HDF5 kind has its own call, H5Idec_ref does for all. */
void bw_h5_release(hid_t id);

#endif

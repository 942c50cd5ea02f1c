/* comms.h - what hides behind bw_grid.comms. For par/ and io/h5 only: nobody else sees <mpi.h>. */
#ifndef BREAKWATER_PAR_COMMS_H
#define BREAKWATER_PAR_COMMS_H
#include <mpi.h>
#include "breakwater/par.h"

typedef struct bw_comms {
    MPI_Comm world;  /* control: agreement, broadcast, collect */
    MPI_Comm gather; /* point to point only */
    MPI_Comm reduce; /* non-blocking collectives, whose order must not mix with the others' */
    MPI_Comm grid;   /* the ranks of this replica, in grid order */
    MPI_Comm node;
    int *node_of; /* [size]: node of each world rank */
    int blacs;    /* BLACS' handle for `grid`, -1 before bw_blacs_open */
} bw_comms;

/* A message never holds more than this many bytes: MPI counts are ints, and transports dislike more. */
enum { BW_MESSAGE_BYTES = 1 << 30 };

/* BW_SYSTEM with MPI's own words when `code` is an error; `call` is the source text of the call. */
int bw_mpi_check(int code, const char *call);
#define BW_MPI(call) BW_TRY(bw_mpi_check((call), #call))

int bw_agree_on(MPI_Comm comm, int status); /* bw_agree among the ranks of `comm`; collective on it */

/* MPI_INFO_NULL where there are no hints (NULL or empty); else the caller frees it. */
int bw_hints_info(const bw_list *hints, MPI_Info *info);
int bw_hints_describe(MPI_Info info, bw_text *text); /* adds "KEY=VALUE, ...", or "none" */

void bw_blacs_finish(void); /* give back what BLACS holds; no grid may be open */
#endif

/* bcyc.c - block-cyclic index arithmetic. Pure: no MPI, no allocation, nothing but integers.
 *
 *   entries of one dimension, nb = 2, 3 processes:    0 0 1 1 2 2 0 0 1 1 2 2 0
 *   block k belongs to process k mod 3 and is its block k / 3. */
#include "breakwater/par.h"

int64_t bw_bcyc_count(int64_t n, int nb, int proc, int nprocs)
{
    int64_t whole = n / nb; /* blocks that are full; block `whole` holds the n % nb left over */
    int64_t owned = whole / nprocs + (proc < whole % nprocs ? 1 : 0);
    return owned * nb + (proc == whole % nprocs ? n % nb : 0);
}

int64_t bw_bcyc_global(int64_t local, int nb, int proc, int nprocs)
{
    return (local / nb * nprocs + proc) * nb + local % nb;
}

int64_t bw_bcyc_local(int64_t global, int nb, int nprocs)
{
    return global / nb / nprocs * nb + global % nb;
}

int bw_bcyc_owner(int64_t global, int nb, int nprocs)
{
    return (int)(global / nb % nprocs);
}

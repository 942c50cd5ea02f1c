/* pieces.h - what the files of this room lend one another about pieces and their blocks. */
#ifndef BREAKWATER_PAR_PIECES_H
#define BREAKWATER_PAR_PIECES_H
#include "breakwater/par.h"

size_t bw_entry_bytes(bw_piece_type type);

/* out[r*ld + c] = block[r + c*block_ld] as fp32. */
void bw_block_to_dense(float *out, int64_t ld, const void *block, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols);

/* Visit only the blocks whose local number is `share` modulo `shares`. */
int bw_matrix_visit_share(const bw_matrix *matrix, int share, int shares, bw_block_visitor visit, void *context);
#endif

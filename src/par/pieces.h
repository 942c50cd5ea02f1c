/* pieces.h - what the files of this room lend one another about pieces and their blocks. */
#ifndef BREAKWATER_PAR_PIECES_H
#define BREAKWATER_PAR_PIECES_H
#include "breakwater/par.h"

size_t bw_entry_bytes(bw_piece_type type);

/* Visit only the blocks whose local number is `share` modulo `shares`. */
int bw_matrix_visit_share(const bw_matrix *matrix, int share, int shares, bw_block_visitor visit, void *context);
#endif

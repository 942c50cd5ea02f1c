/* blocks.c - a block of a piece, which is column-major, from and to dense rows of fp32, and to those of bf16. Tiles of sixteen by sixteen, whose
 * lines are all in L1 while they are turned, four by four in registers: entry by entry it takes four times as long. */
#include "base/half.h"
#include "base/hot.h"
#include "par/pieces.h"

enum { TILE = 16, FOUR = 4, EIGHT = 8, HALVES = 32 }; /* 16 floats or 32 halves are a cache line */

typedef float tile[TILE][TILE];
typedef float four __attribute__((vector_size(FOUR * sizeof(float))));

BW_INLINE int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

size_t bw_entry_bytes(bw_piece_type type)
{
    static const size_t bytes[] = {[BW_PIECE_F32] = 4, [BW_PIECE_F64] = 8, [BW_PIECE_BF16] = 2, [BW_PIECE_F16] = 2};
    return bytes[type];
}

/* ---- four by four --------------------------------------------------------------------------------------------------- */
BW_INLINE four load_four(const float *at)
{
    four value;
    memcpy(&value, at, sizeof value);
    return value;
}

BW_INLINE void store_four(float *at, four value)
{
    memcpy(at, &value, sizeof value);
}

BW_INLINE void turn_four(float *out, int64_t out_ld, const float *in, int64_t in_ld)
{
    const four a = load_four(in), b = load_four(in + in_ld), c = load_four(in + 2 * in_ld), d = load_four(in + 3 * in_ld);
    const four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    store_four(out, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
    store_four(out + out_ld, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
    store_four(out + 2 * out_ld, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
    store_four(out + 3 * out_ld, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
}

/* out[j][i] = in[i][j] for rows x cols of `in`, at most a tile. */
BW_INLINE void turn(float *out, int64_t out_ld, const float *in, int64_t in_ld, int64_t rows, int64_t cols)
{
    if (rows == TILE && cols == TILE) {
        for (int i = 0; i < TILE; i += FOUR)
            for (int j = 0; j < TILE; j += FOUR)
                turn_four(out + j * out_ld + i, out_ld, in + i * in_ld + j, in_ld);
        return;
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            out[j * out_ld + i] = in[i * in_ld + j];
}

/* ---- halves, eight by eight ------------------------------------------------------------------------------------------ */
typedef uint16_t eight __attribute__((vector_size(EIGHT * sizeof(uint16_t))));

#define LOW_16(a, b)  __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH_16(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define LOW_32(a, b)  __builtin_shufflevector(a, b, 0, 1, 8, 9, 2, 3, 10, 11)
#define HIGH_32(a, b) __builtin_shufflevector(a, b, 4, 5, 12, 13, 6, 7, 14, 15)
#define LOW_64(a, b)  __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define HIGH_64(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)

/* Pairs of columns of four rows. */
BW_INLINE void interleave(eight pairs[FOUR], const uint16_t *in, int64_t in_ld)
{
    eight row[FOUR];
    for (int i = 0; i < FOUR; i++)
        memcpy(&row[i], in + i * in_ld, sizeof row[i]);
    const eight low = LOW_16(row[0], row[1]), high = HIGH_16(row[0], row[1]), low2 = LOW_16(row[2], row[3]), high2 = HIGH_16(row[2], row[3]);
    pairs[0] = LOW_32(low, low2), pairs[1] = HIGH_32(low, low2), pairs[2] = LOW_32(high, high2), pairs[3] = HIGH_32(high, high2);
}

/* out[j][i] = in[i][j] */
BW_INLINE void turn_eight(uint16_t *out, int64_t out_ld, const uint16_t *in, int64_t in_ld)
{
    eight upper[FOUR], lower[FOUR];
    interleave(upper, in, in_ld);
    interleave(lower, in + FOUR * in_ld, in_ld);
    for (int j = 0; j < FOUR; j++) {
        const eight even = LOW_64(upper[j], lower[j]), odd = HIGH_64(upper[j], lower[j]);
        memcpy(out + 2 * j * out_ld, &even, sizeof even);
        memcpy(out + (2 * j + 1) * out_ld, &odd, sizeof odd);
    }
}

/* The same for rows x cols of `in`, at most eight by eight. */
BW_INLINE void turn_halves(uint16_t *out, int64_t out_ld, const uint16_t *in, int64_t in_ld, int64_t rows, int64_t cols)
{
    if (rows == EIGHT && cols == EIGHT) {
        turn_eight(out, out_ld, in, in_ld);
        return;
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            out[j * out_ld + i] = in[i * in_ld + j];
}

/* ---- a tile of a piece, to and from fp32 ---------------------------------------------------------------------------- */
/* Inlined where the extent of a whole tile is known, so that its columns are converted vector by vector. */
#define FOR_ENTRIES                                                                                                                                  \
    for (int64_t j = 0; j < cols; j++)                                                                                                               \
        for (int64_t i = 0; i < rows; i++)

BW_INLINE void read_entries(tile columns, const void *in, bw_piece_type type, int64_t ld, int64_t rows, int64_t cols)
{
    switch (type) {
    case BW_PIECE_F32:
        FOR_ENTRIES columns[j][i] = ((const float *)in)[i + j * ld];
        break;
    case BW_PIECE_F64:
        FOR_ENTRIES columns[j][i] = (float)((const double *)in)[i + j * ld];
        break;
    case BW_PIECE_BF16:
        FOR_ENTRIES columns[j][i] = bw_from_bf16(((const uint16_t *)in)[i + j * ld]);
        break;
    case BW_PIECE_F16:
        FOR_ENTRIES columns[j][i] = bw_from_f16(((const uint16_t *)in)[i + j * ld]);
        break;
    }
}

BW_INLINE void write_entries(void *out, tile columns, bw_piece_type type, int64_t ld, int64_t rows, int64_t cols)
{
    switch (type) {
    case BW_PIECE_F32:
        FOR_ENTRIES((float *)out)[i + j * ld] = columns[j][i];
        break;
    case BW_PIECE_F64:
        FOR_ENTRIES((double *)out)[i + j * ld] = (double)columns[j][i];
        break;
    case BW_PIECE_BF16:
        FOR_ENTRIES((uint16_t *)out)[i + j * ld] = bw_to_bf16(columns[j][i]);
        break;
    case BW_PIECE_F16:
        FOR_ENTRIES((uint16_t *)out)[i + j * ld] = bw_to_f16(columns[j][i]);
        break;
    }
}

/* ---- lines of a piece, to bf16 --------------------------------------------------------------------------------------- */
/* Eight lines of a block, each a column of 32 entries, rounded. */
typedef uint16_t lines[EIGHT][HALVES];

BW_INLINE void round_lines(lines rounded, const void *in, bw_piece_type type, int64_t ld, int64_t rows, int64_t cols)
{
    switch (type) {
    case BW_PIECE_F32:
        FOR_ENTRIES rounded[j][i] = bw_to_bf16(((const float *)in)[i + j * ld]);
        break;
    case BW_PIECE_F64:
        FOR_ENTRIES rounded[j][i] = bw_to_bf16((float)((const double *)in)[i + j * ld]);
        break;
    case BW_PIECE_BF16:
        FOR_ENTRIES rounded[j][i] = ((const uint16_t *)in)[i + j * ld];
        break;
    case BW_PIECE_F16:
        FOR_ENTRIES rounded[j][i] = bw_to_bf16(bw_from_f16(((const uint16_t *)in)[i + j * ld]));
        break;
    }
}

BW_INLINE void lines_to_half(uint16_t *out, int64_t ld, const void *in, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols)
{
    lines rounded;
    if (rows == HALVES && cols == EIGHT)
        round_lines(rounded, in, type, block_ld, HALVES, EIGHT);
    else
        round_lines(rounded, in, type, block_ld, rows, cols);
    for (int64_t i = 0; i < rows; i += EIGHT)
        turn_halves(out + i * ld, ld, &rounded[0][i], HALVES, cols, least(EIGHT, rows - i));
}

/* ---- blocks --------------------------------------------------------------------------------------------------------- */
BW_INLINE void tile_to_dense(float *out, int64_t ld, const char *in, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols)
{
    tile columns;
    if (type == BW_PIECE_F32) {
        turn(out, ld, (const float *)(const void *)in, block_ld, cols, rows);
        return;
    }
    if (rows == TILE && cols == TILE)
        read_entries(columns, in, type, block_ld, TILE, TILE);
    else
        read_entries(columns, in, type, block_ld, rows, cols);
    turn(out, ld, columns[0], TILE, cols, rows);
}

BW_INLINE void tile_from_dense(char *out, bw_piece_type type, int64_t block_ld, const float *in, int64_t ld, int64_t rows, int64_t cols)
{
    tile columns;
    if (type == BW_PIECE_F32) {
        turn((float *)(void *)out, block_ld, in, ld, rows, cols);
        return;
    }
    turn(columns[0], TILE, in, ld, rows, cols);
    if (rows == TILE && cols == TILE)
        write_entries(out, columns, type, block_ld, TILE, TILE);
    else
        write_entries(out, columns, type, block_ld, rows, cols);
}

BW_HOT void bw_block_to_dense(float *out, int64_t ld, const void *block, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r += TILE)
        for (int64_t c = 0; c < cols; c += TILE)
            tile_to_dense(out + r * ld + c, ld, (const char *)block + (size_t)(r + c * block_ld) * bw_entry_bytes(type), type, block_ld,
                          least(TILE, rows - r), least(TILE, cols - c));
}

BW_HOT void bw_block_to_half(uint16_t *out, int64_t ld, const void *block, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r += HALVES)
        for (int64_t c = 0; c < cols; c += EIGHT)
            lines_to_half(out + r * ld + c, ld, (const char *)block + (size_t)(r + c * block_ld) * bw_entry_bytes(type), type, block_ld,
                          least(HALVES, rows - r), least(EIGHT, cols - c));
}

BW_HOT void bw_block_from_dense(void *block, bw_piece_type type, int64_t block_ld, const float *in, int64_t ld, int64_t rows, int64_t cols)
{
    for (int64_t c = 0; c < cols; c += TILE)
        for (int64_t r = 0; r < rows; r += TILE)
            tile_from_dense((char *)block + (size_t)(r + c * block_ld) * bw_entry_bytes(type), type, block_ld, in + r * ld + c, ld,
                            least(TILE, rows - r), least(TILE, cols - c));
}

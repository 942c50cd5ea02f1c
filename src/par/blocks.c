/* blocks.c - a block of a piece, which is column-major, from and to dense rows of fp32. Tiles of sixteen by sixteen, whose lines are all in L1
 * while they are turned, four by four in registers: entry by entry it takes four times as long. */
#include "base/half.h"
#include "par/pieces.h"

enum { TILE = 16, FOUR = 4 }; /* 16 floats are a cache line */

typedef float tile[TILE][TILE];
typedef float four __attribute__((vector_size(FOUR * sizeof(float))));

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

size_t bw_entry_bytes(bw_piece_type type)
{
    static const size_t bytes[] = {[BW_PIECE_F32] = 4, [BW_PIECE_F64] = 8, [BW_PIECE_BF16] = 2, [BW_PIECE_F16] = 2};
    return bytes[type];
}

/* ---- four by four --------------------------------------------------------------------------------------------------- */
static inline four load_four(const float *at)
{
    four value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void store_four(float *at, four value)
{
    memcpy(at, &value, sizeof value);
}

static inline void turn_four(float *out, int64_t out_ld, const float *in, int64_t in_ld)
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
static void turn(float *out, int64_t out_ld, const float *in, int64_t in_ld, int64_t rows, int64_t cols)
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

/* ---- blocks --------------------------------------------------------------------------------------------------------- */
static void tile_to_dense(float *out, int64_t ld, const char *in, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols)
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

static void tile_from_dense(char *out, bw_piece_type type, int64_t block_ld, const float *in, int64_t ld, int64_t rows, int64_t cols)
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

void bw_block_to_dense(float *out, int64_t ld, const void *block, bw_piece_type type, int64_t block_ld, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r += TILE)
        for (int64_t c = 0; c < cols; c += TILE)
            tile_to_dense(out + r * ld + c, ld, (const char *)block + (size_t)(r + c * block_ld) * bw_entry_bytes(type), type, block_ld,
                          least(TILE, rows - r), least(TILE, cols - c));
}

void bw_block_from_dense(void *block, bw_piece_type type, int64_t block_ld, const float *in, int64_t ld, int64_t rows, int64_t cols)
{
    for (int64_t c = 0; c < cols; c += TILE)
        for (int64_t r = 0; r < rows; r += TILE)
            tile_from_dense((char *)block + (size_t)(r + c * block_ld) * bw_entry_bytes(type), type, block_ld, in + r * ld + c, ld,
                            least(TILE, rows - r), least(TILE, cols - c));
}

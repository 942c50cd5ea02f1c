/* test_gather.c - whatever the grid, the replicas and the nodes, gathering gives every node the whole matrix. */
#include <string.h>
#include "base/half.h"
#include "check.h"

/* Small integers, so that every type of piece holds them exactly and a copy must be equal, not near. */
static float entry(int64_t i, int64_t j, int64_t salt)
{
    return (float)((i * 37 + j * 11 + salt * 5) % 251 - 125);
}

/* From this salt on, pieces of 32 and 64 bits hold what bf16 rounds. */
enum { ROUGH = 1000 };

static float piece_entry(int64_t i, int64_t j, int64_t salt, bw_piece_type type)
{
    const bool rough = salt >= ROUGH && (type == BW_PIECE_F32 || type == BW_PIECE_F64);
    return rough ? entry(i, j, salt) * 1.007f : entry(i, j, salt);
}

static int fill(void *context, const bw_matrix *matrix, int64_t i, int64_t j, int64_t rows, int64_t cols, void *block)
{
    int64_t salt = *(int64_t *)context;
    for (int64_t c = 0; c < cols; c++)
        for (int64_t r = 0; r < rows; r++) {
            float value = piece_entry(i + r, j + c, salt, matrix->type);
            int64_t at = r + c * matrix->ld;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            if (matrix->type == BW_PIECE_F32)
                ((float *)block)[at] = value;
            else if (matrix->type == BW_PIECE_F64)
                ((double *)block)[at] = (double)value;
            else if (matrix->type == BW_PIECE_BF16)
                ((uint16_t *)block)[at] = (uint16_t)(bits >> 16); /* 8 bits of value: nothing is cut off */
        }
    return BW_OK;
}

typedef struct shape {
    int64_t m, n;
    int mb, nb;
    bw_piece_type type;
} shape;

/* Blocks that divide, that do not, that are larger than the matrix; fewer blocks than ranks; nothing at all. */
static const shape shapes[] = {{16, 16, 4, 4, BW_PIECE_F32},   {37, 19, 5, 3, BW_PIECE_F32},   {64, 1, 7, 2, BW_PIECE_BF16},
                               {3, 50, 64, 64, BW_PIECE_BF16}, {1, 1, 1, 1, BW_PIECE_F32},     {0, 5, 2, 2, BW_PIECE_F32},
                               {70, 33, 32, 32, BW_PIECE_F32}, {35, 41, 17, 20, BW_PIECE_F64}, {33, 47, 16, 16, BW_PIECE_F16},
                               {70, 33, 32, 32, BW_PIECE_F16}, {70, 33, 32, 32, BW_PIECE_F64}, {100, 45, 64, 24, BW_PIECE_BF16}};
enum { SHAPES = sizeof shapes / sizeof *shapes, PAD = 3 };

static void create(bw_matrix *matrix, const bw_grid *grid, int index, int64_t salt)
{
    const shape *s = &shapes[index];
    CHECK_OK(bw_matrix_create(matrix, grid, s->type, s->m, s->n, s->mb, s->nb, "test"));
    if (s->type != BW_PIECE_F16) {
        CHECK_OK(bw_matrix_visit(matrix, fill, &salt));
        return;
    }
    float dense[70 * 70];
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = 0; j < s->n; j++)
            dense[i * s->n + j] = entry(i, j, salt);
    bw_matrix_from_dense(matrix, dense, s->n);
}

/* Adds a number that tells its block's place, and so that it was called once for it. */
static void add_place(void *context, float *block, int64_t ld, int64_t i, int64_t j, int64_t rows, int64_t cols)
{
    float factor = *(float *)context;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            block[r * ld + c] += factor * (float)(i + r + 3 * (j + c));
}

typedef struct setting {
    bw_matrix pieces[SHAPES];
    bw_gather_item items[SHAPES];
    bw_shared slot;
    int64_t offsets[SHAPES + 1];
    float factor;
} setting;

static void open_setting(setting *setting, const bw_grid *grid, int64_t salt, bool half)
{
    setting->offsets[0] = 0;
    setting->factor = 1000;
    for (int i = 0; i < SHAPES; i++) {
        create(&setting->pieces[i], grid, i, salt + i);
        setting->offsets[i + 1] = setting->offsets[i] + shapes[i].m * (shapes[i].n + PAD);
    }
    CHECK_OK(bw_shared_create(grid, &setting->slot, setting->offsets[SHAPES] * 4, "test"));
    for (int i = 0; i < SHAPES; i++)
        setting->items[i] = (bw_gather_item){.piece = &setting->pieces[i],
                                             .dense = (float *)setting->slot.base + setting->offsets[i],
                                             .ld = shapes[i].n + PAD,
                                             .half = half,
                                             .after = i % 2 && !half ? add_place : NULL,
                                             .context = &setting->factor};
}

static void close_setting(setting *setting, const bw_grid *grid)
{
    for (int i = 0; i < SHAPES; i++)
        bw_matrix_free(&setting->pieces[i]);
    bw_shared_free(grid, &setting->slot);
}

static int64_t wrong_entries(const setting *setting, int index, int64_t salt)
{
    const shape *s = &shapes[index];
    const bw_gather_item *item = &setting->items[index];
    int64_t wrong = 0;
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = 0; j < s->n + PAD; j++) {
            float expected = j < s->n ? piece_entry(i, j, salt + index, s->type) + (item->after ? setting->factor * (float)(i + 3 * j) : 0) : 0;
            int64_t at = i * item->ld + j;
            if (item->half) /* beyond the row's end nothing is written */
                wrong += ((const uint16_t *)item->dense)[at] != bw_to_bf16(expected);
            else
                wrong += ((const float *)item->dense)[at] != expected;
        }
    return wrong;
}

static void a_gather_gives_every_node_the_whole(const bw_grid *grid)
{
    bw_gather *gather = NULL;
    CHECK_OK(bw_gather_create(&gather, grid));
    for (int64_t round = 0; round < 2; round++) { /* the second reuses what the first allocated */
        setting setting;
        open_setting(&setting, grid, round, false);
        int64_t before = bw_gather_bytes(gather);
        CHECK_OK(bw_gather_start(gather, setting.items, round == 0 ? SHAPES / 2 : SHAPES));
        CHECK_OK(bw_gather_finish(gather));
        for (int i = 0; i < (round == 0 ? SHAPES / 2 : SHAPES); i++)
            CHECK(wrong_entries(&setting, i, round) == 0);
        if (grid->nodes == 1)
            CHECK(bw_gather_bytes(gather) == before); /* nothing travels within a node */
        CHECK_OK(bw_node_sync(grid));
        close_setting(&setting, grid);
    }
    bw_gather_destroy(&gather);
}

static void a_gather_of_bf16_rounds_each_entry_once(const bw_grid *grid)
{
    bw_gather *gather = NULL;
    setting setting;
    CHECK_OK(bw_gather_create(&gather, grid));
    open_setting(&setting, grid, ROUGH, true);
    CHECK_OK(bw_gather_start(gather, setting.items, SHAPES));
    CHECK_OK(bw_gather_finish(gather));
    for (int i = 0; i < SHAPES; i++)
        CHECK(wrong_entries(&setting, i, ROUGH) == 0);
    CHECK_OK(bw_node_sync(grid));
    close_setting(&setting, grid);
    bw_gather_destroy(&gather);
}

/* What is sent must be what is received, summed over ranks, and exactly the pieces that each node lacks. */
static void only_what_a_node_lacks_travels(const bw_grid *grid)
{
    bw_gather *gather = NULL;
    bw_matrix matrix;
    bw_shared slot;
    enum { M = 24, N = 12 };
    CHECK_OK(bw_gather_create(&gather, grid));
    CHECK_OK(bw_matrix_create(&matrix, grid, BW_PIECE_F32, M, N, 1, 1, "test"));
    CHECK_OK(bw_shared_create(grid, &slot, M * N * 4, "test"));
    bw_gather_item item = {.piece = &matrix, .dense = slot.base, .ld = N};
    CHECK_OK(bw_gather_start(gather, &item, 1));
    CHECK_OK(bw_gather_finish(gather));
    int64_t held[16 * 16] = {0}, expected = 0, bytes = bw_gather_bytes(gather), positions = grid->nprow * grid->npcol;
    held[grid->node * positions + grid->rank % positions] = 1;
    CHECK_OK(bw_max_ints(grid, held, 16 * 16));
    for (int64_t i = 0; i < grid->nodes * positions; i++)
        expected += held[i] ? 0 : 2 * M * N * 4 / positions; /* 24 and 12 divide by 1, 2, 3 and 4; sent and received */
    CHECK_OK(bw_sum_ints(grid, &bytes, 1));
    CHECK(bytes == expected);
    bw_matrix_free(&matrix);
    bw_shared_free(grid, &slot);
    bw_gather_destroy(&gather);
}

static void a_dense_matrix_survives_the_way_through_pieces(const bw_grid *grid)
{
    static float dense[70 * 70], back[70 * 70];
    for (int s = 0; s < SHAPES; s++) {
        bw_matrix matrix;
        int64_t owned = 0, ld = shapes[s].n;
        CHECK_OK(bw_matrix_create(&matrix, grid, shapes[s].type, shapes[s].m, shapes[s].n, shapes[s].mb, shapes[s].nb, "test"));
        CHECK(matrix.ld >= 1 && matrix.rows * matrix.cols <= shapes[s].m * shapes[s].n);
        for (int64_t i = 0; i < shapes[s].m * ld; i++) {
            dense[i] = entry(i / ld, i % ld, s);
            back[i] = 1000;
        }
        bw_matrix_from_dense(&matrix, dense, ld);
        bw_matrix_to_dense(&matrix, back, ld);
        for (int64_t i = 0; i < shapes[s].m * ld; i++) {
            owned += back[i] != 1000;
            CHECK(back[i] == 1000 || back[i] == dense[i]);
        }
        CHECK(owned == matrix.rows * matrix.cols);
        CHECK_OK(bw_sum_ints(grid, &owned, 1));
        CHECK(owned == grid->replicas * shapes[s].m * shapes[s].n);
        bw_matrix_free(&matrix);
    }
}

/* Ties, denormals, overflow and NaN of both half types, as IEEE 754 and bfloat16 round to nearest even. */
static void halves_round_to_nearest_even(const bw_grid *grid)
{
    static const struct {
        float in, f16, bf16;
    } cases[] = {{1.0f, 1.0f, 1.0f},
                 {0x1.002p0f, 0x1p0f, 0x1p0f},
                 {0x1.006p0f, 0x1.008p0f, 0x1p0f},
                 {0x1.01p0f, 0x1.01p0f, 0x1p0f},
                 {0x1.03p0f, 0x1.03p0f, 0x1.04p0f},
                 {0x1p-24f, 0x1p-24f, 0x1p-24f},
                 {0x1p-25f, 0, 0x1p-25f},
                 {0x1.8p-25f, 0x1p-24f, 0x1.8p-25f},
                 {0x1.fffp-15f, 0x1p-14f, 0x1p-14f},
                 {-65504.0f, -65504.0f, -65536.0f},
                 {65519.0f, 65504.0f, 65536.0f},
                 {65520.0f, __builtin_inff(), 65536.0f},
                 {-1e30f, -__builtin_inff(), -0x1.94p99f}};
    int64_t count = sizeof cases / sizeof *cases;
    for (int type = BW_PIECE_BF16; type <= BW_PIECE_F16; type++)
        for (int64_t i = 0; i < count; i++) {
            bw_matrix matrix;
            float out = -1, expected = type == BW_PIECE_F16 ? cases[i].f16 : cases[i].bf16;
            CHECK_OK(bw_matrix_create(&matrix, grid, (bw_piece_type)type, 1, 1, 1, 1, "test"));
            bw_matrix_from_dense(&matrix, &cases[i].in, 1);
            bw_matrix_to_dense(&matrix, &out, 1);
            CHECK(out == (matrix.rows * matrix.cols == 1 ? expected : -1));
            bw_matrix_free(&matrix);
        }
}

/* A piece holds a half as a file does: all 65,536 patterns go in and come out, and a NaN comes out quiet. */
static void every_half_survives_a_piece(const bw_grid *grid)
{
    static float in[65536], out[65536];
    for (int type = BW_PIECE_BF16; type <= BW_PIECE_F16; type++) {
        bw_matrix matrix;
        for (uint32_t i = 0; i < 65536; i++) {
            in[i] = type == BW_PIECE_F16 ? bw_from_f16((uint16_t)i) : bw_from_bf16((uint16_t)i);
            out[i] = in[i];
        }
        CHECK_OK(bw_matrix_create(&matrix, grid, (bw_piece_type)type, 256, 256, 32, 32, "test"));
        bw_matrix_from_dense(&matrix, in, 256);
        bw_matrix_to_dense(&matrix, out, 256);
        for (uint32_t i = 0; i < 65536; i++)
            CHECK(bw_bits_of(out[i]) == bw_bits_of(in[i]) || (in[i] != in[i] && bw_bits_of(out[i]) == (bw_bits_of(in[i]) | 0x400000u)));
        bw_matrix_free(&matrix);
    }
}

static void all(const bw_grid *grid)
{
    a_dense_matrix_survives_the_way_through_pieces(grid);
    a_gather_gives_every_node_the_whole(grid);
    a_gather_of_bf16_rounds_each_entry_once(grid);
    only_what_a_node_lacks_travels(grid);
}

int main(int argc, char **argv)
{
    CHECK_OK(bw_par_start(&argc, &argv));
    check_every_grid(all);
    bw_grid *grid = NULL;
    CHECK_OK(bw_grid_create(&grid, "auto", 0, 0));
    halves_round_to_nearest_even(grid);
    every_half_survives_a_piece(grid);
    bw_grid_destroy(&grid);
    return check_finish("test_gather");
}

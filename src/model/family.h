/* model/family.h - what the rest of the room may know of a family: names of tensors, and how a spec is read. Private to model/. */
#ifndef BREAKWATER_MODEL_FAMILY_H
#define BREAKWATER_MODEL_FAMILY_H
#include "breakwater/model.h"

/* A tensor in both formats. hf and gguf are printf patterns of one int (the layer) where per_layer, plain names else. */
typedef struct bw_tensor_name {
    const char *name; /* ours: what bw_source_read_named takes */
    const char *hf, *gguf;
} bw_tensor_name;

enum { BW_LAYER_VECTORS = 2, BW_TABLES = 3 };
enum { BW_TABLE_EMBED, BW_TABLE_NORM, BW_TABLE_HEAD };

typedef struct bw_family {
    const char *name;         /* bw_spec.family */
    const char *architecture; /* config.json: architectures[0] */
    const char *model_type;   /* config.json: model_type */
    const char *gguf;         /* general.architecture, and the prefix of its keys */
    const char *activation;   /* config.json: hidden_act */
    bool gguf_permutes;       /* GGUF interleaves the two halves of every head's q and k rows */
    bool norm_add_one;
    bw_tensor_name targets[BW_TARGETS];
    bw_tensor_name vectors[BW_LAYER_VECTORS]; /* d_model each, one per layer */
    bw_tensor_name tables[BW_TABLES];         /* embedding (V x C), last norm (C), head (V x C; absent where tied) */
    const char *harmless[4];                  /* parts of names of tensors that files carry and nobody needs */
} bw_family;

/* The row that fits, or BW_DATA naming what was found and what is supported. */
int bw_family_of_config(const bw_family **out, const bw_json *config, const char *path);
int bw_family_of_gguf(const bw_family **out, const bw_tensors *gguf);

const bw_family *bw_family_named(const char *name); /* NULL: there is none */

/* Sizes and constants from config.json (and generation_config.json, which may be NULL), or from GGUF metadata. Checked: positive, sane, consistent.
 */
int bw_spec_of_config(bw_spec *spec, const bw_family *family, const bw_json *config, const bw_json *generation, const char *path);
int bw_spec_of_gguf(bw_spec *spec, const bw_family *family, const bw_tensors *gguf);
/* The shortest decimal that is this float: GGUF keeps 1e-5 as a float, config.json as a decimal, and both shall give one double. */
double bw_shortest_decimal(double value);

/* Place of a target of a layer in arrays of n_layer * BW_TARGETS. */
static inline int bw_target_at(int layer, bw_target target)
{
    return layer * BW_TARGETS + (int)target;
}
#endif

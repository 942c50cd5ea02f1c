/* model/source.h - the inside of a source, for the file that writes its configuration. Private to model/. */
#ifndef BREAKWATER_MODEL_SOURCE_H
#define BREAKWATER_MODEL_SOURCE_H
#include "model/family.h"

struct bw_source {
    char *path;
    bw_tensors *files;
    bool gguf;
    const bw_family *family;
    bw_spec spec;
    bw_dtype outline;          /* of the weights, where only config.json is there (files is NULL) */
    const bw_tensor **targets; /* [layer * BW_TARGETS + target] */
    const bw_tensor **vectors; /* [layer * BW_LAYER_VECTORS + which] */
    const bw_tensor *tables[BW_TABLES];
    void *random; /* weights that no file holds: source_random.c */
};

void bw_source_random_free(bw_source *source);

/* tokenizer.json and tokenizer_config.json of a GGUF's metadata. Local. */
int bw_source_write_tokenizer(const bw_source *source, const char *folder);
#endif

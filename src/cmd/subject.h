/* What a path is, for the commands that look at files: a model, an adapter, a safetensors file, or rows of data. */
#ifndef BREAKWATER_CMD_SUBJECT_H
#define BREAKWATER_CMD_SUBJECT_H
#include "breakwater/data.h"
#include "breakwater/model.h"

typedef struct bw_subject {
    const char *kind;    /* "model", "adapter", "safetensors file", "data file" */
    const char *path;    /* borrowed */
    bw_source *source;   /* of a model: every tensor there, none surplus, all shapes right */
    bw_tensors *tensors; /* NULL for data */
    bw_rows rows;        /* of data */
    char role[16];       /* of an adapter; "" when it does not say */
} bw_subject;

/* BW_NOINPUT when nothing is there, BW_DATA when it is nothing that we know. Local. */
int bw_subject_open(bw_subject *subject, const char *path);
void bw_subject_close(bw_subject *subject);

#endif

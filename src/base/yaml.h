/* A YAML document as numbered nodes with line numbers. yaml.c is the only file that knows libyaml. Local. */
#ifndef BREAKWATER_BASE_YAML_H
#define BREAKWATER_BASE_YAML_H
#include "breakwater/base.h"

typedef struct bw_yaml bw_yaml;
typedef enum bw_yaml_kind { BW_YAML_NULL, BW_YAML_SCALAR, BW_YAML_LIST, BW_YAML_MAPPING } bw_yaml_kind;

/* Exactly one document of at most 256 KiB. Errors are "NAME:LINE: ..." and BW_USAGE: configuration is all we read from YAML. */
int bw_yaml_open(bw_yaml **out, const char *path);
int bw_yaml_parse(bw_yaml **out, const void *bytes, size_t length, const char *name); /* `name` only for messages; copied */
void bw_yaml_close(bw_yaml **yaml);

int bw_yaml_root(const bw_yaml *yaml); /* 0: an empty document */
bw_yaml_kind bw_yaml_kind_of(const bw_yaml *yaml, int node);
int bw_yaml_line(const bw_yaml *yaml, int node);         /* counts from 1 */
const char *bw_yaml_text(const bw_yaml *yaml, int node); /* of a scalar; NULL for other nodes, and for text with a zero byte in it */
int bw_yaml_count(const bw_yaml *yaml, int node);        /* entries of a list or mapping */
int bw_yaml_item(const bw_yaml *yaml, int node, int index);
int bw_yaml_key(const bw_yaml *yaml, int node, int index);
int bw_yaml_value(const bw_yaml *yaml, int node, int index);
/* "NAME:LINE: key" of a mapping's entry, for messages; BW_USAGE when the key is not a word. */
int bw_yaml_where(const bw_yaml *yaml, int key_node, bw_text *where);
const char *bw_yaml_name(const bw_yaml *yaml);

#endif

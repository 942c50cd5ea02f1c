#include "base/yaml.h"
#include <string.h>
#include <yaml.h>

/* A configuration is small. These bound what a hostile one can cost: libyaml's time grows with the square of nested brackets. */
static const size_t largest_document = 1 << 18;
static const int most_brackets = 4000;

struct bw_yaml {
    yaml_document_t document;
    bool loaded;
    char *name;
};

static int parser_error(const yaml_parser_t *parser, const char *name)
{
    return bw_fail(BW_USAGE, "%s:%zu: not YAML: %s%s%s", name, parser->problem_mark.line + 1, parser->problem ? parser->problem : "cannot be read",
                   parser->context ? " " : "", parser->context ? parser->context : "");
}

static int refuse_second_document(yaml_parser_t *parser, const char *name)
{
    yaml_document_t next;
    if (!yaml_parser_load(parser, &next))
        return parser_error(parser, name);
    bool empty = yaml_document_get_root_node(&next) == NULL;
    size_t line = next.start_mark.line + 1;
    yaml_document_delete(&next);
    return empty ? BW_OK : bw_fail(BW_USAGE, "%s:%zu: a second document; one is expected", name, line);
}

static int check_brackets(const char *bytes, size_t length, const char *name)
{
    int brackets = 0, line = 1;
    for (size_t i = 0; i < length; i++) {
        line += bytes[i] == '\n';
        brackets += bytes[i] == '[' || bytes[i] == '{';
        if (brackets > most_brackets)
            return bw_fail(BW_USAGE, "%s:%d: more than %d opening brackets", name, line, most_brackets);
    }
    return BW_OK;
}

static int load(bw_yaml *yaml, const void *bytes, size_t length)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return bw_fail(BW_SYSTEM, "%s: out of memory", yaml->name);
    yaml_parser_set_input_string(&parser, length ? bytes : (const void *)"", length);
    int status;
    yaml->loaded = yaml_parser_load(&parser, &yaml->document);
    status = yaml->loaded ? BW_OK : parser_error(&parser, yaml->name);
    if (status == BW_OK && bw_yaml_root(yaml))
        status = refuse_second_document(&parser, yaml->name);
    yaml_parser_delete(&parser);
    return status;
}

int bw_yaml_parse(bw_yaml **out, const void *bytes, size_t length, const char *name)
{
    *out = NULL;
    if (length > largest_document)
        return bw_fail(BW_USAGE, "%s: %zu bytes are too many for a configuration (at most %zu)", name, length, largest_document);
    BW_TRY(check_brackets(bytes, length, name));
    bw_yaml *yaml;
    BW_TRY(BW_NEW(yaml, 1, "configuration"));
    int status = BW_NEW(yaml->name, strlen(name) + 1, "configuration");
    if (status == BW_OK) {
        strcpy(yaml->name, name);
        status = load(yaml, bytes, length);
    }
    if (status != BW_OK)
        bw_yaml_close(&yaml);
    *out = yaml;
    return status;
}

int bw_yaml_open(bw_yaml **out, const char *path)
{
    *out = NULL;
    bw_map map;
    BW_TRY(bw_map_open(&map, path));
    int status = bw_yaml_parse(out, map.data, map.size, path);
    bw_map_close(&map);
    return status;
}

void bw_yaml_close(bw_yaml **yaml)
{
    if (!*yaml)
        return;
    if ((*yaml)->loaded)
        yaml_document_delete(&(*yaml)->document);
    bw_free((*yaml)->name);
    bw_free(*yaml);
    *yaml = NULL;
}

/* libyaml counts nodes from 1; the root is the first. Its functions do not write, but take no const. */
static yaml_node_t *node_of(const bw_yaml *yaml, int node)
{
    return yaml_document_get_node((yaml_document_t *)&yaml->document, node);
}

int bw_yaml_root(const bw_yaml *yaml)
{
    return yaml_document_get_root_node((yaml_document_t *)&yaml->document) ? 1 : 0;
}

static bool is_null(const yaml_node_t *node)
{
    const char *text = (const char *)node->data.scalar.value;
    bool plain = node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    return plain && (!*text || !strcmp(text, "~") || !strcmp(text, "null"));
}

bw_yaml_kind bw_yaml_kind_of(const bw_yaml *yaml, int node)
{
    const yaml_node_t *found = node_of(yaml, node);
    if (!found || found->type == YAML_NO_NODE)
        return BW_YAML_NULL;
    if (found->type == YAML_SCALAR_NODE)
        return is_null(found) ? BW_YAML_NULL : BW_YAML_SCALAR;
    return found->type == YAML_SEQUENCE_NODE ? BW_YAML_LIST : BW_YAML_MAPPING;
}

int bw_yaml_line(const bw_yaml *yaml, int node)
{
    const yaml_node_t *found = node_of(yaml, node);
    return found ? (int)found->start_mark.line + 1 : 1;
}

const char *bw_yaml_text(const bw_yaml *yaml, int node)
{
    const yaml_node_t *found = node_of(yaml, node);
    if (!found || found->type != YAML_SCALAR_NODE)
        return NULL;
    const char *text = (const char *)found->data.scalar.value;
    return strlen(text) == found->data.scalar.length ? text : NULL;
}

int bw_yaml_count(const bw_yaml *yaml, int node)
{
    const yaml_node_t *found = node_of(yaml, node);
    if (found && found->type == YAML_SEQUENCE_NODE)
        return (int)(found->data.sequence.items.top - found->data.sequence.items.start);
    if (found && found->type == YAML_MAPPING_NODE)
        return (int)(found->data.mapping.pairs.top - found->data.mapping.pairs.start);
    return 0;
}

int bw_yaml_item(const bw_yaml *yaml, int node, int index)
{
    return node_of(yaml, node)->data.sequence.items.start[index];
}

int bw_yaml_key(const bw_yaml *yaml, int node, int index)
{
    return node_of(yaml, node)->data.mapping.pairs.start[index].key;
}

int bw_yaml_value(const bw_yaml *yaml, int node, int index)
{
    return node_of(yaml, node)->data.mapping.pairs.start[index].value;
}

int bw_yaml_where(const bw_yaml *yaml, int key_node, bw_text *where)
{
    const char *key = bw_yaml_text(yaml, key_node);
    where->length = 0;
    if (!key)
        return bw_fail(BW_USAGE, "%s:%d: a key must be a word", yaml->name, bw_yaml_line(yaml, key_node));
    return bw_text_addf(where, "%s:%d: %s", yaml->name, bw_yaml_line(yaml, key_node), key);
}

const char *bw_yaml_name(const bw_yaml *yaml)
{
    return yaml->name;
}

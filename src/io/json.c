/* json.c - JSON from outside, by jansson; nothing else includes jansson. A bw_json is a json_t seen from outside. */
#include "breakwater/io.h"
#include "io/utf8.h"
#include <jansson.h>
#include <math.h>
#include <string.h>

static const json_t *inside(const bw_json *value)
{
    return (const json_t *)(const void *)value;
}

static const bw_json *outside(const json_t *value)
{
    return (const bw_json *)(const void *)value;
}

/* Checked here, because jansson's own message does not say what is wrong. before: lines of the file before these bytes. */
static int check_utf8(const char *bytes, size_t length, const char *where, int64_t before)
{
    size_t good = bw_utf8_check((const uint8_t *)bytes, length);
    if (good == length)
        return BW_OK;
    int64_t line = before + 1, column = 1;
    for (size_t i = 0; i < good; i++) {
        line += bytes[i] == '\n';
        column = bytes[i] == '\n' ? 1 : column + 1;
    }
    return bw_fail(BW_DATA, "%s: line %lld, byte %lld of it: 0x%02x is not UTF-8", where, (long long)line, (long long)column, (uint8_t)bytes[good]);
}

static int parse(bw_json **out, const char *bytes, size_t length, const char *where, int64_t before)
{
    *out = NULL;
    BW_TRY(check_utf8(bytes, length, where, before));
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY;
    json_error_t error;
    json_t *root = json_loadb(length ? bytes : "", length, flags, &error);
    /* An integer beyond 64 bits is JSON, too: tokenizer_config.json has a model_max_length of 10^30 where there is no limit. */
    if (!root && json_error_code(&error) == json_error_numeric_overflow)
        root = json_loadb(bytes, length, flags | JSON_DECODE_INT_AS_REAL, &error);
    if (!root && json_error_code(&error) == json_error_out_of_memory)
        return bw_fail(BW_SYSTEM, "%s: out of memory while reading %zu bytes of JSON", where, length);
    if (!root) {
        for (char *c = error.text; *c; c++) /* it quotes the input: nothing of that may steer a terminal */
            *c = (uint8_t)*c < 0x20 || *c == 0x7f ? ' ' : *c;
        return bw_fail(BW_DATA, "%s: line %lld, column %d: this is not valid JSON: %s", where, (long long)(before + error.line), error.column,
                       error.text);
    }
    *out = (bw_json *)(void *)root;
    return BW_OK;
}

int bw_json_parse(bw_json **out, const char *bytes, size_t length, const char *where)
{
    return parse(out, bytes, length, where, 0);
}

int bw_json_parse_line(bw_json **out, const char *bytes, size_t length, const char *path, int64_t line)
{
    return parse(out, bytes, length, path, line - 1);
}

int bw_json_load(bw_json **out, const char *path)
{
    *out = NULL;
    bw_map map;
    BW_TRY(bw_map_open(&map, path));
    int status = bw_json_parse(out, (const char *)map.data, map.size, path);
    bw_map_close(&map);
    return status;
}

void bw_json_free(bw_json *root)
{
    json_decref((json_t *)(void *)root);
}

bw_json_type bw_json_kind(const bw_json *value)
{
    static const bw_json_type kinds[] = {
        [JSON_OBJECT] = BW_JSON_OBJECT, [JSON_ARRAY] = BW_JSON_ARRAY, [JSON_STRING] = BW_JSON_STRING, [JSON_INTEGER] = BW_JSON_INT,
        [JSON_REAL] = BW_JSON_REAL,     [JSON_TRUE] = BW_JSON_BOOL,   [JSON_FALSE] = BW_JSON_BOOL,    [JSON_NULL] = BW_JSON_NULL,
    };
    return value ? kinds[json_typeof(inside(value))] : BW_JSON_NULL;
}

const bw_json *bw_json_get(const bw_json *object, const char *key)
{
    return outside(json_object_get(inside(object), key));
}

int64_t bw_json_size(const bw_json *array_or_object)
{
    const json_t *value = inside(array_or_object);
    return (int64_t)(json_is_array(value) ? json_array_size(value) : json_object_size(value));
}

const bw_json *bw_json_at(const bw_json *array, int64_t index)
{
    return index < 0 ? NULL : outside(json_array_get(inside(array), (size_t)index));
}

bool bw_json_next(const bw_json *object, void **at, const char **key, const bw_json **value)
{
    if (bw_json_kind(object) != BW_JSON_OBJECT)
        return false;
    json_t *walked = (json_t *)(uintptr_t)object; /* jansson's walk takes no const, and changes nothing */
    *at = *at ? json_object_iter_next(walked, *at) : json_object_iter(walked);
    if (!*at)
        return false;
    *key = json_object_iter_key(*at);
    *value = outside(json_object_iter_value(*at));
    return true;
}

const char *bw_json_text(const bw_json *string, size_t *length)
{
    if (length)
        *length = json_string_length(inside(string));
    return json_string_value(inside(string));
}

double bw_json_number(const bw_json *value, double otherwise)
{
    return json_is_number(inside(value)) ? json_number_value(inside(value)) : otherwise;
}

int64_t bw_json_int(const bw_json *value, int64_t otherwise)
{
    if (json_is_integer(inside(value)))
        return json_integer_value(inside(value));
    double real = json_is_real(inside(value)) ? json_real_value(inside(value)) : 0.5;
    /* 2.0 is a whole number too; above 2^53 neighbours are no longer told apart */
    return real == trunc(real) && fabs(real) <= 9007199254740992.0 ? (int64_t)real : otherwise;
}

bool bw_json_true(const bw_json *value, bool otherwise)
{
    return json_is_boolean(inside(value)) ? json_is_true(inside(value)) : otherwise;
}

/* The escape of one byte below 0x80 in a JSON string, or NULL where it stands for itself. */
static const char *escape(uint8_t byte, char buffer[8])
{
    static const char *const named[] = {
        ['\b'] = "\\b", ['\t'] = "\\t", ['\n'] = "\\n", ['\f'] = "\\f", ['\r'] = "\\r", ['"'] = "\\\"", ['\\'] = "\\\\"};
    if (byte < sizeof named / sizeof *named && named[byte])
        return named[byte];
    if (byte >= 0x20 && byte != 0x7f)
        return NULL;
    snprintf(buffer, 8, "\\u%04x", byte);
    return buffer;
}

int bw_json_quote(bw_text *out, const char *bytes, size_t length)
{
    const uint8_t *text = (const uint8_t *)bytes;
    BW_TRY(bw_text_add(out, "\"", 1));
    size_t plain = 0, at = 0; /* [plain, at) is still to be copied as it is */
    while (at < length) {
        bool valid;
        char buffer[8];
        size_t step = bw_utf8_step(text + at, length - at, &valid);
        const char *instead = !valid ? "\xef\xbf\xbd" : step == 1 ? escape(text[at], buffer) : NULL;
        if (instead) {
            BW_TRY(bw_text_add(out, text + plain, at - plain));
            BW_TRY(bw_text_add(out, instead, strlen(instead)));
            plain = at + step;
        }
        at += step;
    }
    if (at > plain)
        BW_TRY(bw_text_add(out, text + plain, at - plain));
    return bw_text_add(out, "\"", 1);
}

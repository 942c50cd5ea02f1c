/* rows.c - a JSON array or JSONL file to rows of text. The file is somebody else's: every message names file and line (or
 * element of the array), what was found and what was expected. */
#include "breakwater/data.h"
#include "io/utf8.h"

#include <string.h>

typedef struct reader {
    const char *path;
    const char *unit; /* what rows are counted in: "line" or "element" */
    int64_t row;      /* the one being read, from 1 */
    bool need_output, drop;
    bw_rows *rows;
    int64_t capacity;
    char first[512]; /* what was wrong with the first row that was left out */
} reader;

enum { NAMED_ROWS = 3 }; /* bad rows that get a line of their own; the rest is counted */

static const char *const KIND_NAMES[] = {
    [BW_JSON_NULL] = "null",       [BW_JSON_BOOL] = "a boolean", [BW_JSON_INT] = "a number",     [BW_JSON_REAL] = "a number",
    [BW_JSON_STRING] = "a string", [BW_JSON_ARRAY] = "an array", [BW_JSON_OBJECT] = "an object",
};
static const char *const ROLE_NAMES[BW_ROLES] = {"system", "user", "assistant"};

static int wrong(const reader *in, const char *what, const char *detail, const char *cure)
{
    return bw_fail(BW_DATA, "%s: %s %lld: %s%s; %s", in->path, in->unit, (long long)in->row, what, detail, cure);
}

static int copy_string(const reader *in, const bw_json *value, const char *key, char **out)
{
    size_t length = 0;
    const char *text = bw_json_text(value, &length);
    if (!text)
        return bw_fail(BW_DATA, "%s: %s %lld: \"%s\" is %s; it must be a string", in->path, in->unit, (long long)in->row, key,
                       KIND_NAMES[bw_json_kind(value)]);
    if (memchr(text, 0, length))
        return bw_fail(BW_DATA, "%s: %s %lld: \"%s\" holds a NUL character (\\u0000); take it out", in->path, in->unit, (long long)in->row, key);
    BW_TRY(BW_NEW(*out, length + 1, "data rows"));
    memcpy(*out, text, length);
    return BW_OK;
}

/* ---- {"instruction", "input"?, "output"} --------------------------------------------------------------------------*/
static int read_instruction(const reader *in, const bw_json *object, bw_row *row)
{
    const bw_json *instruction = bw_json_get(object, "instruction"), *input = bw_json_get(object, "input");
    const bw_json *output = bw_json_get(object, "output");
    if (!instruction)
        return wrong(in, "there is no \"instruction\"", "", "a row is {\"instruction\", \"input\"?, \"output\"} or {\"messages\": [...]}");
    if (!output && in->need_output)
        return wrong(in, "there is no \"output\"", "", "a row to train on, or of --task, needs its answer there");
    BW_TRY(copy_string(in, instruction, "instruction", &row->instruction));
    if (input && bw_json_kind(input) != BW_JSON_NULL)
        BW_TRY(copy_string(in, input, "input", &row->input));
    return output ? copy_string(in, output, "output", &row->output) : BW_OK;
}

/* ---- {"messages": [{role, content}, ...]} -------------------------------------------------------------------------*/
static int read_role(const reader *in, const bw_json *message, bw_role *role)
{
    const char *name = bw_json_text(bw_json_get(message, "role"), NULL);
    if (!name)
        return wrong(in, "a message has no \"role\"", "", "a message is {\"role\": \"system\", \"user\" or \"assistant\", \"content\": text}");
    for (int i = 0; i < BW_ROLES; i++) {
        if (strcmp(name, ROLE_NAMES[i]) == 0) {
            *role = (bw_role)i;
            return BW_OK;
        }
    }
    return bw_fail(BW_DATA, "%s: %s %lld: a message has the role \"%.40s\"; it must be system, user or assistant", in->path, in->unit,
                   (long long)in->row, name);
}

/* One system text at most, at the front; then user and assistant in turns, the user first. */
static int check_order(const reader *in, const bw_turn *turns, int64_t at)
{
    bw_role role = turns[at].role;
    if (role == BW_ROLE_SYSTEM      ? at > 0
        : role == BW_ROLE_ASSISTANT ? at == 0 || turns[at - 1].role != BW_ROLE_USER
                                    : at > 0 && turns[at - 1].role == BW_ROLE_USER)
        return bw_fail(
            BW_DATA,
            "%s: %s %lld: message %lld has the role %s, which cannot stand there; a system message may come first, then user and assistant "
            "take turns",
            in->path, in->unit, (long long)in->row, (long long)at + 1, ROLE_NAMES[role]);
    return BW_OK;
}

static int read_turns(const reader *in, const bw_json *messages, bw_row *row)
{
    int64_t count = bw_json_size(messages);
    BW_TRY(BW_NEW(row->turns, count, "data rows"));
    for (int64_t i = 0; i < count; i++) {
        const bw_json *message = bw_json_at(messages, i), *content = bw_json_get(message, "content");
        BW_TRY(read_role(in, message, &row->turns[i].role));
        if (!content)
            return wrong(in, "a message has no \"content\"", "", "a message is {\"role\": ..., \"content\": text}");
        row->turn_count = i + 1;
        BW_TRY(copy_string(in, content, "content", &row->turns[i].text));
        BW_TRY(check_order(in, row->turns, i));
    }
    return BW_OK;
}

/* A single user turn needs no list: it is the instruction. */
static int settle_turns(bw_row *row)
{
    bw_turn *last = &row->turns[row->turn_count - 1];
    if (row->turn_count > 1) {
        size_t length = strlen(last->text);
        BW_TRY(BW_NEW(row->instruction, length + 1, "data rows"));
        memcpy(row->instruction, last->text, length);
        return BW_OK;
    }
    row->instruction = last->text;
    bw_free(row->turns);
    row->turns = NULL;
    row->turn_count = 0;
    return BW_OK;
}

static int read_messages(const reader *in, const bw_json *messages, bw_row *row)
{
    if (bw_json_kind(messages) != BW_JSON_ARRAY || bw_json_size(messages) == 0)
        return wrong(in, "\"messages\" is not a list of messages", "", "it must be [{\"role\": ..., \"content\": ...}, ...]");
    BW_TRY(read_turns(in, messages, row));
    if (row->turns[row->turn_count - 1].role == BW_ROLE_ASSISTANT)
        row->output = row->turns[--row->turn_count].text;
    else if (in->need_output)
        return wrong(in, "the last message is not the assistant's", "", "a training row must end with the answer");
    if (row->turn_count == 0 || row->turns[row->turn_count - 1].role != BW_ROLE_USER)
        return wrong(in, "there is no user message before the answer", "", "a row needs one");
    return settle_turns(row);
}

/* ---- a row, a file ------------------------------------------------------------------------------------------------*/
static int grow(reader *in)
{
    if (in->rows->count < in->capacity)
        return BW_OK;
    int64_t capacity = in->capacity ? in->capacity * 2 : 256;
    bw_row *rows;
    BW_TRY(BW_NEW(rows, capacity, "data rows"));
    if (in->rows->count)
        memcpy(rows, in->rows->rows, (size_t)in->rows->count * sizeof *rows);
    bw_free(in->rows->rows);
    in->rows->rows = rows;
    in->capacity = capacity;
    return BW_OK;
}

static int read_row(reader *in, const bw_json *object)
{
    if (bw_json_kind(object) != BW_JSON_OBJECT)
        return wrong(in, "this is ", KIND_NAMES[bw_json_kind(object)],
                     "a row is an object {\"instruction\", \"input\"?, \"output\"} or {\"messages\"}");
    if (in->row > INT32_MAX)
        return wrong(in, "too many rows", "", "a file may have 2147483647");
    BW_TRY(grow(in));
    bw_row *row = &in->rows->rows[in->rows->count++];
    *row = (bw_row){.unit = in->unit, .row = (int32_t)in->row};
    const bw_json *messages = bw_json_get(object, "messages");
    if (messages && bw_json_get(object, "instruction"))
        return wrong(in, "there is an \"instruction\" and there are \"messages\"", "", "a row has one of the two");
    return messages ? read_messages(in, messages, row) : read_instruction(in, object, row);
}

static void free_row(bw_row *row)
{
    for (int64_t i = 0; i < row->turn_count; i++)
        bw_free(row->turns[i].text);
    bw_free(row->turns);
    bw_free(row->instruction);
    bw_free(row->input);
    bw_free(row->output);
}

/* A row that cannot be used stops the reading, or is left out, named and counted. */
static int judge_row(reader *in, int64_t before, int status)
{
    if (status != BW_DATA || !in->drop)
        return status;
    while (in->rows->count > before)
        free_row(&in->rows->rows[--in->rows->count]);
    if (in->rows->dropped == 0)
        snprintf(in->first, sizeof in->first, "%s", bw_error());
    if (in->rows->dropped++ < NAMED_ROWS)
        bw_warn("%s (the row is left out)", bw_error());
    bw_error_clear();
    return BW_OK;
}

/* first_line: of these bytes in the file. */
static int check_utf8(const char *path, const char *bytes, size_t length, int64_t first_line)
{
    size_t good = bw_utf8_check((const uint8_t *)bytes, length);
    if (good == length)
        return BW_OK;
    int64_t line = first_line;
    size_t start = 0; /* of that line */
    for (size_t i = 0; i < good; i++)
        if (bytes[i] == '\n') {
            line++;
            start = i + 1;
        }
    return bw_fail(BW_DATA, "%s: line %lld: not UTF-8: byte 0x%02X at offset %zu of the line; save the file as UTF-8", path, (long long)line,
                   (uint8_t)bytes[good], good - start);
}

static int read_array(reader *in, const char *bytes, size_t length)
{
    bw_json *root = NULL;
    BW_TRY(check_utf8(in->path, bytes, length, 1));
    BW_TRY(bw_json_parse(&root, bytes, length, in->path));
    int status = BW_OK;
    in->unit = "element";
    for (int64_t i = 0; i < bw_json_size(root) && status == BW_OK; i++) {
        in->row = i + 1;
        int64_t before = in->rows->count;
        status = judge_row(in, before, read_row(in, bw_json_at(root, i)));
    }
    bw_json_free(root);
    return status;
}

static bool blank(const char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (!memchr(" \t\r\n", bytes[i], 4))
            return false;
    return true;
}

/* As lines of JSON that was printed for people end. */
static bool is_open(const char *line, size_t length)
{
    while (length > 0 && blank(line + length - 1, 1))
        length--;
    return length > 0 && memchr("{[,:", line[length - 1], 4);
}

static int read_line(reader *in, const char *line, size_t length)
{
    bw_json *root = NULL;
    BW_TRY(check_utf8(in->path, line, length, in->row));
    if (is_open(line, length))
        return wrong(in, "the line ends in the middle of its JSON", "", "write each row on one line, or all of them as one array [{...}, ...]");
    BW_TRY(bw_json_parse_line(&root, line, length, in->path, in->row));
    int status = read_row(in, root);
    bw_json_free(root);
    return status;
}

static int read_lines(reader *in, const char *bytes, size_t length)
{
    in->unit = "line";
    for (size_t at = 0; at < length;) {
        const char *end = memchr(bytes + at, '\n', length - at);
        size_t size = end ? (size_t)(end - bytes) - at : length - at;
        in->row++;
        int64_t before = in->rows->count;
        if (!blank(bytes + at, size))
            BW_TRY(judge_row(in, before, read_line(in, bytes + at, size)));
        at += size + 1;
    }
    return BW_OK;
}

/* What a file is that is no text, by its first bytes; NULL: it may be rows. */
static const char *binary_kind(const char *bytes, size_t length)
{
    static const char *const kinds[][2] = {
        {"GGUF", "a model in GGUF"},     {"PAR1", "a Parquet file"},  {"\x89HDF", "an HDF5 file"},
        {"PK\x03\x04", "a zip archive"}, {"\x1F\x8B", "a gzip file"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (length >= strlen(kinds[i][0]) && memcmp(bytes, kinds[i][0], strlen(kinds[i][0])) == 0)
            return kinds[i][1];
    return memchr(bytes, 0, length < 512 ? length : 512) ? "no text: it holds zero bytes" : NULL;
}

static int check_bytes(const char *path, const char *bytes, size_t length)
{
    if (blank(bytes, length))
        return bw_fail(BW_DATA, "%s: the file is empty; expected a JSON array of rows, or one JSON object a line", path);
    const char *kind = binary_kind(bytes, length);
    if (kind)
        return bw_fail(BW_DATA, "%s: this is %s; expected a JSON array of rows, or one JSON object a line", path, kind);
    if (length >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0)
        return bw_fail(BW_DATA, "%s: line 1: the file begins with a byte order mark (EF BB BF); save it as UTF-8 without one", path);
    return BW_OK;
}

static int read_bytes(reader *in, const char *bytes, size_t length)
{
    BW_TRY(check_bytes(in->path, bytes, length));
    size_t first = strspn(bytes, " \t\r\n"); /* a byte that is not blank is there: strspn stops before the end */
    BW_TRY(bytes[first] == '[' ? read_array(in, bytes, length) : read_lines(in, bytes, length));
    if (in->rows->count == 0 && in->rows->dropped > 0)
        return bw_fail(BW_DATA, "%s: none of its %lld rows can be used; the first: %s", in->path, (long long)in->rows->dropped, in->first);
    if (in->rows->dropped > 0)
        bw_warn("%s: %lld rows cannot be used and are left out", in->path, (long long)in->rows->dropped);
    if (in->rows->count == 0)
        return bw_fail(BW_DATA, "%s: the array has no elements; expected rows of {\"instruction\", \"input\"?, \"output\"}", in->path);
    return BW_OK;
}

int bw_rows_load(bw_rows *rows, const char *path, bool need_output, bool drop)
{
    *rows = (bw_rows){0};
    reader in = {.path = path, .need_output = need_output, .drop = drop, .rows = rows};
    bw_map map;
    BW_TRY(bw_map_open(&map, path));
    int status = read_bytes(&in, (const char *)map.data, map.size);
    rows->fingerprint = bw_hash_bytes(map.data, map.size);
    bw_map_close(&map);
    if (status != BW_OK)
        bw_rows_free(rows);
    return status;
}

void bw_rows_free(bw_rows *rows)
{
    for (int64_t i = 0; i < rows->count; i++)
        free_row(&rows->rows[i]);
    bw_free(rows->rows);
    *rows = (bw_rows){0};
}

int bw_row_prompt(const bw_row *row, bw_template which, const char *path, bw_text *out)
{
    if (!row->turns)
        return bw_template_prompt(which, row->instruction, row->input, out);
    if (!bw_template_chats(which))
        return bw_fail(BW_DATA, "%s: %s %d: the template %s has no place for %s; use chatml, llama3 or gemma, or one user message and its answer",
                       path, row->unit, row->row, bw_template_name(which),
                       row->turns[0].role == BW_ROLE_SYSTEM ? "a system message" : "earlier turns");
    return bw_template_turns(which, row->turns, row->turn_count, out);
}

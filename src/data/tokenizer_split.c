/* tokenizer_split.c - a text to words, by the pre-tokeniser's regular expressions. They were written for Oniguruma; PCRE2 runs
 * them, after the classes whose members differ between the two (and between Unicode versions) have been written out. */
#include "data/tokenizer_parts.h"

#include <string.h>

const char BW_PATTERN_GPT2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Letters and numbers since Unicode 14, which PCRE2 10.42 knows, up to 16, which the `tokenizers` library knows. A later PCRE2
 * knows them too, and then they say nothing new. */
#define LETTERS                                                                                                                                      \
    "\\p{L}"                                                                                                                                         \
    "\\x{1C89}-\\x{1C8A}\\x{A7CB}-\\x{A7CD}\\x{A7DA}-\\x{A7DC}\\x{105C0}-\\x{105F3}\\x{10D4A}-\\x{10D65}"                                            \
    "\\x{10D6F}-\\x{10D85}\\x{10EC2}-\\x{10EC4}\\x{1123F}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138B}"                                                 \
    "\\x{1138E}\\x{11390}-\\x{113B5}\\x{113B7}\\x{113D1}\\x{113D3}\\x{11BC0}-\\x{11BE0}\\x{11F02}"                                                   \
    "\\x{11F04}-\\x{11F10}\\x{11F12}-\\x{11F33}\\x{1342F}\\x{13441}-\\x{13446}\\x{13460}-\\x{143FA}"                                                 \
    "\\x{16100}-\\x{1611D}\\x{16D40}-\\x{16D6C}\\x{18CFF}\\x{1B132}\\x{1B155}\\x{1DF25}-\\x{1DF2A}"                                                  \
    "\\x{1E030}-\\x{1E06D}\\x{1E4D0}-\\x{1E4EB}\\x{1E5D0}-\\x{1E5ED}\\x{1E5F0}\\x{2B739}\\x{2EBF0}-"                                                 \
    "\\x{2EE5D}\\x{31350}-\\x{323AF}"
#define NUMBERS                                                                                                                                      \
    "\\p{N}"                                                                                                                                         \
    "\\x{10D40}-\\x{10D49}\\x{116D0}-\\x{116E3}\\x{11BF0}-\\x{11BF9}\\x{11F50}-\\x{11F59}\\x{16130}-"                                                \
    "\\x{16139}\\x{16D70}-\\x{16D79}\\x{1CCF0}-\\x{1CCF9}\\x{1D2C0}-\\x{1D2D3}\\x{1E4F0}-\\x{1E4F9}"                                                 \
    "\\x{1E5F1}-\\x{1E5FA}"
/* White space without U+180E, which PCRE2 counts in; and all that is not white space. */
#define SPACES                                                                                                                                       \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}-\\x{2029}\\x{202F}\\x{205F}"                                            \
    "\\x{3000}"
#define NOT_SPACES                                                                                                                                   \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"                                                  \
    "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{D7FF}"                                                \
    "\\x{E000}-\\x{10FFFF}"
/* Digits are what Rust calls numeric: Unicode 17. */
#define NEWER_DIGITS "\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}"

const char BW_PATTERN_DIGIT[] = "[" NUMBERS NEWER_DIGITS "]";
const char BW_PATTERN_DIGITS[] = "[" NUMBERS NEWER_DIGITS "]+";

/* ---- Oniguruma's pattern to PCRE2's -------------------------------------------------------------------------------*/
typedef struct class_row {
    const char *name, *members;
} class_row;
static const class_row CLASSES[] = {{"\\p{L}", LETTERS}, {"\\p{N}", NUMBERS}, {"\\s", SPACES}, {"\\S", NOT_SPACES}};

static const class_row *find_class(const char *at)
{
    for (size_t i = 0; i < sizeof CLASSES / sizeof CLASSES[0]; i++)
        if (strncmp(at, CLASSES[i].name, strlen(CLASSES[i].name)) == 0)
            return &CLASSES[i];
    return NULL;
}

/* What the two engines read differently, and no known tokenizer uses: refused rather than misread. */
static const char *misread(const char *at, bool in_class)
{
    static const char *const anywhere[] = {"\\h", "\\H", "\\R", "\\X", "\\K", "\\Q", "\\E", "\\g", "\\G", "\\N", "\\O", "\\c", "\\C"};
    for (size_t i = 0; i < sizeof anywhere / sizeof anywhere[0]; i++)
        if (strncmp(at, anywhere[i], 2) == 0)
            return anywhere[i];
    if (in_class)
        return *at == '[' ? "[ inside [ ]" : strncmp(at, "&&", 2) == 0 ? "&&" : NULL;
    return strncmp(at, "}+", 2) == 0 ? "}+" : strncmp(at, "(*", 2) == 0 ? "(*" : NULL;
}

static int add_class(bw_text *out, const class_row *row, bool in_class)
{
    return bw_text_addf(out, in_class ? "%s" : "[%s]", row->members);
}

/* An escape stays in one piece, with the name in its braces. */
static size_t element_length(const char *at)
{
    if (*at != '\\' || !at[1])
        return 1;
    const char *close = strchr("pPx", at[1]) && at[2] == '{' ? strchr(at, '}') : NULL;
    return close ? (size_t)(close - at) + 1 : 2;
}

/* One element of the pattern; its length there comes back in *step. */
static int translate_element(const char *at, bool *in_class, bw_text *out, size_t *step, const char *where)
{
    const class_row *row = find_class(at);
    const char *trouble = misread(at, *in_class);
    if (trouble)
        return bw_fail(BW_DATA, "%s: the pre-tokeniser's pattern uses %s, which this program does not read", where, trouble);
    if (row) {
        *step = strlen(row->name);
        return add_class(out, row, *in_class);
    }
    *step = element_length(at);
    if (*at == '[' || *at == ']')
        *in_class = *at == '[';
    return bw_text_add(out, at, *step);
}

static int translate(const char *pattern, bw_text *out, const char *where)
{
    bool in_class = false;
    for (size_t step = 0; *pattern; pattern += step)
        BW_TRY(translate_element(pattern, &in_class, out, &step, where));
    return BW_OK;
}

static int compile(bw_split *split, const bw_text *pattern, const char *where)
{
    int error = 0;
    PCRE2_SIZE at = 0;
    /* In Oniguruma's syntax ^ and $ hold at every line. */
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    split->code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->length, options, &error, &at, NULL);
    if (!split->code) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(error, text, sizeof text);
        return bw_fail(BW_DATA, "%s: the pre-tokeniser's pattern does not compile: %s", where, (char *)text);
    }
    pcre2_jit_compile(split->code, PCRE2_JIT_COMPLETE); /* where there is no JIT the interpreter matches, only slower */
    return BW_OK;
}

int bw_split_compile(bw_split *split, const char *pattern, const char *where)
{
    bw_text translated = {0};
    int status;
    *split = (bw_split){0};
    if (!pattern[0])
        return bw_fail(BW_DATA, "%s: the pre-tokeniser's pattern is empty", where);
    BW_GO(translate(pattern, &translated, where));
    BW_GO(compile(split, &translated, where));
done:
    bw_text_free(&translated);
    return status;
}

void bw_split_free(bw_split *split)
{
    pcre2_code_free(split->code);
    split->code = NULL;
}

/* ---- splitting ----------------------------------------------------------------------------------------------------*/
/* The next match from `from` on; *found is false at the end. JIT's own stack is small: what exceeds it is matched without. */
static int next_match(bw_coder *coder, int step, const char *piece, size_t length, size_t from, bool *found, size_t *begin, size_t *end)
{
    const pcre2_code *code = coder->tokenizer->steps[step].code;
    pcre2_match_data *match = coder->matches[step];
    int result = pcre2_match(code, (PCRE2_SPTR)piece, length, from, PCRE2_NO_UTF_CHECK, match, NULL);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT)
        result = pcre2_match(code, (PCRE2_SPTR)piece, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, NULL);
    *found = result >= 0;
    if (result == PCRE2_ERROR_NOMATCH)
        return BW_OK;
    if (result < 0)
        return bw_fail(BW_DATA, "%s: the pre-tokeniser's pattern gives up on a text of %zu bytes (PCRE2 error %d); its pattern is too costly",
                       coder->tokenizer->path, length, result);
    *begin = pcre2_get_ovector_pointer(match)[0];
    *end = pcre2_get_ovector_pointer(match)[1];
    return BW_OK;
}

/* Cut around every match; what lies between two matches is a piece too. */
static int cut_around(bw_coder *coder, int step, const char *piece, size_t length)
{
    size_t done = 0, from = 0, begin = 0, end = 0;
    while (from < length) {
        bool found = false;
        BW_TRY(next_match(coder, step, piece, length, from, &found, &begin, &end));
        if (!found)
            break;
        from = end;
        if (begin == end) { /* an empty match cuts nothing: go on behind the next character */
            for (from++; from < length && ((uint8_t)piece[from] & 0xC0) == 0x80; from++)
                ;
            continue;
        }
        BW_TRY(bw_encode_piece(coder, step + 1, piece + done, begin - done));
        BW_TRY(bw_encode_piece(coder, step + 1, piece + begin, end - begin));
        done = end;
    }
    return bw_encode_piece(coder, step + 1, piece + done, length - done);
}

static int with_space(bw_coder *coder, int step, const char *piece, size_t length)
{
    if (piece[0] == ' ')
        return bw_encode_piece(coder, step + 1, piece, length);
    bw_text *text = &coder->prefixed[step];
    text->length = 0;
    BW_TRY(bw_text_add(text, " ", 1));
    BW_TRY(bw_text_add(text, piece, length));
    return bw_encode_piece(coder, step + 1, text->data, text->length);
}

int bw_encode_piece(bw_coder *coder, int step, const char *piece, size_t length)
{
    const bw_tokenizer *tokenizer = coder->tokenizer;
    if (length == 0)
        return BW_OK;
    if (step == tokenizer->step_count)
        return bw_encode_word(coder, piece, length);
    return (tokenizer->steps[step].code ? cut_around : with_space)(coder, step, piece, length);
}

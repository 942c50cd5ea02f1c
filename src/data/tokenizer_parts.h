/* tokenizer_parts.h - what the tokenizer is made of. The way of a text: added tokens cut out -> normalised -> split into words
 * by the steps -> each word's bytes merged by rank (BPE) -> ids. */
#ifndef BW_DATA_TOKENIZER_PARTS_H
#define BW_DATA_TOKENIZER_PARTS_H
#include "breakwater/data.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { BW_MAX_STEPS = 8, BW_MAX_TOKENS = 1 << 24 };

/* ---- tokenizer_vocab.c: text <-> id, and pairs of ids -> the id they merge to -------------------------------------- */
typedef struct bw_vocab {
    bw_text bytes;    /* of all tokens, one after the other */
    size_t *starts;   /* by id */
    int32_t *lengths; /* by id; -1: no such token */
    int32_t limit;    /* ids are below it */
    int32_t *slots;   /* open addressing: id or -1 */
    uint64_t mask;
} bw_vocab;
int bw_vocab_create(bw_vocab *vocab, int32_t limit);
void bw_vocab_free(bw_vocab *vocab);
int bw_vocab_add(bw_vocab *vocab, int32_t id, const char *text, size_t length, const char *where); /* BW_DATA: id or text taken */
int32_t bw_vocab_find(const bw_vocab *vocab, const char *text, size_t length);                     /* -1: none */
const char *bw_vocab_text(const bw_vocab *vocab, int32_t id, size_t *length);                      /* NULL: none; not terminated */

typedef struct bw_merge {
    uint64_t pair;
    int32_t rank, id;
} bw_merge;
typedef struct bw_merges {
    bw_merge *slots; /* open addressing; rank -1: empty */
    uint64_t mask;
} bw_merges;
int bw_merges_create(bw_merges *merges, int64_t count);
void bw_merges_free(bw_merges *merges);
void bw_merges_add(bw_merges *merges, int32_t left, int32_t right, int32_t rank, int32_t id); /* a pair named again: the later rank */
const bw_merge *bw_merges_find(const bw_merges *merges, int32_t left, int32_t right);         /* NULL: the two do not merge */
/* "left right" by their texts; both, and what they make, must be tokens. */
int bw_merges_add_text(bw_merges *merges, const bw_vocab *vocab, int32_t rank, const char *left, size_t left_length, const char *right,
                       size_t right_length, const char *where);

/* ---- tokenizer_split.c: a text to words ---------------------------------------------------------------------------- */
typedef struct bw_split {
    pcre2_code *code; /* cut around every match; NULL: put a space before a piece that does not begin with one */
} bw_split;
extern const char BW_PATTERN_GPT2[], BW_PATTERN_DIGIT[], BW_PATTERN_DIGITS[];
int bw_split_compile(bw_split *step, const char *pattern, const char *where); /* pattern as Oniguruma reads it */
void bw_split_free(bw_split *step);

/* ---- tokenizer_bytes.c: the byte-level alphabet. GPT-2 writes every byte as a printable character: tokens are text ---- */
typedef struct bw_alphabet {
    char symbols[256][2]; /* UTF-8 of the byte's character: one or two bytes */
    uint8_t sizes[256];
    int16_t bytes[0x144]; /* character -> byte, or -1 */
} bw_alphabet;
void bw_alphabet_create(bw_alphabet *alphabet);
/* The bytes that a token stands for, appended; a token of other characters stands for itself. */
int bw_alphabet_bytes(const bw_alphabet *alphabet, const char *token, size_t length, bw_text *out);
/* Appends, with U+FFFD for every ill-formed sequence. */
int bw_add_lossy(bw_text *out, const char *bytes, size_t length);

/* ---- the tokenizer ------------------------------------------------------------------------------------------------- */
typedef struct bw_added { /* a token that is recognised in text as a whole */
    char *text;
    size_t length;
    int32_t id;
    bool special, normalized; /* normalized: looked for after normalisation */
} bw_added;

struct bw_tokenizer {
    char *path;
    bw_alphabet alphabet;
    bw_vocab vocab;
    bw_merges merges;
    int32_t byte_ids[256]; /* the token of one byte; -1: the vocabulary lacks it */
    int32_t unknown;       /* stands for a byte that is lacking; -1: such bytes vanish, as they do in Hugging Face */
    bool fuse_unknown;     /* one for a run of them */
    bool ignore_merges;    /* a word that is a token is that token, whatever the merges say */
    bool nfc;
    bw_added *added; /* longest first */
    int64_t added_count;
    bool added_begins[2][256]; /* [normalized][first byte] */
    bool *special;             /* by id */
    bw_split steps[BW_MAX_STEPS];
    int step_count;
    bw_tokens prefix, suffix; /* what the post-processor adds */
    int32_t eos;
    char *eos_text;
};
int bw_tokenizer_new(bw_tokenizer **out, const char *path);
int bw_tokenizer_add_step(bw_tokenizer *tokenizer, const char *pattern); /* NULL: the prefix space */
int bw_tokenizer_reserve_added(bw_tokenizer *tokenizer, int64_t count);
/* The token at `id` of the vocabulary is recognised in text from now on. */
int bw_tokenizer_add_added(bw_tokenizer *tokenizer, int32_t id, bool special, bool normalized);
/* Last, when all is in: byte tokens, order of the added tokens, eos (-1: none). */
int bw_tokenizer_finish(bw_tokenizer *tokenizer, int32_t eos);
int bw_normalize(const bw_tokenizer *tokenizer, const char *text, size_t length, bw_text *out); /* appends */

/* ---- tokenizer_bpe.c: a word to ids -------------------------------------------------------------------------------- */
typedef struct bw_symbol {
    int32_t id, before, after;
} bw_symbol; /* a doubly linked list in an array; id -1: merged away */
typedef struct bw_candidate {
    int32_t rank, at, id;
} bw_candidate;           /* symbols `at` and after it could merge to `id` */
typedef struct bw_coder { /* work space of one encode */
    const bw_tokenizer *tokenizer;
    bw_tokens *out;
    bw_symbol *symbols;
    bw_candidate *heap;
    int64_t capacity, heap_count;
    bw_text word;
    bw_text prefixed[BW_MAX_STEPS];
    pcre2_match_data *matches[BW_MAX_STEPS];
} bw_coder;
int bw_encode_word(bw_coder *coder, const char *word, size_t length);
int bw_encode_piece(bw_coder *coder, int step, const char *piece, size_t length); /* tokenizer_split.c: steps from `step` on, then words */
#endif

/* template.c - prompt texts. A template is a row of the table; only alpaca, which words its prompt by what there is, needs code. */
#include "breakwater/data.h"

#include <string.h>

typedef struct template_row {
    const char *name;
    const char *open[BW_ROLES]; /* what opens a turn of that role; NULL: the template has no turns */
    const char *close;          /* what closes a turn */
    const char *end;            /* what closes an answer in training; NULL: the tokenizer's eos */
    const char *mark;           /* what only its turns open with; NULL: no model's chat template is this */
} template_row;

static const template_row TEMPLATES[] = {
    [BW_TEMPLATE_ALPACA] = {.name = "alpaca"},
    [BW_TEMPLATE_CHATML] = {.name = "chatml",
                            .open = {"<|im_start|>system\n", "<|im_start|>user\n", "<|im_start|>assistant\n"},
                            .close = "<|im_end|>\n",
                            .end = "<|im_end|>",
                            .mark = "<|im_start|>"},
    [BW_TEMPLATE_LLAMA3] = {.name = "llama3",
                            .open = {"<|start_header_id|>system<|end_header_id|>\n\n", "<|start_header_id|>user<|end_header_id|>\n\n",
                                     "<|start_header_id|>assistant<|end_header_id|>\n\n"},
                            .close = "<|eot_id|>",
                            .end = "<|eot_id|>",
                            .mark = "<|start_header_id|>"},
    [BW_TEMPLATE_GEMMA] = {.name = "gemma",
                           .open = {NULL, "<start_of_turn>user\n", "<start_of_turn>model\n"},
                           .close = "<end_of_turn>\n",
                           .end = "<end_of_turn>",
                           .mark = "<start_of_turn>"},
    [BW_TEMPLATE_PLAIN] = {.name = "plain"},
};
enum { TEMPLATE_COUNT = sizeof TEMPLATES / sizeof TEMPLATES[0] };

static const char ALPACA_ALONE[] = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
                                   "### Instruction:\n%s\n\n### Response:\n";
static const char ALPACA_INPUT[] =
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n";

int bw_template_find(const char *name, bw_template *out)
{
    const char *names[TEMPLATE_COUNT];
    for (int i = 0; i < TEMPLATE_COUNT; i++) {
        names[i] = TEMPLATES[i].name;
        if (strcmp(name, names[i]) == 0) {
            *out = (bw_template)i;
            return BW_OK;
        }
    }
    const char *near = bw_nearest(name, names, TEMPLATE_COUNT);
    return bw_fail(BW_USAGE, "there is no prompt template '%s'%s%s%s; the templates are alpaca, chatml, llama3, gemma and plain", name,
                   near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
}

const char *bw_template_recognise(const char *text)
{
    for (int i = 0; i < TEMPLATE_COUNT; i++)
        if (TEMPLATES[i].mark && strstr(text, TEMPLATES[i].mark))
            return TEMPLATES[i].name;
    return NULL;
}

const char *bw_template_name(bw_template which)
{
    return TEMPLATES[which].name;
}

const char *bw_template_end(bw_template which)
{
    return TEMPLATES[which].end;
}

bool bw_template_chats(bw_template which)
{
    return TEMPLATES[which].open[BW_ROLE_USER] != NULL;
}

static int add_string(bw_text *out, const char *string)
{
    return bw_text_add(out, string, strlen(string));
}

/* Instruction, then a blank line and the input if there is one: a user turn, and all of the plain template. */
static int add_request(bw_text *out, const char *instruction, const char *input)
{
    BW_TRY(add_string(out, instruction));
    if (!input || !input[0])
        return BW_OK;
    BW_TRY(add_string(out, "\n\n"));
    return add_string(out, input);
}

int bw_template_prompt(bw_template which, const char *instruction, const char *input, bw_text *out)
{
    const template_row *row = &TEMPLATES[which];
    bool has_input = input && input[0];
    if (which == BW_TEMPLATE_ALPACA)
        return has_input ? bw_text_addf(out, ALPACA_INPUT, instruction, input) : bw_text_addf(out, ALPACA_ALONE, instruction);
    if (which == BW_TEMPLATE_PLAIN) {
        BW_TRY(add_request(out, instruction, input));
        return add_string(out, "\n");
    }
    BW_TRY(add_string(out, row->open[BW_ROLE_USER]));
    BW_TRY(add_request(out, instruction, input));
    BW_TRY(add_string(out, row->close));
    return add_string(out, row->open[BW_ROLE_ASSISTANT]);
}

int bw_template_turns(bw_template which, const bw_turn *turns, int64_t count, bw_text *out)
{
    const template_row *row = &TEMPLATES[which];
    BW_ASSERT(bw_template_chats(which) && count > 0 && turns[count - 1].role == BW_ROLE_USER);
    bool open = false; /* a system text without a turn of its own has opened the user turn already */
    for (int64_t i = 0; i < count; i++) {
        bool joins = !row->open[turns[i].role];
        if (!open)
            BW_TRY(add_string(out, row->open[joins ? BW_ROLE_USER : turns[i].role]));
        BW_TRY(add_string(out, turns[i].text));
        BW_TRY(add_string(out, joins ? "\n\n" : row->close));
        open = joins;
    }
    return add_string(out, row->open[BW_ROLE_ASSISTANT]);
}

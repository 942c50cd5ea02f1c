/* Prompt texts are part of what a model has learned: every byte counts. */
#include "byte_tokenizer.h"

static void check_prompt(bw_template which, const char *instruction, const char *input, const char *expected)
{
    bw_text out = {0};
    assert_int_equal(bw_template_prompt(which, instruction, input, &out), BW_OK);
    assert_string_equal(out.data, expected);
    bw_text_free(&out);
}

static void prompts_are_what_the_models_were_trained_on(void **state)
{
    (void)state;
    check_prompt(BW_TEMPLATE_ALPACA, "Add.", NULL,
                 "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
                 "### Instruction:\nAdd.\n\n### Response:\n");
    check_prompt(BW_TEMPLATE_ALPACA, "Add.", "1 2",
                 "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
                 "appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n");
    check_prompt(BW_TEMPLATE_CHATML, "Hi", "", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    check_prompt(BW_TEMPLATE_CHATML, "Hi", "there", "<|im_start|>user\nHi\n\nthere<|im_end|>\n<|im_start|>assistant\n");
    check_prompt(BW_TEMPLATE_LLAMA3, "Hi", NULL,
                 "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n");
    check_prompt(BW_TEMPLATE_GEMMA, "Hi", NULL, "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n");
    check_prompt(BW_TEMPLATE_PLAIN, "Q %s", NULL, "Q %s\n");
    check_prompt(BW_TEMPLATE_PLAIN, "Q", "ctx", "Q\n\nctx\n");
}

static void an_empty_input_is_no_input(void **state)
{
    (void)state;
    for (int which = 0; which <= BW_TEMPLATE_PLAIN; which++) {
        bw_text with = {0}, without = {0};
        assert_int_equal(bw_template_prompt((bw_template)which, "x", "", &with), BW_OK);
        assert_int_equal(bw_template_prompt((bw_template)which, "x", NULL, &without), BW_OK);
        assert_string_equal(with.data, without.data);
        bw_text_free(&with);
        bw_text_free(&without);
    }
}

static void check_turns(bw_template which, const bw_turn *turns, int64_t count, const char *expected)
{
    bw_text out = {0};
    assert_int_equal(bw_template_turns(which, turns, count, &out), BW_OK);
    assert_string_equal(out.data, expected);
    bw_text_free(&out);
}

static void conversations_keep_their_turns(void **state)
{
    char system[] = "S", first[] = "A", answer[] = "B", second[] = "C";
    bw_turn turns[] = {{system, BW_ROLE_SYSTEM}, {first, BW_ROLE_USER}, {answer, BW_ROLE_ASSISTANT}, {second, BW_ROLE_USER}};
    (void)state;
    check_turns(BW_TEMPLATE_CHATML, turns, 4,
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
                "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n");
    check_turns(BW_TEMPLATE_GEMMA, turns, 4,
                "<start_of_turn>user\nS\n\nA<end_of_turn>\n<start_of_turn>model\nB<end_of_turn>\n<start_of_turn>user\nC<end_of_turn>\n"
                "<start_of_turn>model\n");
    check_turns(BW_TEMPLATE_LLAMA3, turns, 2,
                "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

static void a_single_user_turn_is_the_same_by_either_way(void **state)
{
    char text[] = "Hi";
    bw_turn turn = {text, BW_ROLE_USER};
    (void)state;
    for (int which = 0; which <= BW_TEMPLATE_PLAIN; which++) {
        bw_text prompt = {0}, turns = {0};
        if (!bw_template_chats((bw_template)which))
            continue;
        assert_int_equal(bw_template_prompt((bw_template)which, text, NULL, &prompt), BW_OK);
        assert_int_equal(bw_template_turns((bw_template)which, &turn, 1, &turns), BW_OK);
        assert_string_equal(prompt.data, turns.data);
        bw_text_free(&prompt);
        bw_text_free(&turns);
    }
}

static void names_are_found_and_a_wrong_one_names_the_nearest(void **state)
{
    bw_template which;
    (void)state;
    for (int i = 0; i <= BW_TEMPLATE_PLAIN; i++) {
        assert_int_equal(bw_template_find(bw_template_name((bw_template)i), &which), BW_OK);
        assert_int_equal(which, i);
    }
    assert_int_equal(bw_template_find("chatlm", &which), BW_USAGE);
    assert_non_null(strstr(bw_error(), "did you mean 'chatml'"));
    bw_error_clear();
    assert_null(bw_template_end(BW_TEMPLATE_ALPACA));
    assert_null(bw_template_end(BW_TEMPLATE_PLAIN));
    assert_string_equal(bw_template_end(BW_TEMPLATE_CHATML), "<|im_end|>");
    assert_string_equal(bw_template_end(BW_TEMPLATE_LLAMA3), "<|eot_id|>");
    assert_string_equal(bw_template_end(BW_TEMPLATE_GEMMA), "<end_of_turn>");
}

static void check_own(const char *model, bool wanted_there, const char *wanted_name)
{
    bool there;
    const char *name;
    if (bw_template_of_model(model, &there, &name) != BW_OK)
        fail_msg("%s", bw_error());
    assert_int_equal(there, wanted_there);
    assert_string_equal(name ? name : "", wanted_name);
}

static void a_models_own_template_is_known_by_what_opens_its_turns(void **state)
{
    (void)state;
    const char *const files[][2] = {
        {"{\"eos_token\": \"x\"}", NULL},
        {"{\"chat_template\": null}", NULL},
        {"{\"chat_template\": \"{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n'}}\"}", "chatml"},
        {"{\"chat_template\": [{\"name\": \"default\", \"template\": \"<|start_header_id|>\"}]}", "llama3"},
        {"{\"chat_template\": \"{{ '<start_of_turn>' + role }}\"}", "gemma"},
        {"{\"chat_template\": \"[INST] {{ m }} [/INST]\"}", ""},
    };
    check_own(folder, false, "");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        write_file("tokenizer_config.json", files[i][0]);
        path_count--; /* the next one takes its place */
        check_own(folder, files[i][1] != NULL, files[i][1] ? files[i][1] : "");
    }
    path_count++;
    write_file("chat_template.jinja", "{{ '<|im_start|>' }}"); /* before the key */
    check_own(folder, true, "chatml");
    static const char gguf[] =
        "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\27\0\0\0\0\0\0\0tokenizer.chat_template\10\0\0\0\14\0\0\0\0\0\0\0<|im_start|>";
    check_own(write_bytes("model.gguf", gguf, sizeof gguf - 1), true, "chatml");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_are_what_the_models_were_trained_on),
        cmocka_unit_test(an_empty_input_is_no_input),
        cmocka_unit_test(conversations_keep_their_turns),
        cmocka_unit_test(a_single_user_turn_is_the_same_by_either_way),
        TEST(a_models_own_template_is_known_by_what_opens_its_turns),
        cmocka_unit_test(names_are_found_and_a_wrong_one_names_the_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

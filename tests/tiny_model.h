/* tests/tiny_model.h - a small random Llama as a Hugging Face folder, made from a seed, so that whole commands run on it in a second.
 * Its tokenizer has one token a byte (id = byte) and <|endoftext|> 256, <|im_start|> 257, <|im_end|> 258; eos is <|im_end|>.
 * tests/unit/model/test_source.c checks that the folder opens; transformers loads it, too. */
#ifndef BREAKWATER_TINY_MODEL_H
#define BREAKWATER_TINY_MODEL_H
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "breakwater/base.h"
#include "breakwater/io.h"

/* head_dim is 8. All sizes avoid powers of two where they may, so that blocks do not divide them. */
typedef struct bw_tiny {
    int n_layer, n_head, n_kv;
    int64_t d_model, d_ff, vocab;
    bool tied;
    bw_dtype dtype;           /* F32, F16 or BF16 */
    const char *architecture; /* of config.json */
    const char *omit;         /* a tensor that is left out; NULL: none */
    const char *misshape;     /* a tensor that gets one row too many */
    const char *surplus;      /* a tensor that does not belong */
    const char *poison;       /* a tensor with a NaN at entry 5 */
    int claimed_head_dim;     /* in config.json; 0: what it is */
    const char *extra_config; /* further members of config.json, e.g. "\"attention_bias\": true," */
} bw_tiny;
static const bw_tiny BW_TINY = {
    .n_layer = 2, .n_head = 4, .n_kv = 2, .d_model = 32, .d_ff = 48, .vocab = 264, .tied = true, .dtype = BW_F32, .architecture = "LlamaForCausalLM"};

enum { BW_TINY_MOST = 64, BW_TINY_HEAD_DIM = 8, BW_TINY_EOS = 258 };
typedef struct bw_tiny_tensors {
    bw_tensor_spec specs[BW_TINY_MOST];
    char names[BW_TINY_MOST][80];
    int count;
} bw_tiny_tensors;

/* Uniform around `centre`, standard deviation `deviation`; keyed by the tensor's place in the list, so that tensors differ. */
static inline int bw_tiny_fill(float *values, int64_t count, uint64_t seed, int tensor, double centre, double deviation)
{
    const bw_key key = {.seed = seed, .purpose = BW_PURPOSE_TEST, .sample = (uint32_t)tensor};
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits[4];
        bw_rng(&key, (uint32_t)i, bits);
        values[i] = (float)(centre + deviation * 3.4641016 * ((double)bw_rng_uniform(bits[0]) - 0.5));
    }
    return BW_OK;
}

static inline int bw_tiny_add(bw_tiny_tensors *all, const bw_tiny *tiny, uint64_t seed, const char *name, int64_t rows, int64_t cols, double centre,
                              double deviation)
{
    if (tiny->omit && strcmp(tiny->omit, name) == 0)
        return BW_OK;
    if (tiny->misshape && strcmp(tiny->misshape, name) == 0)
        rows++;
    const int index = all->count++;
    const int64_t count = rows * (cols ? cols : 1);
    float *values, *data;
    BW_TRY(BW_NEW(values, count, "test"));
    BW_TRY(bw_tiny_fill(values, count, seed, index, centre, deviation));
    if (tiny->poison && strcmp(tiny->poison, name) == 0)
        values[5] = (float)strtod("nan", NULL);
    BW_TRY(BW_NEW(data, count, "test"));
    bw_from_f32(data, values, tiny->dtype, count);
    bw_free(values);
    snprintf(all->names[index], sizeof all->names[index], "%s", name);
    all->specs[index] =
        (bw_tensor_spec){.name = all->names[index], .dtype = tiny->dtype, .n_dims = cols ? 2 : 1, .shape = {rows, cols}, .data = data};
    return BW_OK;
}

static inline int bw_tiny_layer(bw_tiny_tensors *all, const bw_tiny *tiny, uint64_t seed, int layer)
{
    const int64_t q = tiny->n_head * BW_TINY_HEAD_DIM, kv = tiny->n_kv * BW_TINY_HEAD_DIM, d = tiny->d_model, f = tiny->d_ff;
    const struct {
        const char *name;
        int64_t rows, cols;
    } weights[] = {{"self_attn.q_proj", q, d}, {"self_attn.k_proj", kv, d}, {"self_attn.v_proj", kv, d}, {"self_attn.o_proj", d, q},
                   {"mlp.gate_proj", f, d},    {"mlp.up_proj", f, d},       {"mlp.down_proj", d, f}};
    char name[80];
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, weights[i].name);
        BW_TRY(bw_tiny_add(all, tiny, seed, name, weights[i].rows, weights[i].cols, 0, 0.15));
    }
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", layer);
    BW_TRY(bw_tiny_add(all, tiny, seed, name, d, 0, 1, 0.1));
    snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", layer);
    return bw_tiny_add(all, tiny, seed, name, d, 0, 1, 0.1);
}

static inline int bw_tiny_weights(const char *folder, const bw_tiny *tiny, uint64_t seed)
{
    bw_tiny_tensors all = {.count = 0};
    bw_text path = {0};
    const char *metadata[] = {"format", "pt", NULL};
    BW_TRY(bw_tiny_add(&all, tiny, seed, "model.embed_tokens.weight", tiny->vocab, tiny->d_model, 0, 0.3));
    for (int layer = 0; layer < tiny->n_layer; layer++)
        BW_TRY(bw_tiny_layer(&all, tiny, seed, layer));
    BW_TRY(bw_tiny_add(&all, tiny, seed, "model.norm.weight", tiny->d_model, 0, 1, 0.1));
    if (!tiny->tied)
        BW_TRY(bw_tiny_add(&all, tiny, seed, "lm_head.weight", tiny->vocab, tiny->d_model, 0, 0.3));
    if (tiny->surplus)
        BW_TRY(bw_tiny_add(&all, tiny, seed, tiny->surplus, 3, 4, 0, 1));
    BW_TRY(bw_path(&path, folder, "model.safetensors"));
    BW_TRY(bw_safetensors_write(path.data, all.specs, all.count, metadata, 0644));
    bw_text_free(&path);
    for (int i = 0; i < all.count; i++)
        bw_free((void *)(uintptr_t)all.specs[i].data);
    return BW_OK;
}

static inline int bw_tiny_file(const char *folder, const char *name, const bw_text *text)
{
    bw_text path = {0};
    BW_TRY(bw_path(&path, folder, name));
    BW_TRY(bw_file_write(path.data, text->data, text->length, 0644));
    bw_text_free(&path);
    return BW_OK;
}

static inline int bw_tiny_config(const char *folder, const bw_tiny *tiny)
{
    static const char *const dtypes[] = {[BW_F32] = "float32", [BW_F16] = "float16", [BW_BF16] = "bfloat16"};
    bw_text text = {0};
    BW_TRY(bw_text_addf(&text,
                        "{\"architectures\": [\"%s\"], \"model_type\": \"llama\", %s\n \"hidden_size\": %d, \"intermediate_size\": %d, "
                        "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d,\n",
                        tiny->architecture, tiny->extra_config ? tiny->extra_config : "", (int)tiny->d_model, (int)tiny->d_ff, tiny->n_layer,
                        tiny->n_head, tiny->n_kv, tiny->claimed_head_dim ? tiny->claimed_head_dim : BW_TINY_HEAD_DIM));
    BW_TRY(bw_text_addf(&text,
                        " \"vocab_size\": %d, \"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
                        "\"rope_scaling\": null,\n \"hidden_act\": \"silu\", \"tie_word_embeddings\": %s, \"bos_token_id\": 257, "
                        "\"eos_token_id\": %d, \"pad_token_id\": 256, \"torch_dtype\": \"%s\"}\n",
                        (int)tiny->vocab, tiny->tied ? "true" : "false", BW_TINY_EOS, dtypes[tiny->dtype]));
    BW_TRY(bw_tiny_file(folder, "config.json", &text));
    bw_text_free(&text);
    return BW_OK;
}

/* GPT-2's printable stand-ins for bytes: those that are printable stand for themselves, the others follow from U+0100 on. */
static inline int bw_tiny_byte_vocabulary(bw_text *text)
{
    int next = 256;
    for (int byte = 0; byte < 256; byte++) {
        const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        BW_TRY(bw_text_addf(text, "%s\"\\u%04x\": %d", byte ? ", " : "", (unsigned)(printable ? byte : next++), byte));
    }
    return BW_OK;
}

static inline int bw_tiny_tokenizer(const char *folder)
{
    static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    bw_text text = {0};
    BW_TRY(bw_text_addf(&text, "{\"version\": \"1.0\", \"truncation\": null, \"padding\": null, \"added_tokens\": ["));
    for (int i = 0; i < 3; i++)
        BW_TRY(bw_text_addf(&text,
                            "%s{\"id\": %d, \"content\": \"%s\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": "
                            "false, \"special\": true}",
                            i ? ", " : "", 256 + i, special[i]));
    BW_TRY(bw_text_addf(&text, "], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": "
                               "true, \"use_regex\": true}, \"post_processor\": null, \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": "
                               "true, \"trim_offsets\": true, \"use_regex\": true},\n\"model\": {\"type\": \"BPE\", \"dropout\": null, "
                               "\"unk_token\": null, \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false, "
                               "\"byte_fallback\": false, \"ignore_merges\": false, \"vocab\": {"));
    BW_TRY(bw_tiny_byte_vocabulary(&text));
    for (int i = 0; i < 3; i++)
        BW_TRY(bw_text_addf(&text, ", \"%s\": %d", special[i], 256 + i));
    BW_TRY(bw_text_addf(&text, "}, \"merges\": []}}\n"));
    BW_TRY(bw_tiny_file(folder, "tokenizer.json", &text));
    bw_text_free(&text);
    BW_TRY(bw_text_addf(&text, "{\"tokenizer_class\": \"PreTrainedTokenizerFast\", \"bos_token\": \"<|im_start|>\", \"eos_token\": \"<|im_end|>\", "
                               "\"pad_token\": \"<|endoftext|>\", \"clean_up_tokenization_spaces\": false, \"model_max_length\": 512}\n"));
    BW_TRY(bw_tiny_file(folder, "tokenizer_config.json", &text));
    bw_text_free(&text);
    return BW_OK;
}

static inline int bw_tiny_model_write_as(const char *folder, const bw_tiny *tiny, uint64_t seed)
{
    BW_TRY(bw_dir_make(folder));
    BW_TRY(bw_tiny_config(folder, tiny));
    BW_TRY(bw_tiny_tokenizer(folder));
    return bw_tiny_weights(folder, tiny, seed);
}

static inline int bw_tiny_model_write(const char *folder, uint64_t seed)
{
    return bw_tiny_model_write_as(folder, &BW_TINY, seed);
}
#endif

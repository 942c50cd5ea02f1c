/* The table of model families, and how a family's sizes and constants are read from config.json and from GGUF metadata.
 * A new family is a row here, and what its flags ask for in the transformer. */
#include "model/family.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const bw_family families[] = {
    {
        .name = "llama",
        .architecture = "LlamaForCausalLM",
        .model_type = "llama",
        .gguf = "llama",
        .activation = "silu",
        .gguf_permutes = true,
        .targets = {[BW_Q] = {"q", "model.layers.%d.self_attn.q_proj.weight", "blk.%d.attn_q.weight"},
                    [BW_K] = {"k", "model.layers.%d.self_attn.k_proj.weight", "blk.%d.attn_k.weight"},
                    [BW_V] = {"v", "model.layers.%d.self_attn.v_proj.weight", "blk.%d.attn_v.weight"},
                    [BW_O] = {"o", "model.layers.%d.self_attn.o_proj.weight", "blk.%d.attn_output.weight"},
                    [BW_GATE] = {"gate", "model.layers.%d.mlp.gate_proj.weight", "blk.%d.ffn_gate.weight"},
                    [BW_UP] = {"up", "model.layers.%d.mlp.up_proj.weight", "blk.%d.ffn_up.weight"},
                    [BW_DOWN] = {"down", "model.layers.%d.mlp.down_proj.weight", "blk.%d.ffn_down.weight"}},
        .vectors = {{"input_layernorm", "model.layers.%d.input_layernorm.weight", "blk.%d.attn_norm.weight"},
                    {"post_attention_layernorm", "model.layers.%d.post_attention_layernorm.weight", "blk.%d.ffn_norm.weight"}},
        .tables = {[BW_TABLE_EMBED] = {"embed_tokens", "model.embed_tokens.weight", "token_embd.weight"},
                   [BW_TABLE_NORM] = {"norm", "model.norm.weight", "output_norm.weight"},
                   [BW_TABLE_HEAD] = {"lm_head", "lm_head.weight", "output.weight"}},
        .harmless = {"rotary_emb.inv_freq", "rope_freqs.weight", "attn_rot_embd"},
    },
};
enum { FAMILIES = sizeof families / sizeof *families };

/* ---- targets ------------------------------------------------------------------------------------------------------ */
static const char *const target_names[BW_TARGETS] = {"q", "k", "v", "o", "gate", "up", "down"};
static const char *const target_modules[BW_TARGETS] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                                       "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

const char *bw_target_name(bw_target target)
{
    return target_names[target];
}

const char *bw_target_module(bw_target target)
{
    return target_modules[target];
}

static int target_find(const char *word, size_t length)
{
    for (int target = 0; target < BW_TARGETS; target++) {
        const char *leaf = strchr(target_modules[target], '.') + 1, *choices[] = {target_names[target], leaf, target_modules[target]};
        for (size_t i = 0; i < sizeof choices / sizeof *choices; i++)
            if (strlen(choices[i]) == length && memcmp(choices[i], word, length) == 0)
                return target;
    }
    return -1;
}

int bw_targets_parse(const char *text, unsigned *mask)
{
    *mask = 0;
    for (const char *word = text; *word;) {
        word += strspn(word, ", ");
        const size_t length = strcspn(word, ", ");
        if (length == 0)
            break;
        const int target = target_find(word, length);
        if (target < 0)
            return bw_fail(BW_USAGE, "--targets: '%.*s' is none of q, k, v, o, gate, up, down (or q_proj, ... down_proj)", (int)length, word);
        *mask |= 1u << target;
        word += length;
    }
    return *mask ? BW_OK : bw_fail(BW_USAGE, "--targets is empty; give a list out of q, k, v, o, gate, up, down");
}

void bw_spec_shape(const bw_spec *spec, bw_target target, int64_t *out, int64_t *in)
{
    const int64_t q = (int64_t)spec->n_head * spec->head_dim, kv = (int64_t)spec->n_kv * spec->head_dim;
    const int64_t shapes[BW_TARGETS][2] = {[BW_Q] = {q, spec->d_model},
                                           [BW_K] = {kv, spec->d_model},
                                           [BW_V] = {kv, spec->d_model},
                                           [BW_O] = {spec->d_model, q},
                                           [BW_GATE] = {spec->d_ff, spec->d_model},
                                           [BW_UP] = {spec->d_ff, spec->d_model},
                                           [BW_DOWN] = {spec->d_model, spec->d_ff}};
    if (out)
        *out = shapes[target][0];
    if (in)
        *in = shapes[target][1];
}

double bw_spec_flops(const bw_spec *spec, unsigned targets)
{
    double flops = 0;
    for (int target = 0; target < BW_TARGETS; target++) {
        int64_t out, in;
        bw_spec_shape(spec, (bw_target)target, &out, &in);
        flops += targets >> target & 1u ? 2.0 * (double)out * (double)in : 0;
    }
    return flops;
}

/* ---- which family ------------------------------------------------------------------------------------------------- */
static int unknown(const char *path, const char *found, bool gguf)
{
    bw_text known = {0};
    for (int i = 0; i < FAMILIES; i++)
        BW_TRY(bw_text_addf(&known, "%s%s", i ? ", " : "", gguf ? families[i].gguf : families[i].architecture));
    const int status = bw_fail(BW_DATA, "%s: architecture '%s' is not supported; supported: %s", path, found, known.data);
    bw_text_free(&known);
    return status;
}

int bw_family_of_config(const bw_family **out, const bw_json *config, const char *path)
{
    const char *architecture = bw_json_text(bw_json_at(bw_json_get(config, "architectures"), 0), NULL);
    const char *model_type = bw_json_text(bw_json_get(config, "model_type"), NULL);
    if (!architecture && !model_type)
        return bw_fail(BW_DATA, "%s: neither \"architectures\" nor \"model_type\" says what model this is", path);
    for (int i = 0; i < FAMILIES; i++)
        if (architecture ? strcmp(architecture, families[i].architecture) == 0 : strcmp(model_type, families[i].model_type) == 0) {
            *out = &families[i];
            return BW_OK;
        }
    return unknown(path, architecture ? architecture : model_type, false);
}

const bw_family *bw_family_named(const char *name)
{
    for (int i = 0; i < FAMILIES; i++)
        if (strcmp(name, families[i].name) == 0)
            return &families[i];
    return NULL;
}

int bw_family_of_gguf(const bw_family **out, const bw_tensors *gguf)
{
    const char *architecture = bw_gguf_text(gguf, "general.architecture", NULL);
    if (!architecture)
        return bw_fail(BW_DATA, "%s: the metadata has no general.architecture, so nothing says what model this is", bw_tensors_path(gguf));
    for (int i = 0; i < FAMILIES; i++)
        if (strcmp(architecture, families[i].gguf) == 0) {
            *out = &families[i];
            return BW_OK;
        }
    return unknown(bw_tensors_path(gguf), architecture, true);
}

/* ---- the sizes, from either format, as one list ------------------------------------------------------------------- */
typedef struct sizes {
    int64_t layers, heads, kv, head_dim, d_model, d_ff, vocab, positions;
} sizes;

typedef struct size_rule {
    const char *what;
    int64_t value, most;
} size_rule;

static int check_sizes(const sizes *s, const char *path)
{
    const size_rule rules[] = {
        {"number of layers", s->layers, 1 << 10},      {"number of attention heads", s->heads, 1 << 12},
        {"number of key-value heads", s->kv, 1 << 12}, {"head dimension", s->head_dim, BW_MAX_HEAD_DIM},
        {"hidden size", s->d_model, 1 << 20},          {"feed-forward size", s->d_ff, 1 << 22},
        {"size of the vocabulary", s->vocab, 1 << 24}, {"number of positions", s->positions, 1 << 30},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i].value < 1 || rules[i].value > rules[i].most)
            return bw_fail(BW_DATA, "%s: the %s is %lld, or is not given; expected 1 to %lld", path, rules[i].what, (long long)rules[i].value,
                           (long long)rules[i].most);
    if (s->heads % s->kv != 0)
        return bw_fail(BW_DATA, "%s: %lld attention heads cannot share %lld key-value heads evenly", path, (long long)s->heads, (long long)s->kv);
    if (s->head_dim % 2 != 0)
        return bw_fail(BW_DATA, "%s: the head dimension is %lld; a rotary embedding needs an even one", path, (long long)s->head_dim);
    return BW_OK;
}

static int check_constants(const bw_spec *spec, const char *path)
{
    if (!(spec->norm_eps > 0 && spec->norm_eps < 1))
        return bw_fail(BW_DATA, "%s: the epsilon of the norms is %g; expected a small positive number", path, spec->norm_eps);
    if (!(spec->rope_theta > 1 && spec->rope_theta < 1e12))
        return bw_fail(BW_DATA, "%s: the base of the rotary embedding is %g; expected more than 1", path, spec->rope_theta);
    for (int i = 0; i < spec->n_eos; i++)
        if (spec->eos[i] < 0 || spec->eos[i] >= spec->vocab)
            return bw_fail(BW_DATA, "%s: end-of-text id %d is outside the vocabulary of %lld", path, spec->eos[i], (long long)spec->vocab);
    return BW_OK;
}

static int set_sizes(bw_spec *spec, const sizes *s, const char *path)
{
    BW_TRY(check_sizes(s, path));
    spec->n_layer = (int)s->layers, spec->n_head = (int)s->heads, spec->n_kv = (int)s->kv, spec->head_dim = (int)s->head_dim;
    spec->d_model = s->d_model, spec->d_ff = s->d_ff, spec->vocab = s->vocab, spec->max_positions = s->positions;
    return BW_OK;
}

static int add_eos(bw_spec *spec, int64_t id, const char *path)
{
    const int most = (int)(sizeof spec->eos / sizeof *spec->eos);
    if (id < 0 || id > INT32_MAX)
        return bw_fail(BW_DATA, "%s: end-of-text id %lld is not a token id", path, (long long)id);
    for (int i = 0; i < spec->n_eos; i++)
        if (spec->eos[i] == (int32_t)id)
            return BW_OK;
    if (spec->n_eos == most)
        return bw_fail(BW_DATA, "%s: more than %d end-of-text ids", path, most);
    spec->eos[spec->n_eos++] = (int32_t)id;
    return BW_OK;
}

double bw_shortest_decimal(double value)
{
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if ((float)strtod(text, NULL) == (float)value)
            return strtod(text, NULL);
    }
    return value;
}

/* ---- config.json -------------------------------------------------------------------------------------------------- */
/* Members that change the arithmetic, and the one value we compute. A member that is absent or null has that value. */
static int check_refused(const bw_family *family, const bw_json *config, const char *path)
{
    static const char *const flags[] = {"attention_bias", "mlp_bias", "qkv_bias"};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (bw_json_true(bw_json_get(config, flags[i]), false))
            return bw_fail(BW_DATA, "%s: \"%s\" is true; weights with biases are not supported", path, flags[i]);
    const bw_json *quantised = bw_json_get(config, "quantization_config");
    if (quantised && bw_json_kind(quantised) != BW_JSON_NULL)
        return bw_fail(BW_DATA,
                       "%s: \"quantization_config\": quantised Hugging Face folders are not supported; give F32, F16 or BF16, or a GGUF file", path);
    const char *activation = bw_json_text(bw_json_get(config, "hidden_act"), NULL);
    if (activation && strcmp(activation, family->activation) != 0)
        return bw_fail(BW_DATA, "%s: \"hidden_act\" is \"%s\"; a %s model has \"%s\"", path, activation, family->architecture, family->activation);
    return BW_OK;
}

static int read_llama3_scaling(bw_spec *spec, const bw_json *scaling, const char *path)
{
    const struct {
        const char *key;
        double *value;
    } members[] = {{"factor", &spec->rope_factor},
                   {"low_freq_factor", &spec->rope_low},
                   {"high_freq_factor", &spec->rope_high},
                   {"original_max_position_embeddings", &spec->rope_original}};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        *members[i].value = bw_json_number(bw_json_get(scaling, members[i].key), 0);
        if (!(*members[i].value > 0 && *members[i].value < 1e9))
            return bw_fail(BW_DATA, "%s: rope scaling of type llama3 needs a positive \"%s\"", path, members[i].key);
    }
    if (!(spec->rope_high > spec->rope_low))
        return bw_fail(BW_DATA, "%s: rope scaling: high_freq_factor %g must be above low_freq_factor %g", path, spec->rope_high, spec->rope_low);
    return BW_OK;
}

/* transformers 4 has rope_theta and rope_scaling, transformers 5 has rope_parameters with both. */
static int read_rope(bw_spec *spec, const bw_json *config, const char *path)
{
    const bw_json *parameters = bw_json_get(config, "rope_parameters");
    const bool fifth = parameters && bw_json_kind(parameters) == BW_JSON_OBJECT;
    const bw_json *scaling = fifth ? parameters : bw_json_get(config, "rope_scaling");
    const double top = bw_json_number(bw_json_get(config, "rope_theta"), 10000);
    spec->rope_theta = fifth ? bw_json_number(bw_json_get(parameters, "rope_theta"), top) : top;
    if (!scaling || bw_json_kind(scaling) == BW_JSON_NULL)
        return BW_OK;
    const char *type = bw_json_text(bw_json_get(scaling, "rope_type"), NULL);
    if (!type)
        type = bw_json_text(bw_json_get(scaling, "type"), NULL);
    if (!type || strcmp(type, "default") == 0)
        return BW_OK;
    if (strcmp(type, "llama3") != 0)
        return bw_fail(BW_DATA, "%s: rope scaling of type \"%s\" is not supported; supported: default, llama3", path, type);
    return read_llama3_scaling(spec, scaling, path);
}

static int read_eos(bw_spec *spec, const bw_json *config, const bw_json *generation, const char *path)
{
    const bw_json *eos = bw_json_get(generation, "eos_token_id");
    if (!eos || bw_json_kind(eos) == BW_JSON_NULL)
        eos = bw_json_get(config, "eos_token_id");
    if (!eos || bw_json_kind(eos) == BW_JSON_NULL)
        return BW_OK;
    if (bw_json_kind(eos) != BW_JSON_ARRAY)
        return add_eos(spec, bw_json_int(eos, -1), path);
    for (int64_t i = 0; i < bw_json_size(eos); i++)
        BW_TRY(add_eos(spec, bw_json_int(bw_json_at(eos, i), -1), path));
    return BW_OK;
}

int bw_spec_of_config(bw_spec *spec, const bw_family *family, const bw_json *config, const bw_json *generation, const char *path)
{
    *spec = (bw_spec){.family = family->name, .embed_scale = 1, .norm_add_one = family->norm_add_one};
    BW_TRY(check_refused(family, config, path));
    sizes s = {
        .layers = bw_json_int(bw_json_get(config, "num_hidden_layers"), 0),
        .heads = bw_json_int(bw_json_get(config, "num_attention_heads"), 0),
        .d_model = bw_json_int(bw_json_get(config, "hidden_size"), 0),
        .d_ff = bw_json_int(bw_json_get(config, "intermediate_size"), 0),
        .vocab = bw_json_int(bw_json_get(config, "vocab_size"), 0),
        .positions = bw_json_int(bw_json_get(config, "max_position_embeddings"), 2048),
    };
    s.kv = bw_json_int(bw_json_get(config, "num_key_value_heads"), s.heads);
    s.head_dim = bw_json_int(bw_json_get(config, "head_dim"), s.heads > 0 ? s.d_model / s.heads : 0);
    BW_TRY(set_sizes(spec, &s, path));
    spec->norm_eps = bw_json_number(bw_json_get(config, "rms_norm_eps"), 1e-6);
    spec->tied = bw_json_true(bw_json_get(config, "tie_word_embeddings"), false);
    BW_TRY(read_rope(spec, config, path));
    BW_TRY(read_eos(spec, config, generation, path));
    return check_constants(spec, path);
}

/* ---- GGUF metadata ------------------------------------------------------------------------------------------------ */
static double gguf_number(const bw_tensors *gguf, const bw_family *family, const char *key, double otherwise)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", family->gguf, key);
    return bw_gguf_number(gguf, name, otherwise);
}

/* Metadata numbers arrive as doubles; one that is not a whole number in range counts as not given. */
static int64_t gguf_int(const bw_tensors *gguf, const bw_family *family, const char *key, int64_t otherwise)
{
    const double value = gguf_number(gguf, family, key, (double)otherwise);
    return value >= 0 && value < 1e15 && value == floor(value) ? (int64_t)value : 0;
}

/* llama.cpp stores llama3 scaling as a divisor per frequency. Meta's models all have low 1 and high 4, so the factor is the largest divisor;
 * that these three give back every divisor is checked. */
static int read_rope_factors(bw_spec *spec, const bw_tensors *gguf, const bw_family *family)
{
    const bw_tensor *divisors = bw_tensors_find(gguf, "rope_freqs.weight");
    if (!divisors)
        return BW_OK;
    const char *path = bw_tensors_path(gguf);
    const int half = spec->head_dim / 2;
    if (divisors->n_dims != 1 || divisors->shape[0] != half || divisors->dtype != BW_F32)
        return bw_fail(BW_DATA, "%s: rope_freqs.weight must hold %d F32 values (half a head)", path, half);
    float value, largest = 1;
    for (int i = 0; i < half; i++) {
        BW_TRY(bw_tensor_read(divisors, 0, 1, i, 1, &value, 1));
        largest = value > largest ? value : largest;
    }
    spec->rope_factor = largest, spec->rope_low = 1, spec->rope_high = 4;
    spec->rope_original = gguf_number(gguf, family, "rope.scaling.original_context_length", 8192);
    for (int i = 0; i < half; i++) {
        BW_TRY(bw_tensor_read(divisors, 0, 1, i, 1, &value, 1));
        const double wavelength = 2 * M_PI * pow(spec->rope_theta, 2.0 * i / spec->head_dim);
        double smooth = (spec->rope_original / wavelength - spec->rope_low) / (spec->rope_high - spec->rope_low);
        smooth = smooth < 0 ? 0 : smooth > 1 ? 1 : smooth;
        const double expected = 1 / ((1 - smooth) / spec->rope_factor + smooth);
        if (!(fabs(value - expected) <= 1e-4 * expected)) /* computed in float by the converter */
            return bw_fail(BW_DATA, "%s: rope_freqs.weight[%d] is %g; llama3 scaling by %g gives %g, and no other scaling is supported", path, i,
                           (double)value, spec->rope_factor, expected);
    }
    return BW_OK;
}

static int read_gguf_rope(bw_spec *spec, const bw_family *family, const bw_tensors *gguf)
{
    char name[96];
    snprintf(name, sizeof name, "%s.rope.scaling.type", family->gguf);
    const char *type = bw_gguf_text(gguf, name, NULL);
    if (type && strcmp(type, "none") != 0)
        return bw_fail(BW_DATA, "%s: %s is \"%s\"; only none, and llama3 by rope_freqs.weight, are supported", bw_tensors_path(gguf), name, type);
    spec->rope_theta = bw_shortest_decimal(gguf_number(gguf, family, "rope.freq_base", 10000));
    const int64_t rotated = gguf_int(gguf, family, "rope.dimension_count", spec->head_dim);
    if (rotated != spec->head_dim)
        return bw_fail(BW_DATA, "%s: %s.rope.dimension_count is %lld, the head dimension %d; a partial rotary embedding is not supported",
                       bw_tensors_path(gguf), family->gguf, (long long)rotated, spec->head_dim);
    return read_rope_factors(spec, gguf, family);
}

int bw_spec_of_gguf(bw_spec *spec, const bw_family *family, const bw_tensors *gguf)
{
    const char *path = bw_tensors_path(gguf);
    *spec = (bw_spec){.family = family->name, .embed_scale = 1, .norm_add_one = family->norm_add_one};
    const bw_tensor *embedding = bw_tensors_find(gguf, family->tables[BW_TABLE_EMBED].gguf);
    if (!embedding || embedding->n_dims != 2)
        return bw_fail(BW_DATA, "%s: tensor %s (the vocabulary) is missing or not a matrix", path, family->tables[BW_TABLE_EMBED].gguf);
    sizes s = {
        .layers = gguf_int(gguf, family, "block_count", 0),
        .heads = gguf_int(gguf, family, "attention.head_count", 0),
        .d_model = gguf_int(gguf, family, "embedding_length", 0),
        .d_ff = gguf_int(gguf, family, "feed_forward_length", 0),
        .vocab = embedding->shape[0],
        .positions = gguf_int(gguf, family, "context_length", 2048),
    };
    s.kv = gguf_int(gguf, family, "attention.head_count_kv", s.heads);
    s.head_dim = gguf_int(gguf, family, "attention.key_length", s.heads > 0 ? s.d_model / s.heads : 0);
    BW_TRY(set_sizes(spec, &s, path));
    spec->norm_eps = bw_shortest_decimal(gguf_number(gguf, family, "attention.layer_norm_rms_epsilon", 0));
    spec->tied = bw_tensors_find(gguf, family->tables[BW_TABLE_HEAD].gguf) == NULL;
    BW_TRY(read_gguf_rope(spec, family, gguf));
    static const char *const ends[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        const double id = bw_gguf_number(gguf, ends[i], -1);
        if (id >= 0)
            BW_TRY(add_eos(spec, id < INT32_MAX ? (int64_t)id : -1, path));
    }
    return check_constants(spec, path);
}

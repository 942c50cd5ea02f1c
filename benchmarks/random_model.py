#!/usr/bin/env python3
"""Write a Llama-shaped model with random weights as a Hugging Face folder, shard by shard, so that a large one needs little memory.
usage: random_model.py OUT TOKENIZER_FOLDER --layers N --width N --mlp N --heads N --kv N [--vocab N] [--head-dim N] [--untied]
                       [--layers-per-shard N] [--seed N]
       random_model.py OUT TOKENIZER_FOLDER --config CONFIG.json       shapes of a model, e.g. benchmarks/machines/llama-3-8b.json
Weights are bf16, uniform with the standard deviation 0.02 that models start from; the tokenizer is copied from TOKENIZER_FOLDER, and may know
fewer tokens than the model. numpy only."""
import argparse
import json
import os
import shutil

import numpy as np


SHAPE = {"layers": "num_hidden_layers", "width": "hidden_size", "mlp": "intermediate_size", "heads": "num_attention_heads",
         "kv": "num_key_value_heads"}
PART = 1 << 24  # numbers made at a time: memory does not grow with the model


def take_shapes(chosen):
    with open(chosen.config) as file:
        config = json.load(file)
    for name, key in SHAPE.items():
        setattr(chosen, name, config[key])
    chosen.vocab, chosen.head_dim = config["vocab_size"], config.get("head_dim") or 0
    chosen.untied = not config.get("tie_word_embeddings", False)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("tokenizer")
    for name in SHAPE:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--config", help="a config.json that has the shapes instead")
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--head-dim", type=int, default=0, help="0: width / heads")
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--layers-per-shard", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.config:
        take_shapes(chosen)
    missing = [f"--{name}" for name in SHAPE if getattr(chosen, name) is None]
    if missing:
        parser.error(f"{', '.join(missing)}: missing (or --config)")
    chosen.head_dim = chosen.head_dim or chosen.width // chosen.heads
    return chosen


def layer_tensors(a, layer):
    query, key = a.heads * a.head_dim, a.kv * a.head_dim
    shapes = {
        "self_attn.q_proj": (query, a.width), "self_attn.k_proj": (key, a.width), "self_attn.v_proj": (key, a.width),
        "self_attn.o_proj": (a.width, query), "mlp.gate_proj": (a.mlp, a.width), "mlp.up_proj": (a.mlp, a.width),
        "mlp.down_proj": (a.width, a.mlp), "input_layernorm": (a.width,), "post_attention_layernorm": (a.width,),
    }
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}


def shards(a):
    tables = {"model.embed_tokens.weight": (a.vocab, a.width), "model.norm.weight": (a.width,)}
    if a.untied:
        tables["lm_head.weight"] = (a.vocab, a.width)
    yield tables
    for first in range(0, a.layers, a.layers_per_shard):
        tensors = {}
        for layer in range(first, min(first + a.layers_per_shard, a.layers)):
            tensors.update(layer_tensors(a, layer))
        yield tensors


def write_values(file, random, shape):
    """bf16 bits: the upper half of float32 ones; norms are near 1."""
    count = int(np.prod(shape))
    middle, width = (1, 0.02) if len(shape) == 1 else (0, 0.02 * 12 ** 0.5)
    for first in range(0, count, PART):
        numbers = random.random(min(PART, count - first), dtype=np.float32)
        numbers -= np.float32(0.5)
        numbers *= np.float32(width)
        numbers += np.float32(middle)
        numbers.view("<u2")[1::2].tofile(file)


def write_shard(path, tensors, random):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in tensors.values():
            write_values(file, random, shape)


def write_config(a):
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": a.width, "intermediate_size": a.mlp,
        "num_hidden_layers": a.layers, "num_attention_heads": a.heads, "num_key_value_heads": a.kv, "head_dim": a.head_dim,
        "vocab_size": a.vocab, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
        "tie_word_embeddings": not a.untied, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }
    with open(os.path.join(a.out, "config.json"), "w") as file:
        json.dump(config, file, indent=1)


def main():
    a = arguments()
    random = np.random.default_rng(a.seed)
    os.makedirs(a.out, exist_ok=True)
    write_config(a)
    shutil.copy(os.path.join(a.tokenizer, "tokenizer.json"), a.out)
    with open(os.path.join(a.tokenizer, "tokenizer_config.json")) as file:
        ends = {"eos_token": json.load(file)["eos_token"]}
    with open(os.path.join(a.out, "tokenizer_config.json"), "w") as file:
        json.dump(ends, file)
    plan = list(shards(a))
    where = {}
    for index, tensors in enumerate(plan, 1):
        name = f"model-{index:05d}-of-{len(plan):05d}.safetensors"
        write_shard(os.path.join(a.out, name), tensors, random)
        where.update(dict.fromkeys(tensors, name))
    with open(os.path.join(a.out, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {}, "weight_map": where}, file, indent=1)


if __name__ == "__main__":
    main()

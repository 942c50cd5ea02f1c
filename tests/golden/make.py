#!/usr/bin/env python3
"""Golden files: what torch, transformers and PEFT compute, for tests/golden/test_*.c to compare with.

  python make.py tiny                      -> tiny/: a random Llama, PEFT's loss, gradients and five AdamW steps
  python make.py tiny_logits               -> tiny/logits.safetensors: logits of that model with the adapter tiny/init
  python make.py hf MODEL.gguf HF_DIR      -> HF_DIR: an fp32 Hugging Face directory of the GGUF, which the next two read
  python make.py smollm2 HF_DIR            -> smollm2.safetensors: logits and greedy continuations of 20 prompts
  python make.py weights HF_DIR            -> weights.json: XXH3-128 of every tensor's fp32 bytes

Versions and seed are kept in each file's metadata. Made with torch 2.9.1, transformers and PEFT as recorded there."""
import json, math, os, sys
import torch, transformers, peft
from safetensors.torch import save_file, load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, PeftModel, get_peft_model

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 20260524
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
META = {"format": "pt", "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "seed": str(SEED)}


def hf(gguf, out):
    """transformers does not save a model it loaded from a GGUF: the weights go into a fresh model."""
    folder, name = os.path.split(os.path.abspath(gguf))
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path"):
        config.pop(key, None)
    config.update(rms_norm_eps=1e-5, pad_token_id=0)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict(), strict=False)
    model.tie_weights()
    model.to(torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)


# ---- tiny: loss, every LoRA gradient, five steps ------------------------------------------------------------------

def byte_tokenizer(path):
    """One token a byte, and an end: no merges, so that ids can be read off."""
    printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    shown, extra = {}, 0
    for b in range(256):
        if b in printable:
            shown[b] = chr(b)
        else:
            shown[b], extra = chr(256 + extra), extra + 1
    vocab = {shown[b]: b for b in range(256)}
    vocab["<|end|>"] = 256
    special = {"id": 256, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    json.dump({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [special], "normalizer": None, "pre_tokenizer": level,
               "post_processor": None, "decoder": level,
               "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                         "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}}, open(path, "w"))


ROWS = [("Name the colour of the sky.", "Blue."), ("Add 2 and 3.", "5"), ("Say hello.", "Hello there!"),
        ("Which is larger, 7 or 9?", "9 is larger."), ("Spell cat.", "c a t"), ("Name a fruit.", "Apple")]


def encode(text):
    return list(text.encode())


def tiny():
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    out = os.path.join(HERE, "tiny")
    os.makedirs(out, exist_ok=True)
    config = LlamaConfig(vocab_size=264, hidden_size=40, intermediate_size=72, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=1,
                         head_dim=8, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
                         bos_token_id=None, eos_token_id=256, pad_token_id=None)
    model = LlamaForCausalLM(config)
    for name, p in model.named_parameters():  # larger than the default, so that every part of a layer matters
        p.data = 1 + 0.1 * torch.randn_like(p) if "norm" in name else torch.randn_like(p) * (1.5 / math.sqrt(p.shape[-1]))
    model = model.to(torch.float32)
    model.save_pretrained(os.path.join(out, "model"))
    for name in ("generation_config.json",):
        path = os.path.join(out, "model", name)
        if os.path.exists(path):
            os.remove(path)
    byte_tokenizer(os.path.join(out, "model", "tokenizer.json"))
    json.dump({"eos_token": "<|end|>"}, open(os.path.join(out, "model", "tokenizer_config.json"), "w"))
    with open(os.path.join(out, "data.jsonl"), "w") as f:
        for instruction, answer in ROWS:
            f.write(json.dumps({"instruction": instruction, "output": answer}) + "\n")
    lora = get_peft_model(model, LoraConfig(r=6, lora_alpha=9, lora_dropout=0.0, target_modules=TARGETS, bias="none", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(SEED)
    for name, p in lora.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.05
    lora.save_pretrained(os.path.join(out, "init"))
    for extra in ("README.md",):
        path = os.path.join(out, "init", extra)
        if os.path.exists(path):
            os.remove(path)

    def loss_sum():
        total, answers = 0.0, 0
        for instruction, answer in ROWS:  # template `plain`: the instruction, a newline, the answer
            prompt = encode(instruction + "\n")
            ids = torch.tensor([prompt + encode(answer) + [256]])
            labels = ids.clone()
            labels[0, :len(prompt)] = -100
            logits = lora(input_ids=ids).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
            answers += int((labels[0, 1:] != -100).sum())
        return total, answers

    trained = [(n, p) for n, p in lora.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([p for _, p in trained], lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    expected, losses = {}, []
    for step in range(5):
        total, answers = loss_sum()
        (total / answers).backward()
        if step == 0:
            for name, p in trained:
                expected["gradient." + name.replace(".default", "")] = p.grad.clone()
            expected["loss_sum"] = total.detach().reshape(1)
            expected["answers"] = torch.tensor([float(answers)])
        losses.append(float(total) / answers)
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, p in trained:
        expected["after." + name.replace(".default", "")] = p.detach().clone()
    expected["losses"] = torch.tensor(losses)
    save_file({k: v.contiguous() for k, v in expected.items()}, os.path.join(out, "expected.safetensors"), metadata=META)
    print("tiny:", losses)


def tiny_logits():
    """Every logit of the rows of data.jsonl, prompt and answer, through the files as they are committed."""
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(os.path.join(HERE, "tiny", "model"), dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, os.path.join(HERE, "tiny", "init")).eval()
    out = {}
    with torch.no_grad():
        for i, (instruction, answer) in enumerate(ROWS):
            ids = encode(instruction + "\n" + answer) + [256]
            out[f"{i:02d}.tokens"] = torch.tensor(ids, dtype=torch.float32)
            out[f"{i:02d}.logits"] = model(input_ids=torch.tensor([ids])).logits[0].contiguous()
            with model.disable_adapter():
                plain = model(input_ids=torch.tensor([ids])).logits[0]
            print(i, "the adapter moves a logit by at most", float((plain - out[f"{i:02d}.logits"]).abs().max()))
    save_file(out, os.path.join(HERE, "tiny", "logits.safetensors"), metadata=META)


# ---- the real model: logits and greedy continuations ---------------------------------------------------------------

PROMPTS = ["What is the capital of France?", "Write one sentence about the sea.", "List three primary colours.", "2 + 2 =", "The quick brown fox",
           "Explain why the sky is blue.", "Translate to French: good morning", "def fibonacci(n):", "Once upon a time there was a small robot",
           "Name a mammal that can fly.", "Give me a recipe for pancakes.", "How many days are there in a leap year?", "The opposite of cold is",
           "Who wrote Hamlet?", "Summarise: A lighthouse warns ships of rocks.", "Is 17 a prime number?", "What do bees make?",
           "Count from one to ten.", "The chemical symbol for gold is", "Describe a breakwater in a harbour."]
IDS, NEW = 64, 64


def smollm2(folder):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(SEED)
    out = {}
    with torch.no_grad():
        for i, text in enumerate(PROMPTS):
            # Every other prompt in the model's own chat form, the rest bare.
            if i % 2:
                text = "<|im_start|>user\n" + text + "<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            logits = model(input_ids=ids).logits[0]
            columns = torch.randperm(logits.shape[1], generator=generator)[:IDS].sort().values
            tokens, cache, following = ids, None, ids
            for _ in range(NEW):
                step = model(input_ids=following, past_key_values=cache, use_cache=True)
                cache, following = step.past_key_values, step.logits[0, -1].argmax().reshape(1, 1)
                tokens = torch.cat([tokens, following], 1)
            out[f"{i:02d}.tokens"] = ids[0].to(torch.int32).float()
            out[f"{i:02d}.columns"] = columns.float()
            out[f"{i:02d}.logits"] = logits[:, columns].contiguous()
            out[f"{i:02d}.greedy"] = tokens[0, ids.shape[1]:].float()
            print(i, repr(tokenizer.decode(tokens[0, ids.shape[1]:])[:60]), flush=True)
    save_file(out, os.path.join(HERE, "smollm2.safetensors"), metadata=META)


def weights(folder):
    """The parameters of the loaded model as they lie in memory: fp32, row-major. `lm_head` is tied to the embedding, and is one with it here."""
    import xxhash
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lines = []
    for name, p in sorted(model.named_parameters()):
        assert p.dtype == torch.float32 and p.is_contiguous()
        lines.append(f'  "{name}": "{xxhash.xxh3_128_hexdigest(memoryview(p.detach().numpy()).cast("B"))}"')
    made_by = json.dumps({"torch": META["torch"], "transformers": META["transformers"], "xxhash": xxhash.VERSION})
    with open(os.path.join(HERE, "weights.json"), "w") as f:
        f.write('{"made_by": ' + made_by + ',\n "tensors": {\n' + ",\n".join(lines) + "\n}}\n")
    print(len(lines), "tensors")


if __name__ == "__main__":
    {"tiny": tiny, "tiny_logits": tiny_logits, "smollm2": smollm2, "weights": weights, "hf": hf}[sys.argv[1]](*sys.argv[2:])

#!/usr/bin/env python3
"""Do our files work elsewhere? Loads a model folder with transformers, an adapter folder with PEFT, and compares logits with ours.

  dump_logits MODEL ADAPTER|- smollm2.safetensors OURS.safetensors           (built beside the tests)
  python check_logits.py MODEL_FOLDER ADAPTER|- smollm2.safetensors OURS.safetensors

MODEL_FOLDER: a Hugging Face folder; where it has a tokenizer, its ids on tokenizer/corpus.jsonl are compared with tokenizer/smollm2.ids.jsonl,
which our tokenizer is tested with. Ends with 1 where a logit is off by more than 1e-3 or an id differs."""
import json, os, sys
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
MOST = 1e-3


def logits(folder, adapter, prompts, ours):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    differences, moved, largest, count = [], 0.0, 0.0, 0
    if adapter != "-":
        from peft import PeftModel
        model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad(), safe_open(prompts, "pt") as p, safe_open(ours, "pt") as o:
        for name in (n for n in p.keys() if n.endswith(".tokens")):
            ids = p.get_tensor(name).long().reshape(1, -1)
            want, have = model(input_ids=ids).logits[0], o.get_tensor(name.replace("tokens", "logits"))
            differences.append(float((want - have).abs().max()))  # a NaN among them would get lost in max()
            largest = max(largest, float(want.abs().max()))
            count += want.numel()
            if adapter != "-":
                with model.disable_adapter():
                    moved = max(moved, float((model(input_ids=ids).logits[0] - want).abs().max()))
    note = f"; the adapter moves them by up to {moved:.1f}" if adapter != "-" else ""
    print(f"{count} logits up to {largest:.1f}{note}: largest difference {max(differences):.1e}")
    return all(d <= MOST for d in differences)


def ids(folder):
    if not os.path.exists(os.path.join(folder, "tokenizer.json")):
        return True
    tokenizer = AutoTokenizer.from_pretrained(folder)
    corpus, want = ([json.loads(line) for line in open(os.path.join(HERE, "tokenizer", name))] for name in ("corpus.jsonl", "smollm2.ids.jsonl"))
    wrong = [text for text, w in zip(corpus, want) if tokenizer(text)["input_ids"] != w]
    print(f"{len(corpus)} strings through its tokenizer: {len(wrong)} differ" + (f", first {wrong[0]!r}" if wrong else ""))
    return not wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, adapter, prompts, ours = sys.argv[1:]
    sys.exit(0 if all([logits(model, adapter, prompts, ours), ids(model)]) else 1)

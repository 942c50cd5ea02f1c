#!/usr/bin/env python3
"""What torch + PEFT reach on the reference job, on this CPU: LoRA fine-tuning of SmolLM2-135M, r 32, alpha 64, targets q,v,gate,up,down,
AdamW, alpaca prompt, loss on the answer, 8 rows a step, at most 512 tokens a row.

  peer_peft.py --model FOLDER --data rows.jsonl --layout padded --dropout 0.1              as the authors of the method run it
  peer_peft.py --model FOLDER --data rows.jsonl --layout sorted --answer-logits --compile  as fast as a careful user gets it

One line of JSON goes to stdout: real tokens/s (padding does not count), median over the timed steps, and the peak of the process' memory."""
import argparse
import contextlib
import json
import os
import random
import resource
import statistics
import sys
import time

TARGETS = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
          "### Instruction:\n{}\n\n### Response:\n")
IGNORED = -100  # a label that has no loss

# --precision: type of the frozen model, type of the LoRA factors, autocast to bf16
PRECISIONS = {
    "fp32": ("float32", "float32", False),
    "bf16": ("bfloat16", "bfloat16", False),
    "bf16-lora32": ("bfloat16", "float32", False),
    "autocast": ("float32", "float32", True),
    "bf16-lora32-autocast": ("bfloat16", "float32", True),  # the authors' types
}


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face folder")
    add("--data", required=True, help="JSONL of {instruction, output}: make_rows.py")
    add("--name", default="", help="goes into the result")
    add("--precision", choices=PRECISIONS, default="fp32")
    add("--layout", choices=["padded", "sorted", "packed"], default="padded",
        help="padded: rows as they come; sorted: rows of like length together; packed: no padding, one long row")
    add("--answer-logits", action="store_true", help="head and loss on the answer's rows only")
    add("--compile", action="store_true", help="torch.compile")
    add("--attention", choices=["sdpa", "eager"], default="sdpa")
    add("--dropout", type=float, default=0.0)
    add("--rank", type=int, default=32)
    add("--alpha", type=float, default=64)
    add("--batch", type=int, default=8)
    add("--max-length", type=int, default=512)
    add("--threads", type=int, default=os.cpu_count())
    add("--steps", type=int, default=12, help="timed steps")
    add("--warm-up", type=int, default=3, help="steps before those")
    add("--seed", type=int, default=42)
    return parser.parse_args()


def tokenize(path, tokenizer, most):
    """(ids, number of ids of the prompt) of every row that has an answer token within `most`."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt = PROMPT.format(row["instruction"])
            ids = tokenizer(prompt + row["output"] + tokenizer.eos_token).input_ids[:most]
            start = len(tokenizer(prompt).input_ids)
            if start < len(ids):
                rows.append((ids, start))
    return rows


def groups_of(rows, options):
    """Batches of row numbers, shuffled; with --layout sorted rows of like length share one."""
    order = list(range(len(rows)))
    random.Random(options.seed).shuffle(order)
    if options.layout == "sorted":
        order.sort(key=lambda i: len(rows[i][0]))
    groups = [order[i:i + options.batch] for i in range(0, len(order) - options.batch + 1, options.batch)]
    if not groups:
        sys.exit(f"peer_peft.py: {options.data} has {len(rows)} usable rows, one step takes {options.batch}")
    random.Random(options.seed + 1).shuffle(groups)
    return groups


def padded(torch, rows, filler):
    width = max(len(ids) for ids, _ in rows)
    shape = (len(rows), width)
    ids, labels = torch.full(shape, filler), torch.full(shape, IGNORED)
    mask = torch.zeros(shape, dtype=torch.long)
    for i, (row, start) in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        labels[i, start:len(row)] = ids[i, start:len(row)]
        mask[i, :len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}, labels


def packed(torch, rows):
    """Positions restart with every row, by which transformers knows where attention has to stop."""
    ids = [token for row, _ in rows for token in row]
    positions = [i for row, _ in rows for i in range(len(row))]
    labels = [token if i >= start else IGNORED for row, start in rows for i, token in enumerate(row)]
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}, torch.tensor([labels])


def build(torch, options):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    base, factors, _ = PRECISIONS[options.precision]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, base), attn_implementation=options.attention)
    model.config.use_cache = False
    settings = LoraConfig(r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=TARGETS, bias="none",
                          task_type="CAUSAL_LM")
    return get_peft_model(model, settings, autocast_adapter_dtype=factors == "float32").train()


def loss_function(torch, model, options):
    """A function of (inputs, labels); compiled where --compile says so."""
    compiled = (lambda part: torch.compile(part, dynamic=True)) if options.compile else (lambda part: part)
    if not options.answer_logits:
        whole = compiled(model)
        return lambda inputs, labels: whole(**inputs, labels=labels, use_cache=False).loss
    body, head = compiled(model.get_base_model().model), model.get_base_model().lm_head

    def loss(inputs, labels):
        hidden = body(**inputs, use_cache=False).last_hidden_state[:, :-1]
        next_token = labels[:, 1:]
        chosen = next_token != IGNORED
        return torch.nn.functional.cross_entropy(head(hidden[chosen]).float(), next_token[chosen])
    return loss


def main():
    options = read_options()
    os.environ.update(OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads), TOKENIZERS_PARALLELISM="false")
    import torch
    import transformers
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    rows = tokenize(options.data, tokenizer, options.max_length)
    groups = groups_of(rows, options)
    model = build(torch, options)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01)
    loss_of = loss_function(torch, model, options)
    autocast = PRECISIONS[options.precision][2]
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    rates, losses, seconds, started = [], [], 0.0, time.perf_counter()
    for step in range(options.warm_up + options.steps):
        members = [rows[i] for i in groups[step % len(groups)]]
        inputs, labels = packed(torch, members) if options.layout == "packed" else padded(torch, members, filler)
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = loss_of(inputs, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        took = time.perf_counter() - begin
        if step >= options.warm_up:
            rates.append(sum(len(ids) for ids, _ in members) / took)
            seconds += took
        else:
            print(f"{options.name or 'peer'}: warm-up step {step + 1}: {took:.1f} s", file=sys.stderr)
    print(json.dumps({
        "name": options.name, "precision": options.precision, "layout": options.layout, "dropout": options.dropout,
        "answer_logits": options.answer_logits, "compile": options.compile, "threads": options.threads, "steps": options.steps,
        "tokens_per_s": round(statistics.median(rates), 1), "tokens_per_s_min": round(min(rates), 1), "tokens_per_s_max": round(max(rates), 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "timed_s": round(seconds, 1),
        "whole_s": round(time.perf_counter() - started, 1), "first_losses": [round(x, 4) for x in losses[:3]],
        "trained": sum(p.numel() for p in trained), "torch": torch.__version__, "transformers": transformers.__version__,
    }), flush=True)


if __name__ == "__main__":
    main()

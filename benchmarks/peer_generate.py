#!/usr/bin/env python3
"""What transformers' generate reaches at greedy decoding in batches on this CPU: the prompts of a JSONL file in the chatml prompt, padded on the
left to the longest of their batch.

  peer_generate.py --model FOLDER --data rows.jsonl --rows 80 --batch 40 --max-new 64

One line of JSON goes to stdout: generated tokens (up to and with the end token) per second, reading the prompts included."""
import argparse
import json
import os
import resource
import sys
import time

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face folder")
    add("--data", required=True, help="JSONL of {instruction}")
    add("--rows", type=int, default=80)
    add("--batch", type=int, default=40)
    add("--max-new", type=int, default=64)
    add("--threads", type=int, default=os.cpu_count())
    add("--precision", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def lengths(ids, end):
    """Tokens of each answer, the end token counted, what follows it not."""
    return [row.index(end) + 1 if end in row else len(row) for row in ids.tolist()]


def main():
    options = read_options()
    os.environ.update(OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads), TOKENIZERS_PARALLELISM="false")
    import torch
    import transformers
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.precision)).eval()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with open(options.data, encoding="utf-8") as lines:
        prompts = [PROMPT.format(json.loads(line)["instruction"]) for line, _ in zip(lines, range(options.rows))]
    tokens, began = 0, time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(prompts), options.batch):
            batch = tokenizer(prompts[first:first + options.batch], return_tensors="pt", padding=True)
            ids = model.generate(**batch, max_new_tokens=options.max_new, do_sample=False, eos_token_id=end, pad_token_id=tokenizer.pad_token_id)
            tokens += sum(lengths(ids[:, batch.input_ids.shape[1]:], end))
            print(f"{min(first + options.batch, len(prompts))} of {len(prompts)} prompts", file=sys.stderr)
    took = time.perf_counter() - began
    print(json.dumps({
        "prompts": len(prompts), "batch": options.batch, "max_new": options.max_new, "threads": options.threads, "precision": options.precision,
        "tokens": tokens, "seconds": round(took, 2), "tokens_per_s": round(tokens / took, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "torch": torch.__version__,
        "transformers": transformers.__version__,
    }))


if __name__ == "__main__":
    main()

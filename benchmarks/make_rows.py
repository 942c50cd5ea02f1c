#!/usr/bin/env python3
"""Rows for the benchmark, as JSONL of {"instruction", "output"}: word problems made from a seed, as long as those of GSM8K.

  make_rows.py --rows 256 --seed 1 > rows.jsonl
  make_rows.py --rows 256 --data train.jsonl > rows.jsonl      rows of a file of {"question", "answer"} or {"instruction", "output"}

In tokens of SmolLM2's tokenizer, with the alpaca prompt, GSM8K's rows have 219 on average (standard deviation 69), 129 of them (55) in
the answer. The lengths here are log-normal with those means and deviations."""
import argparse
import json
import math
import random
import sys

PEOPLE = "Ana Bo Clara Dmitri Elif Femi Greta Hiro Ines Jonas Kemal Lena Mirek Noor Olga Pavel".split()
THINGS = "apples buckets candles drums eggs figs goats hats jars kites lamps maps nails oars pears ropes shells tiles".split()
PLACES = "market harbour school garden workshop library station bakery".split()


def opening(rng):
    a, b = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    return rng.choice([
        f"{a} brings {rng.randint(3, 90)} {thing} to the {rng.choice(PLACES)} and {b} brings {rng.randint(2, 9)} times as many.",
        f"Every day {a} makes {rng.randint(4, 60)} {thing}, keeps {rng.randint(1, 3)} of them and sells the others for ${rng.randint(2, 12)} each.",
        f"At the {rng.choice(PLACES)} {a} pays ${rng.randint(2, 30)} for one of the {thing}, and {b} pays half of that.",
        f"{a} needs {rng.randint(5, 45)} minutes to pack {rng.randint(6, 48)} {thing} and rests for {rng.randint(2, 15)} minutes after each box.",
    ])


def working(rng):
    a, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    x, y = rng.randint(2, 95), rng.randint(2, 12)
    return rng.choice([
        f"{a} has {x}*{y} = <<{x}*{y}={x * y}>>{x * y} {thing} in all.",
        f"After that there are {x + y}-{y} = <<{x + y}-{y}={x}>>{x} {thing} left for {a}.",
        f"The {thing} cost {x}+{y} = $<<{x}+{y}={x + y}>>{x + y} together.",
        f"That makes {x * y}/{y} = <<{x * y}/{y}={x}>>{x} {thing} for each of the {y}.",
    ])


def tokens(text):
    """About as many as SmolLM2's tokenizer makes of it."""
    digits = sum(c.isdigit() for c in text)
    signs = sum(c in ".,?*/+-=<>$:" for c in text) * 0.72
    words = sum(any(c.isalpha() for c in w) for w in text.split())
    return 1.12 * (digits + signs + 1.1 * words)


def grow(rng, sentence, target, joint, end):
    """Sentences until the text is nearest to `target` tokens."""
    text = sentence(rng)
    while True:
        longer = text + joint + sentence(rng)
        if tokens(longer + end) - target > target - tokens(text + end):
            return text + end
        text = longer


def log_normal(rng, mean, deviation, least):
    spread = math.log(1 + (deviation / mean) ** 2)
    return max(least, rng.lognormvariate(math.log(mean) - spread / 2, math.sqrt(spread)))


def made(rng):
    question = grow(rng, opening, log_normal(rng, 61, 23, 20), " ", " How many are there in the end?")
    answer = grow(rng, working, log_normal(rng, 128, 55, 30), "\n", f"\nThe final answer is: {rng.randint(2, 999)}")
    return {"instruction": question, "output": answer}


def read(path, count):
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count))]
    return [{"instruction": r["question"], "output": r["answer"].replace("####", "The final answer is:")} if "question" in r
            else {"instruction": r["instruction"], "output": r["output"]} for r in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", help="take the first rows of this JSONL file instead")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows = read(options.data, options.rows) if options.data else [made(rng) for _ in range(options.rows)]
    for row in rows:
        json.dump(row, sys.stdout)
        print()


if __name__ == "__main__":
    main()

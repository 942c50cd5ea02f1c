#!/usr/bin/env python3
"""What run.sh measured, as CSV, ratios and bars.

  results.py ours FOLDER WARM_UP PREFIX     a CSV line of a training folder: median tokens/s of the steps after the warm-up, peak memory
  results.py peer FILE.json ROUND           a CSV line of peer_peft.py's result
  results.py ratios RESULTS.csv             ours against each configuration of the peer
  results.py bars RESULTS.csv               program, name, tokens/s: for the plot"""
import csv
import json
import os
import re
import statistics
import sys


def ours(folder, warm_up, prefix):
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as lines:
        rates = [json.loads(line)["tokens_per_s"] for line in lines][int(warm_up):]
    with open(os.path.join(folder, "report.txt"), encoding="utf-8") as report:
        text = report.read()
    memory = (re.search(r"of all \d+: (\d+) MiB", text) or re.search(r"of rank 0: (\d+) MiB", text)).group(1)
    print(f"{prefix},{statistics.median(rates):.1f},{memory},{len(rates)},{os.getloadavg()[0]:.1f}")


def peer(path, round_number):
    with open(path, encoding="utf-8") as file:
        r = json.load(file)
    print(f"{round_number},peer,{r['name']},{r['precision']},{r['dropout']},1,{r['threads']},{r['tokens_per_s']},{r['peak_rss_mib']},{r['steps']},"
          f"{os.getloadavg()[0]:.1f}")


def read(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ratios(path):
    """Ours ran just before each run of the peer: the ratio of each such pair, and their median over the rounds."""
    rows, pairs = read(path), {}
    for mine, other in zip(rows, rows[1:]):
        if mine["program"] == "breakwater" and other["program"] == "peer" and mine["name"].endswith("-before-" + other["name"]):
            pairs.setdefault(other["name"], []).append((mine, other))
    print(f"{'peer':16} {'precision':22} {'dropout':>7} {'peer tok/s':>11} {'ours tok/s':>11} {'ratio':>6} {'lowest':>6} {'peer MiB':>9} "
          f"{'ours MiB':>9}")
    for name, runs in pairs.items():
        each = [float(m["tokens_per_s"]) / float(o["tokens_per_s"]) for m, o in runs]
        median = [statistics.median(float(r[i][key]) for r in runs) for key in ("tokens_per_s", "peak_rss_mib") for i in (1, 0)]
        other = runs[0][1]
        print(f"{name:16} {other['precision']:22} {other['dropout']:>7} {median[0]:11.1f} {median[1]:11.1f} {statistics.median(each):6.2f} "
              f"{min(each):6.2f} {median[2]:9.0f} {median[3]:9.0f}")
    for row in rows:
        if row["program"] == "breakwater":
            print(f"ours, {row['name']}, {row['ranks']} x {row['threads']}: {row['tokens_per_s']} tokens/s, {row['peak_rss_mib']} MiB in all (memory that "
                  "ranks share is counted once for each)")


def bars(path):
    groups = {}
    for row in read(path):
        name = row["name"].split("-before-")[0]
        groups.setdefault((row["program"], name), []).append(float(row["tokens_per_s"]))
    for (program, name), rates in groups.items():
        print(program, name, f"{statistics.median(rates):.1f}")


ACTIONS = {"ours": ours, "peer": peer, "ratios": ratios, "bars": bars}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ACTIONS:
        sys.exit(__doc__)
    ACTIONS[sys.argv[1]](*sys.argv[2:])

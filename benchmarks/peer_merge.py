#!/usr/bin/env python3
"""What the QR merge costs when it is computed as its formulas are written, with the ReinforceLoRA as a dense matrix, in torch: the five targets
of a Llama-3-8B layer, random factors.

  peer_merge.py --layers 2 --threads 2

One line of JSON goes to stdout: seconds a layer for the formulas, and with the dense bf16 weights."""
import argparse
import json
import os
import resource
import statistics
import time

SHAPES = {"q": (4096, 4096), "v": (1024, 4096), "gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}  # out, in


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--layers", type=int, default=2)
    add("--threads", type=int, default=os.cpu_count())
    add("--rank", type=int, default=32)
    add("--alpha", type=float, default=0.1)
    add("--tau", type=float, default=0.01)
    add("--scale", type=float, default=0.5)
    return parser.parse_args()


def merged_update(torch, user, reinforce, options):
    """W_U + W_R - alpha Q Q^T W_R, Q a basis of the columns of B_U along the directions of A_U that count."""
    (b_user, a_user), (b_reinforce, a_reinforce) = user, reinforce
    w_user, w_reinforce = b_user @ a_user, b_reinforce @ a_reinforce
    values, vectors = torch.linalg.eigh(a_user @ a_user.T)
    kept = values > options.tau * values.max()
    b_effective = b_user if kept.all() else b_user @ vectors[:, kept]
    q, _ = torch.linalg.qr(b_effective)
    return w_user + w_reinforce - options.alpha * (q @ (q.T @ w_reinforce))


def main():
    options = read_options()
    os.environ.update(OMP_NUM_THREADS=str(options.threads), MKL_NUM_THREADS=str(options.threads))
    import torch
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)

    def factors(out, inner):
        return torch.randn(out, options.rank) * 0.02, torch.randn(options.rank, inner) * 0.02

    formulas, dense = [], []
    with torch.inference_mode():
        for _ in range(options.layers):
            update_s = write_s = 0.0
            for out, inner in SHAPES.values():
                user, reinforce, base = factors(out, inner), factors(out, inner), (torch.randn(out, inner) * 0.02).bfloat16()
                began = time.perf_counter()
                update = merged_update(torch, user, reinforce, options)
                update_s += time.perf_counter() - began
                (base.float() + options.scale * update).bfloat16()
                write_s += time.perf_counter() - began
            formulas.append(update_s)
            dense.append(write_s)
    print(json.dumps({
        "layers": options.layers, "threads": options.threads, "rank": options.rank, "formulas_s": round(statistics.median(formulas), 3),
        "dense_bf16_s": round(statistics.median(dense), 3), "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()

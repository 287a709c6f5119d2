#!/usr/bin/env python3
"""Causal attention of PyTorch on the shapes of wgmma_attention_bench: cuDNN and FlashAttention.

bf16, Q, K, V as slices of a packed (B, T, 3, H, D). Flops count the products below the diagonal: 2 of
forward, 5 of backward. Prints a table; --out FILE writes JSON lines.
"""

import argparse
import json
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def median_us(run, samples=20):
    for _ in range(4):
        run()
    times = []
    for _ in range(samples):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 500)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    out = parser.parse_args().out
    print(torch.__version__, "cuDNN", torch.backends.cudnn.version(), torch.cuda.get_device_name())
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for head_size in (128, 64):
            for queries in (1024, 2048, 4096):
                batches, heads = 16384 // queries, 2048 // head_size
                qkv = torch.randn(
                    batches, queries, 3, heads, head_size, device="cuda", dtype=torch.bfloat16
                ).requires_grad_()
                q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
                dout = torch.randn_like(q)
                flops = 2.0 * batches * heads * head_size * queries * queries
                try:
                    with sdpa_kernel(backend):
                        forward = median_us(
                            lambda: scaled_dot_product_attention(q, k, v, is_causal=True)
                        )
                        result = scaled_dot_product_attention(q, k, v, is_causal=True)
                        leaves = (q, k, v)
                        backward = median_us(
                            lambda: torch.autograd.grad(result, leaves, dout, retain_graph=True)
                        )
                except RuntimeError as error:
                    print(f"{backend.name} {head_size} {queries}: {str(error).splitlines()[0]}")
                    continue
                line = {
                    "backend": backend.name,
                    "shape": f"{batches}x{queries}x{heads}x{head_size}",
                    "forward_us": round(forward, 1),
                    "forward_tflops": round(flops / forward * 1e-6, 1),
                    "backward_us": round(backward, 1),
                    "backward_tflops": round(2.5 * flops / backward * 1e-6, 1),
                }
                print(*line.values())
                if out:
                    with open(out, "a") as file:
                        print(json.dumps(line), file=file)


if __name__ == "__main__":
    main()

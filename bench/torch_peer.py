#!/usr/bin/env python3
"""The PyTorch peer of Gradus' benchmarks: the same GPT, trained as a good PyTorch user would train it.

Fused QKV, F.scaled_dot_product_attention(is_causal=True), nn.Linear, tanh GELU, F.cross_entropy, tied
head, torch.optim.AdamW(fused=True), clip_grad_norm_; bf16 is torch.autocast with fp32 weights; --compile
is torch.compile of the model. Prints one JSON object; a step is timed from zero_grad to the loss on the
host. Needs the environment of scripts/python_env.sh.

Tokens are random, or a raw little-endian int32 file of shape (steps, batch, context + 1) given as
--batches. Weights are GPT-2's initialisation, or a safetensors file with Gradus' logical names given as
--init; with both, the losses of --metrics can be laid beside those of a Gradus run.
"""

import argparse
import contextlib
import json
import math
import pathlib
import statistics
import time

import numpy
import torch
import torch.nn as nn
import torch.nn.functional as F


def memory_bytes(field):
    """VmHWM (peak) or VmRSS (now) of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def cpu_model():
    """A virtual machine's model name can be as short as "AMD EPYC": family and model number say which."""
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return f"{fields.get('model name')} (family {fields.get('cpu family')}, model {fields.get('model')})"


class Block(nn.Module):
    def __init__(self, channels, heads, bias):
        super().__init__()
        self.heads = heads
        self.ln1 = nn.LayerNorm(channels, bias=bias)
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.out = nn.Linear(channels, channels, bias=bias)
        self.ln2 = nn.LayerNorm(channels, bias=bias)
        self.up = nn.Linear(channels, 4 * channels, bias=bias)
        self.down = nn.Linear(4 * channels, channels, bias=bias)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.qkv(self.ln1(x)).split(C, dim=2)
        )
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, layers, channels, heads, context, vocab, bias):
        super().__init__()
        self.token = nn.Embedding(vocab, channels)
        self.position = nn.Embedding(context, channels)
        self.blocks = nn.ModuleList(Block(channels, heads, bias) for _ in range(layers))
        self.ln_f = nn.LayerNorm(channels, bias=bias)
        self.head = nn.Linear(channels, vocab, bias=False)
        self.head.weight = self.token.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.position.weight[: tokens.size(1)]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)

    @torch.no_grad()
    def load_logical(self, path):
        """Weights from a safetensors file with Gradus' logical names; every tensor must be used."""
        from safetensors.torch import load_file

        stored = load_file(path)

        def take(parameter, *names):
            value = torch.cat([stored.pop(name) for name in names])
            if value.shape != parameter.shape:
                raise SystemExit(f"{path}: {names}: {tuple(value.shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(value)

        take(self.token.weight, "embedding.token.weight")
        take(self.position.weight, "embedding.position.weight")
        modules = {"ln_f": self.ln_f}
        for l, block in enumerate(self.blocks):
            modules |= {
                f"block.{l}.ln1": block.ln1,
                f"block.{l}.attention.out": block.out,
                f"block.{l}.ln2": block.ln2,
                f"block.{l}.mlp.up": block.up,
                f"block.{l}.mlp.down": block.down,
            }
            for kind, p in block.qkv.named_parameters():
                take(p, *(f"block.{l}.attention.{projection}.{kind}" for projection in "qkv"))
        for name, module in modules.items():
            for kind, p in module.named_parameters():
                take(p, f"{name}.{kind}")
        if stored:
            raise SystemExit(f"{path}: tensors that this model does not have: {sorted(stored)}")


def learning_rate(step, a):
    """Gradus' cosine schedule: linear warmup, then min_lr exactly at the last step; step counts from 0."""
    if step < a.warmup_steps:
        return a.lr * (step + 1) / a.warmup_steps
    progress = (step - a.warmup_steps + 1) / (a.steps - a.warmup_steps)
    return a.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (a.lr - a.min_lr)


def open_batches(path, a):
    size, row = path.stat().st_size, 4 * a.batch * (a.context + 1)
    if size == 0 or size % row:
        raise SystemExit(f"{path}: {size} bytes are not whole int32 batches of {a.batch} x {a.context + 1} tokens")
    return numpy.memmap(path, dtype="<i4", mode="r").reshape(-1, a.batch, a.context + 1)


def batch_source(path, steps, a):
    """step -> (tokens, targets), each (B, T) int64."""
    if path is None:
        generator = torch.Generator().manual_seed(a.seed)
        sequences = torch.randint(a.vocab, (min(steps, 16), a.batch, a.context + 1), generator=generator)
    else:
        stored = open_batches(path, a)
        if len(stored) < steps:
            raise SystemExit(f"{path}: {len(stored)} batches, {steps} steps")
        sequences = stored

    def get(step):
        sequence = torch.as_tensor(numpy.asarray(sequences[step % len(sequences)], dtype=numpy.int64))
        return sequence[:, :-1].contiguous(), sequence[:, 1:].contiguous()

    return get


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    model = p.add_argument_group("model")
    model.add_argument("--layers", type=int, required=True)
    model.add_argument("--channels", type=int, required=True)
    model.add_argument("--heads", type=int, required=True)
    model.add_argument("--context", type=int, required=True)
    model.add_argument("--vocab", type=int, required=True)
    model.add_argument("--no-bias", action="store_true")
    model.add_argument("--init", type=pathlib.Path, help="safetensors file with Gradus' logical names")
    run = p.add_argument_group("run")
    run.add_argument("--batch", type=int, required=True, help="sequences a step")
    run.add_argument("--steps", type=int, required=True)
    run.add_argument("--discard", type=int, default=3, help="first steps that are trained but not timed")
    run.add_argument("--max-seconds", type=float, default=math.inf, help="end after the step that passes this")
    run.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    run.add_argument("--compile", action="store_true")
    run.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    run.add_argument("--seed", type=int, default=1337)
    run.add_argument("--batches", type=pathlib.Path, help="raw int32 (steps, batch, context + 1)")
    run.add_argument("--eval-batches", type=pathlib.Path, help="the same format; mean loss at the end")
    run.add_argument("--metrics", type=pathlib.Path, help="JSONL, one object a step, keys as Gradus writes")
    optim = p.add_argument_group("optimizer")
    optim.add_argument("--lr", type=float, default=1e-3)
    optim.add_argument("--min-lr", type=float, default=1e-4)
    optim.add_argument("--warmup-steps", type=int, default=100)
    optim.add_argument("--weight-decay", type=float, default=0.1)
    optim.add_argument("--beta1", type=float, default=0.9)
    optim.add_argument("--beta2", type=float, default=0.99)
    optim.add_argument("--clip-norm", type=float, default=1.0)
    a = p.parse_args()
    if a.steps <= a.discard:
        p.error(f"--steps {a.steps} leaves nothing to time after --discard {a.discard}")
    return a


def main():
    a = parse_arguments()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    baseline = memory_bytes("VmRSS")

    model = GPT(a.layers, a.channels, a.heads, a.context, a.vocab, not a.no_bias)
    if a.init:
        model.load_logical(a.init)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": a.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(a.beta1, a.beta2),
        fused=True,
    )
    forward = torch.compile(model) if a.compile else model
    autocast = (
        torch.autocast("cpu", dtype=torch.bfloat16) if a.precision == "bf16" else contextlib.nullcontext()
    )
    batches = batch_source(a.batches, a.steps, a)
    metrics = a.metrics.open("w") if a.metrics else None
    tokens_per_step = a.batch * a.context

    seconds, cpu_seconds, loss = [], [], math.nan
    started = time.perf_counter()
    for step in range(a.steps):
        tokens, targets = batches(step)
        lr = learning_rate(step, a)
        start, cpu_start = time.perf_counter(), time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = forward(tokens, targets)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, a.clip_norm)
        optimizer.step()
        loss = loss.item()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        if metrics:
            record = {
                "event": "train", "step": step, "loss": loss, "grad_norm": norm.item(), "lr": lr,
                "tokens_per_s": tokens_per_step / seconds[-1], "step_ms": 1e3 * seconds[-1],
            }
            metrics.write(json.dumps(record) + "\n")
        # A compiled model's first step is mostly compilation: there is a second one, come what may.
        if time.perf_counter() - started > a.max_seconds and len(seconds) > int(a.compile):
            break
    wall = time.perf_counter() - started
    peak = memory_bytes("VmHWM")

    discarded = min(a.discard, len(seconds) - 1)  # fewer where --max-seconds ended the run early
    timed = seconds[discarded:]
    step_s = statistics.median(timed)
    result = {
        "event": "bench",
        "framework": "torch",
        "mode": "compile" if a.compile else "eager",
        "precision": a.precision,
        "tokens_per_s": tokens_per_step / step_s,
        "step_ms": 1e3 * step_s,
        "step_ms_min": 1e3 * min(timed),
        "step_ms_max": 1e3 * max(timed),
        "cpu_ms": 1e3 * statistics.median(cpu_seconds[discarded:]),  # of all threads, spinning included
        "steps_timed": len(timed),
        "first_step_s": seconds[0],
        "wall_s": wall,
        "peak_bytes": peak,
        "baseline_bytes": baseline,
        "loss": loss,
        "parameters": sum(p.numel() for p in parameters),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if a.eval_batches:
        source = batch_source(a.eval_batches, count := len(open_batches(a.eval_batches, a)), a)
        with torch.no_grad(), autocast:
            result["eval_loss"] = statistics.fmean(model(*source(i)).item() for i in range(count))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Golden values from PyTorch for Gradus' tests: loss, gradients and an AdamW loss curve of a tiny GPT-2.

Writes, next to this script (or into --out):
  gpt2_tiny.safetensors     weights, one batch, loss and every gradient in fp32, fp64 and bf16 autocast
  adamw_curve.safetensors   20 AdamW steps from those weights, and the band of one-ulp perturbations
  manifest.json             versions, seeds, settings, and what each tensor is
--check regenerates in memory and compares with the committed files instead of writing.

The model is the pre-LN GPT-2 (Radford et al. 2019): learned positions, tanh GELU, biases, head tied to
the token embedding. Sizes: B batch, T sequence, C channels, H heads, D = C/H, V vocabulary, L layers,
F = 4C. None of C, D, F, T, V and B*T is a multiple of a vector width, so every kernel meets its tail.
"""

import argparse
import json
import math
import pathlib
import platform
import sys

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

SEED = 3
MODEL = {"vocab_size": 61, "context": 13, "channels": 21, "heads": 3, "layers": 2, "layernorm_eps": 1e-5}
BATCH = 3
ADAMW = {
    "steps": 20, "warmup_steps": 5, "lr": 5e-2, "min_lr": 5e-3, "beta1": 0.9, "beta2": 0.95,
    "eps": 1e-8, "weight_decay": 0.1, "clip_norm": 1.0,
}
PERTURBATIONS = 64
BF16_BATCHES = 32
IGNORED = -1  # a target that takes no part in the loss


# --- Model -----------------------------------------------------------------------------------------


def parameter_shapes():
    """Logical name -> shape, in the order of the forward pass. Matrices are (out_features, in_features)."""
    V, T, C = MODEL["vocab_size"], MODEL["context"], MODEL["channels"]
    shapes = {"embedding.token.weight": (V, C), "embedding.position.weight": (T, C)}

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (C,)

    def linear(name, out_features, in_features):
        shapes[f"{name}.weight"] = (out_features, in_features)
        shapes[f"{name}.bias"] = (out_features,)

    for l in range(MODEL["layers"]):
        norm(f"block.{l}.ln1")
        for projection in ("q", "k", "v", "out"):
            linear(f"block.{l}.attention.{projection}", C, C)
        norm(f"block.{l}.ln2")
        linear(f"block.{l}.mlp.up", 4 * C, C)
        linear(f"block.{l}.mlp.down", C, 4 * C)
    norm("ln_f")
    return shapes


def initial_weights(generator):
    """Larger than a training run's N(0, 0.02): attention must be far from uniform and every bias and
    layernorm weight away from its neutral value, or an error in their gradients would not show."""
    weights = {}
    for name, shape in parameter_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.split(".")[-2].startswith("ln"):
            weights[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif name.startswith("embedding"):
            weights[name] = 0.3 * noise
        elif name.endswith("bias"):
            weights[name] = 0.1 * noise
        else:
            weights[name] = noise * (shape[1] ** -0.5)
    return weights


def forward(w, tokens, targets):
    """Mean cross-entropy over the targets that are not IGNORED; w maps logical names to tensors."""
    B, T = tokens.shape
    C, H = MODEL["channels"], MODEL["heads"]

    def norm(x, name):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"], MODEL["layernorm_eps"])

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def split_heads(x):
        return x.view(B, T, H, C // H).transpose(1, 2)  # (B, H, T, D)

    x = w["embedding.token.weight"][tokens] + w["embedding.position.weight"][:T]
    for l in range(MODEL["layers"]):
        block = f"block.{l}"
        a = norm(x, f"{block}.ln1")
        q, k, v = (split_heads(linear(a, f"{block}.attention.{p}")) for p in ("q", "k", "v"))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(a.transpose(1, 2).reshape(B, T, C), f"{block}.attention.out")
        a = F.gelu(linear(norm(x, f"{block}.ln2"), f"{block}.mlp.up"), approximate="tanh")
        x = x + linear(a, f"{block}.mlp.down")
    logits = F.linear(norm(x, "ln_f"), w["embedding.token.weight"])  # (B, T, V)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()  # what CUDA's autocast does by itself, and CPU's does not
    total = F.cross_entropy(
        logits.view(B * T, -1), targets.view(-1), ignore_index=IGNORED, reduction="sum"
    )
    return total / (targets != IGNORED).sum()


def loss_and_gradients(weights, tokens, targets, dtype, autocast=False):
    w = {name: value.to(dtype, copy=True).requires_grad_() for name, value in weights.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = forward(w, tokens, targets)
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in w.items()}


# --- Data ------------------------------------------------------------------------------------------


def draw_batch(generator):
    """Tokens (B, T) of a noisy affine sequence, so that there is something to learn, and targets with
    about one in six IGNORED."""
    V, T = MODEL["vocab_size"], MODEL["context"]
    sequence = torch.empty((BATCH, T + 1), dtype=torch.int64)
    sequence[:, 0] = torch.randint(V, (BATCH,), generator=generator)
    for t in range(T):
        noise = torch.randint(V, (BATCH,), generator=generator)
        surprise = torch.rand(BATCH, generator=generator) < 0.2
        sequence[:, t + 1] = torch.where(surprise, noise, (5 * sequence[:, t] + 7) % V)
    targets = sequence[:, 1:].clone()
    targets[torch.rand((BATCH, T), generator=generator) < 1 / 6] = IGNORED
    return sequence[:, :-1].contiguous(), targets


# --- Optimizer -------------------------------------------------------------------------------------


def learning_rate(step):
    """Linear warmup, then a cosine that reaches min_lr exactly at the last step; step counts from 0."""
    warmup, steps, lr, min_lr = (ADAMW[k] for k in ("warmup_steps", "steps", "lr", "min_lr"))
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup + 1) / (steps - warmup)
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (lr - min_lr)


@torch.no_grad()
def move_one_ulp(parameters, generator):
    """Every element to the next fp32 number, up or down at random."""
    for p in parameters:
        up = torch.rand(p.shape, generator=generator) < 0.5
        p.copy_(torch.nextafter(p, torch.where(up, math.inf, -math.inf)))


def train(weights, batches, dtype, perturbation=None):
    """Loss and global gradient norm (before clipping) of every step. With a generator as perturbation,
    every weight is moved by one ulp before each step."""
    w = {name: value.to(dtype, copy=True).requires_grad_() for name, value in weights.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in w.values() if p.dim() == 2], "weight_decay": ADAMW["weight_decay"]},
            {"params": [p for p in w.values() if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(ADAMW["beta1"], ADAMW["beta2"]),
        eps=ADAMW["eps"],
        foreach=False,
    )
    losses, norms = [], []
    for step, (tokens, targets) in enumerate(batches):
        if perturbation is not None:
            move_one_ulp(w.values(), perturbation)
        optimizer.zero_grad()
        loss = forward(w, tokens, targets)
        loss.backward()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in w.values()))
        # The definition of clipping; torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.
        if norm > ADAMW["clip_norm"]:
            for p in w.values():
                p.grad.mul_(ADAMW["clip_norm"] / norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(norms, dtype=torch.float64)


# --- Files -----------------------------------------------------------------------------------------


def bf16_errors(rounded):
    """One batch's largest error of one small tensor is a matter of luck; over many batches it is not."""
    generator = torch.Generator().manual_seed(SEED + 1)
    batches = [draw_batch(generator) for _ in range(BF16_BATCHES)]
    loss_errors, errors = [], {name: [] for name in rounded}
    for tokens, targets in batches:
        loss, grad = loss_and_gradients(rounded, tokens, targets, torch.float32, autocast=True)
        loss64, grad64 = loss_and_gradients(rounded, tokens, targets, torch.float64)
        loss_errors.append(loss.double() - loss64)
        for name in rounded:
            errors[name].append(grad[name].double() - grad64[name])

    def largest_and_rms(values):
        stacked = torch.stack(values)
        return torch.stack([stacked.abs().max(), stacked.square().mean().sqrt()])

    tensors = {f"bf16.error.{name}": largest_and_rms(values) for name, values in errors.items()}
    tensors["bf16.error.loss"] = largest_and_rms(loss_errors)
    tensors["bf16.tokens"] = torch.stack([tokens for tokens, _ in batches]).int()
    tensors["bf16.targets"] = torch.stack([targets for _, targets in batches]).int()
    return tensors


def gpt2_tiny(weights, tokens, targets):
    loss32, grad32 = loss_and_gradients(weights, tokens, targets, torch.float32)
    loss64, grad64 = loss_and_gradients(weights, tokens, targets, torch.float64)
    rounded = {name: value.bfloat16().float() for name, value in weights.items()}
    bf16_loss, bf16_grad = loss_and_gradients(rounded, tokens, targets, torch.float32, autocast=True)
    bf16_loss64, bf16_grad64 = loss_and_gradients(rounded, tokens, targets, torch.float64)

    bf16_error = bf16_errors(rounded)

    print(f"loss  fp64 {loss64.item():.15f}  fp32 {loss32.item():.9f}")
    print(f"loss  of bf16 weights: fp64 {bf16_loss64.item():.15f}  autocast {bf16_loss.item():.9f}")
    print("\ngradient: largest magnitude; relative to it, the error of fp32 and of bf16 autocast on this")
    print(f"batch, and bf16's largest and RMS error over {BF16_BATCHES} batches")
    for name, g in grad64.items():
        scale = g.abs().max()
        error = bf16_error[f"bf16.error.{name}"] / scale
        print(
            f"  {name:30} {scale:.3e}  {(grad32[name] - g).abs().max() / scale:.2e}  "
            f"{(bf16_grad[name] - bf16_grad64[name]).abs().max() / scale:.2e}  {error[0]:.2e} {error[1]:.2e}"
        )

    tensors = weights | bf16_error
    tensors |= {"tokens": tokens.int(), "targets": targets.int()}
    tensors |= {"loss_fp32": loss32.view(1), "loss_fp64": loss64.view(1)}
    tensors |= {"bf16.loss": bf16_loss.view(1), "bf16.loss64": bf16_loss64.view(1)}
    for prefix, gradients in (
        ("grad", grad32), ("grad64", grad64), ("bf16.grad", bf16_grad), ("bf16.grad64", bf16_grad64),
    ):
        tensors |= {f"{prefix}.{name}": value for name, value in gradients.items()}
    return tensors


def adamw_curve(weights, generator):
    batches = [draw_batch(generator) for _ in range(ADAMW["steps"])]
    loss32, norm32 = train(weights, batches, torch.float32)
    loss64, norm64 = train(weights, batches, torch.float64)
    curves = [train(weights, batches, torch.float32, generator) for _ in range(PERTURBATIONS)]
    losses = torch.stack([loss for loss, _ in curves])
    norms = torch.stack([norm for _, norm in curves])

    def band(values, truth):
        # A loss near 4 lies on a grid of 5e-7, so the lowest and highest of one step can coincide by
        # chance; what rounding has done by one step it does not undo later: hence the running maximum.
        return (values - truth).abs().max(0).values.cummax(0).values

    loss_band, norm_band = band(losses, loss64), band(norms, norm64)
    rates = torch.tensor([learning_rate(s) for s in range(ADAMW["steps"])], dtype=torch.float64)

    print(f"\n20 AdamW steps; lowest, highest and band of {PERTURBATIONS} perturbed curves, less fp64")
    print("step  lr        loss fp64    fp32       lowest     highest    band      norm")
    for s in range(ADAMW["steps"]):
        low, high = losses[:, s].min() - loss64[s], losses[:, s].max() - loss64[s]
        clipped = "  clipped" if norm64[s] > ADAMW["clip_norm"] else ""
        print(
            f"{s:4}  {rates[s]:.2e}  {loss64[s]:.9f}  {loss32[s] - loss64[s]:+.2e}  {low:+.2e}  "
            f"{high:+.2e}  {loss_band[s]:.2e}  {norm64[s]:.4f}{clipped}"
        )
    clipped = int((norm64 > ADAMW["clip_norm"]).sum())
    if not 0 < clipped < ADAMW["steps"]:
        sys.exit(f"{clipped} of {ADAMW['steps']} steps are clipped: the curve must have both kinds")
    return {
        "tokens": torch.stack([tokens for tokens, _ in batches]).int(),
        "targets": torch.stack([targets for _, targets in batches]).int(),
        "lr": rates,
        "loss_fp32": loss32.float(), "loss_fp64": loss64,
        "loss_min": losses.min(0).values.float(), "loss_max": losses.max(0).values.float(),
        "loss_band": loss_band,
        "grad_norm_fp32": norm32, "grad_norm_fp64": norm64, "grad_norm_band": norm_band,
    }


def manifest():
    return {
        "made_by": "tests/golden/make_goldens.py",
        "seed": SEED,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "model": MODEL,
        "batch": BATCH,
        "ignored_target": IGNORED,
        # softmax does not change when all scores of a row do: a key bias has no effect on the loss.
        "zero_by_mathematics": [f"block.{l}.attention.k.bias" for l in range(MODEL["layers"])],
        "adamw": ADAMW,
        "perturbations": PERTURBATIONS,
        "files": {
            "gpt2_tiny.safetensors": {
                "<name>": "weights, fp32, by logical name; no head.weight, the head is tied",
                "tokens, targets": "(B, T) int32; loss = sum over unmasked targets / their count",
                "loss_fp32, grad.<name>": "all in fp32",
                "loss_fp64, grad64.<name>": "the same fp32 weights, all in fp64",
                "bf16.loss, bf16.grad.<name>": "weights rounded to bf16 (all of them, to nearest even) and "
                "held in fp32, torch.autocast('cpu', bfloat16): matrix products and attention in bf16; "
                "embeddings, layernorm, residual stream, softmax of the loss and stored gradients fp32",
                "bf16.loss64, bf16.grad64.<name>": "the same rounded weights, all in fp64",
                "bf16.tokens, bf16.targets": f"({BF16_BATCHES}, B, T) int32, further batches for the next line",
                "bf16.error.<name>, bf16.error.loss": "(2) fp64: largest and RMS of autocast's error against "
                "fp64, both with the rounded weights, over all elements and all of those batches",
            },
            "adamw_curve.safetensors": {
                "tokens, targets": "(steps, B, T) int32, one batch a step; the start is gpt2_tiny's weights",
                "lr": "(steps) fp64, the rate of each step",
                "loss_fp32, loss_fp64, grad_norm_fp32, grad_norm_fp64": "(steps), before the step's update; "
                "the norm is global and before clipping; scale = min(1, clip_norm / norm)",
                "loss_min, loss_max": "(steps), over fp32 curves in which every weight is moved by one ulp, up "
                "or down at random, before each step",
                "loss_band, grad_norm_band": "(steps), half width around the fp64 curve: the perturbed curves' "
                "largest distance from it up to that step. A curve is inside when |loss - loss_fp64| <= loss_band",
                "decay": "every 2-D parameter, embeddings included; decoupled: w *= 1 - lr * weight_decay",
            },
        },
    }


def check(folder, files):
    """Other CPUs and thread counts round differently, so equality is within each dtype's reach."""
    reach = {torch.int32: 0.0, torch.float32: 1e-5, torch.float64: 1e-11}
    failures = 0
    for filename, tensors in files.items():
        with safe_open(folder / filename, "pt") as stored:
            if set(stored.keys()) != set(tensors):
                sys.exit(f"{folder / filename}: other tensors than the script makes")
            for name, value in tensors.items():
                tolerance = reach[value.dtype]
                if name.startswith(("bf16.loss", "bf16.grad.")):
                    tolerance = 2.0**-6  # two CPUs' bf16 matrix products differ by a rounding or so
                if "error" in name or "band" in name:
                    tolerance = 0.5  # the size of rounding errors, which differ in each of them
                if name == "grad_norm_fp32":
                    tolerance = 1e-4  # an fp32 curve, kept in fp64
                # A tensor that is zero by mathematics holds rounding errors alone.
                scale = max(value.abs().max().item(), 1e-12 if tolerance == 0.5 else 1e-2)
                error = (stored.get_tensor(name).double() - value.double()).abs().max().item() / scale
                if error > tolerance:
                    failures += 1
                    print(f"{filename}: {name}: differs by {error:.2e} of its largest, over {tolerance:.0e}")
    if failures:
        sys.exit(f"{failures} tensors differ from the committed files")
    print("\nthe committed files agree with this run")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--check", action="store_true", help="compare with the files in --out, write nothing")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(SEED)
    weights = initial_weights(generator)
    tokens, targets = draw_batch(generator)
    files = {
        "gpt2_tiny.safetensors": gpt2_tiny(weights, tokens, targets),
        "adamw_curve.safetensors": adamw_curve(weights, generator),
    }
    if arguments.check:
        return check(arguments.out, files)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for filename, tensors in files.items():
        save_file({name: value.contiguous() for name, value in tensors.items()}, arguments.out / filename)
    (arguments.out / "manifest.json").write_text(json.dumps(manifest(), indent=2) + "\n")
    for path in sorted(arguments.out.glob("*.safetensors")):
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

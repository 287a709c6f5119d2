#!/usr/bin/env python3
"""The King James text by character: loss and wall time of configs/kjv_char_cpu.yaml in Gradus, beside the
same model in PyTorch on the very same training batches, both evaluated on the same validation windows.

    scripts/quickstart.sh            # builds, and prepares data/kjv
    scripts/python_env.sh            # PyTorch, in .venv
    bench/compare_kjv.py --gradus build/quickstart/bin/gradus

Prints one table and writes bench/results/kjv_char_cpu.md.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from compare_training import ROOT, machine, revision

CONFIG = ROOT / "configs/kjv_char_cpu.yaml"


def run(command):
    begin = time.monotonic()
    done = subprocess.run([str(c) for c in command], cwd=ROOT, text=True, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout, time.monotonic() - begin


def last(lines, event):
    return [line for line in lines if line.get("event") == event][-1]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--gradus", type=pathlib.Path, default=ROOT / "build/release/bin/gradus")
    p.add_argument("--python", type=pathlib.Path, default=ROOT / ".venv/bin/python")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--seed", type=int, default=1337)
    a = p.parse_args()
    measured, load = revision(), os.getloadavg()[0]

    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        settings = [f"train.steps={a.steps}", f"seed={a.seed}"]
        run([a.gradus, "bench", "batches", CONFIG, *settings, "--out", work / "train.bin"])
        run([a.gradus, "bench", "batches", CONFIG, *settings, "--steps", 20, "--val",
             "--out", work / "val.bin"])

        _, gradus_wall = run([a.gradus, "train", CONFIG, *settings, f"eval.tokens={20 * 12 * 64}",
                               f"run.dir={work / 'run'}"])
        metrics = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
        ours, ours_eval = last(metrics, "train"), last(metrics, "eval")

        info, _ = run([a.gradus, "data", "inspect", "data/kjv"])
        vocabulary = re.search(r"vocabulary\s+(\d+)", info).group(1)
        out, torch_wall = run([
            a.python, ROOT / "bench/torch_peer.py", "--layers", 4, "--channels", 128, "--heads", 4,
            "--context", 64, "--vocab", vocabulary, "--batch", 12, "--steps", a.steps,
            "--precision", "fp32", "--batches", work / "train.bin",
            "--eval-batches", work / "val.bin", "--seed", a.seed])
        peer = json.loads(out.strip().splitlines()[-1])

    host = machine()
    table = [
        f"# {CONFIG.name}: {a.steps} steps",
        "",
        f"{host['cpu']}, {host['cores']} cores ({', '.join(host['instructions']) or 'no AVX2'}), "
        f"{host['system']}; {datetime.date.today().isoformat()}; Gradus {measured}; "
        f"load average before {load:.2f}. PyTorch {peer.get('torch', '?')}, eager, "
        "fused AdamW. One run each, one after the other; wall time is the whole process.",
        "",
        "| | validation loss, nats a character | wall time, s | tokens/s at the end |",
        "| --- | ---: | ---: | ---: |",
        f"| Gradus | {ours_eval['loss']:.4f} | {gradus_wall:.1f} | {ours['tokens_per_s']:.0f} |",
        f"| PyTorch | {peer['eval_loss']:.4f} | {torch_wall:.1f} | {peer['tokens_per_s']:.0f} |",
        "",
    ]
    print("\n".join(table))
    results = ROOT / "bench/results"
    results.mkdir(exist_ok=True)
    (results / f"{CONFIG.stem}.md").write_text("\n".join(table))


if __name__ == "__main__":
    main()

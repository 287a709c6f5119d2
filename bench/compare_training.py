#!/usr/bin/env python3
"""Whole training steps of Gradus against PyTorch (torch_peer.py), in one interleaved sitting.

Each round runs every contender once, one after the other, so that a drift of the machine meets all of
them; a figure is the median over the rounds, and the ratio is Gradus' median tokens/s over that of the
better of PyTorch's modes. Writes bench/results/NAME.json (every run) and NAME.md (the table it prints).

  scripts/python_env.sh                                   # once
  bench/compare_training.py --name my_laptop              # all cases
  bench/compare_training.py --name quick --cases char --precisions fp32 --rounds 3 --steps 50

Needs only Python's standard library; the peer runs in the environment of scripts/python_env.sh.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Case:
    title: str
    layers: int
    channels: int
    heads: int
    context: int
    batch: int
    vocab: int
    steps: int  # timed ones, in each run


CASES = {
    "char": Case("char 4L 128C, B12 T64", 4, 128, 4, 64, 12, 80, 200),
    "gpt2-t64": Case("GPT-2 124M, B4 T64", 12, 768, 12, 64, 4, 50257, 5),
    "gpt2-t256": Case("GPT-2 124M, B4 T256", 12, 768, 12, 256, 4, 50257, 4),
}
PRECISIONS = ("fp32", "bf16")
MODES = ("eager", "compile")
DISCARDED = 3  # first steps of each run: caches, JIT and memory are not warm yet


def shown(path):
    """A path as commands, which run in the repository's root, and records name it."""
    path = pathlib.Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def gradus_command(a, case, precision):
    return [
        shown(a.gradus), "bench", "step", shown(a.config),
        "device=cpu",
        f"model.layers={case.layers}", f"model.channels={case.channels}", f"model.heads={case.heads}",
        f"model.context={case.context}", f"model.vocab_size={case.vocab}",
        "model.dropout=0.0", "model.bias=true", "model.tied_embeddings=true",
        f"train.micro_batch={case.batch}", f"train.global_batch={case.batch}",
        f"train.precision={precision}", "train.recompute=none",
        "--steps", str((a.steps or case.steps) + DISCARDED),
    ]


def torch_command(a, case, precision, mode):
    command = [
        shown(a.python), "bench/torch_peer.py",
        "--layers", case.layers, "--channels", case.channels, "--heads", case.heads,
        "--context", case.context, "--vocab", case.vocab, "--batch", case.batch,
        "--precision", precision, "--threads", a.threads,
        "--steps", (a.steps or case.steps) + DISCARDED, "--discard", DISCARDED,
        "--max-seconds", a.peer_seconds,
    ]
    return [str(word) for word in command] + (["--compile"] if mode == "compile" else [])


def run(command, threads):
    """The object with "event": "bench" that the command prints; everything else it says is dropped."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"exit status {done.returncode}: {' '.join(command)}\n{done.stderr[-4000:]}")
    for line in done.stdout.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and record.get("event") == "bench":
            missing = {"tokens_per_s", "step_ms", "peak_bytes", "loss"} - record.keys()
            if missing:
                sys.exit(f"the result lacks {sorted(missing)}: {' '.join(command)}\n{line}")
            return record
    sys.exit(f"no result on stdout: {' '.join(command)}\n{done.stdout[-4000:]}")


def output_of(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({error})"


def revision():
    """What a record says was measured: nothing that is in no commit."""
    name = output_of("git", "describe", "--always")
    if output_of("git", "status", "--porcelain", "--", ".", ":!bench/results"):
        sys.exit("the working tree has changes: commit them, so that the record can name what it measured")
    return name


def machine():
    fields = {}
    for line in output_of("lscpu").splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    flags = fields.get("Flags", "").split()
    instructions = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    name, family, model = (fields.get(k, "?") for k in ("Model name", "CPU family", "Model"))
    return {
        "cpu": f"{name} (family {family}, model {model})",
        "instructions": instructions,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
    }


def medians(runs):
    result = {k: statistics.median(r[k] for r in runs) for k in ("tokens_per_s", "step_ms", "peak_bytes", "loss")}
    speeds = [r["tokens_per_s"] for r in runs]
    return result | {"spread": (max(speeds) - min(speeds)) / statistics.median(speeds)}


def measure(a, case, precision):
    contenders = {}
    if not a.peer_only:
        contenders["gradus"] = gradus_command(a, case, precision)
    for mode in a.modes:
        contenders[f"torch {mode}"] = torch_command(a, case, precision, mode)
    runs = {name: [] for name in contenders}
    for round_number in range(1, a.rounds + 1):
        for name, command in contenders.items():
            record = run(command, a.threads)
            runs[name].append(record)
            print(
                f"  {case.title}, {precision}, round {round_number}/{a.rounds}, {name}: "
                f"{record['tokens_per_s']:.1f} tokens/s, {record['peak_bytes'] / 2**20:.0f} MiB",
                file=sys.stderr, flush=True,
            )
    summary = {name: medians(of) for name, of in runs.items()}
    result = {
        "case": case.title,
        "settings": dataclasses.asdict(case),
        "precision": precision,
        "commands": {name: " ".join(command) for name, command in contenders.items()},
        "runs": runs,
        "medians": summary,
    }
    peers = {name: m for name, m in summary.items() if name != "gradus"}
    if peers:
        result["best_peer"] = max(peers, key=lambda name: peers[name]["tokens_per_s"])
    if peers and "gradus" in summary:
        best = peers[result["best_peer"]]
        result["ratio"] = summary["gradus"]["tokens_per_s"] / best["tokens_per_s"]
        result["memory_ratio"] = summary["gradus"]["peak_bytes"] / best["peak_bytes"]
    return result


def table(report):
    m, v = report["machine"], report["versions"]
    lines = [
        f"# {report['name']}",
        "",
        f"{m['cpu']}, {m['cores']} cores ({', '.join(m['instructions']) or 'no AVX2'}), "
        f"{m['memory_bytes'] / 2**30:.0f} GiB, {m['system']}; {report['threads']} threads; {report['date']}.",
        f"Gradus {v['gradus']}; PyTorch {v['torch']}. Medians of {report['rounds']} interleaved rounds; "
        f"load average before {report['load_before']:.2f}, after {report['load_after']:.2f} "
        "(the benchmark's own threads are in the second).",
        "",
        "Command: `" + report["command"] + "`",
        "",
        "| case | precision | contender | tokens/s | step, ms | spread | peak, MiB | loss |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in report["results"]:
        for name, x in r["medians"].items():
            lines.append(
                f"| {r['case']} | {r['precision']} | {name} | {x['tokens_per_s']:.1f} | {x['step_ms']:.1f} | "
                f"{100 * x['spread']:.0f}% | {x['peak_bytes'] / 2**20:.0f} | {x['loss']:.3f} |"
            )
    compared = [r for r in report["results"] if "ratio" in r]
    if compared:
        lines += ["", "| case | precision | best peer | Gradus / peer, tokens/s | Gradus / peer, peak memory |"]
        lines += ["| --- | --- | --- | ---: | ---: |"]
        for r in compared:
            lines.append(
                f"| {r['case']} | {r['precision']} | {r['best_peer']} | {r['ratio']:.2f} | {r['memory_ratio']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def parse_arguments():
    def choices(allowed):
        def parse(text):
            chosen = text.split(",")
            for word in chosen:
                if word not in allowed:
                    raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
            return chosen

        return parse

    venv = pathlib.Path(os.environ.get("GRADUS_VENV", ROOT / ".venv"))
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--name", required=True, help="of the files in bench/results")
    p.add_argument("--cases", type=choices(CASES), default=list(CASES), help=",".join(CASES))
    p.add_argument("--precisions", type=choices(PRECISIONS), default=list(PRECISIONS), help="fp32,bf16")
    p.add_argument("--modes", type=choices(MODES), default=list(MODES), help="PyTorch's: eager,compile")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=0, help="timed steps of each run; 0: the case's own")
    p.add_argument(
        "--peer-seconds", type=float, default=300,
        help="a PyTorch run ends after the step that passes this (bf16 without AVX-512 takes minutes a step)",
    )
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--peer-only", action="store_true", help="PyTorch alone")
    p.add_argument("--gradus", type=pathlib.Path, default=ROOT / "build/release/bin/gradus")
    p.add_argument("--config", type=pathlib.Path, default=ROOT / "configs/kjv_char_cpu.yaml")
    p.add_argument("--python", type=pathlib.Path, default=venv / "bin/python")
    a = p.parse_args()
    if not a.python.exists():
        p.error(f"{a.python} does not exist: run scripts/python_env.sh, or set GRADUS_VENV")
    if not a.peer_only and not a.gradus.exists():
        p.error(f"{a.gradus} does not exist: cmake --preset release && cmake --build --preset release")
    return a


def main():
    a = parse_arguments()
    load_before = os.getloadavg()[0]
    if load_before > 0.3 * os.cpu_count():
        print(f"warning: the load average is {load_before:.2f}: the machine is not idle", file=sys.stderr)
    torch_version = output_of(str(a.python), "-c", "import torch; print(torch.__version__)")
    report = {
        "name": a.name,
        "date": datetime.date.today().isoformat(),
        "command": "bench/compare_training.py " + " ".join(sys.argv[1:]),
        "machine": machine(),
        "versions": {
            "gradus": "not run" if a.peer_only else revision(),
            "torch": torch_version,
            "python": platform.python_version(),
        },
        "threads": a.threads,
        "rounds": a.rounds,
        "load_before": load_before,
        "results": [],
    }
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    for name in a.cases:
        for precision in a.precisions:
            report["results"].append(measure(a, CASES[name], precision))
            # After each case: an interrupted sitting of hours keeps what it has.
            report["load_after"] = os.getloadavg()[0]
            (folder / f"{a.name}.json").write_text(json.dumps(report, indent=1) + "\n")
            (folder / f"{a.name}.md").write_text(table(report))
    print(table(report), end="")


if __name__ == "__main__":
    main()

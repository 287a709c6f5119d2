#!/usr/bin/env python3
"""Whole training steps on one rank against two ranks with half its threads each, interleaved.

Each round runs one rank and then every layout; a figure is the median over the rounds. A last run of each layout
is traced: how long its first rank computed, waited and communicated in a step, and how much of the
communication its own computation hid. Writes bench/results/NAME.json and NAME.md.

  bench/compare_layouts.py --name my_laptop
  bench/compare_layouts.py --name quick --cases char --rounds 3

Needs only Python's standard library, and mpirun.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

from compare_training import CASES, ROOT, machine, revision, shown

LAYOUTS = {
    "dp 2, ZeRO-0": ["parallel.dp=2", "parallel.zero=0"],
    "dp 2, ZeRO-1": ["parallel.dp=2", "parallel.zero=1"],
    "dp 2, ZeRO-2": ["parallel.dp=2", "parallel.zero=2"],
    "tp 2": ["parallel.tp=2"],
    "tp 2, sequence": ["parallel.tp=2", "parallel.sequence=true"],
    "pp 2, 2 micro-batches": ["parallel.pp=2"],
}


def command_of(a, case, ranks, settings):
    # Replicas and stages work on halves of the batch; one rank and tensor parallelism on all of it.
    halves = any(key.startswith(("parallel.dp", "parallel.pp")) for key in settings)
    return (["mpirun", "-np", str(ranks)] if ranks > 1 else []) + [
        shown(a.gradus), "bench", "step", "configs/kjv_char_cpu.yaml", "device=cpu",
        f"model.layers={case.layers}", f"model.channels={case.channels}", f"model.heads={case.heads}",
        f"model.context={case.context}", f"model.vocab_size={case.vocab}", "train.precision=fp32",
        f"train.micro_batch={case.batch // 2 if halves else case.batch}", f"train.global_batch={case.batch}",
        f"train.threads={a.threads if ranks == 1 else max(1, a.threads // ranks)}",
        *settings, "--steps", str(a.steps or case.steps),
    ]


def run(command):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OMP_NUM")}
    script = f". scripts/mpi_env.sh && exec {' '.join(repr(word) for word in command)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode != 0:
        sys.exit(f"exit status {done.returncode}: {' '.join(command)}\n{done.stderr[-4000:]}")
    return next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))


def measure(a, case):
    contenders = {f"one rank, threads: {a.threads}": command_of(a, case, 1, [])}
    contenders |= {name: command_of(a, case, 2, settings) for name, settings in LAYOUTS.items()}
    runs = {name: [] for name in contenders}
    for number in range(1, a.rounds + 1):
        for name, command in contenders.items():
            runs[name].append(run(command))
            print(f"  {case.title}, round {number}/{a.rounds}, {name}: "
                  f"{runs[name][-1]['tokens_per_s']:.1f} tokens/s", file=sys.stderr, flush=True)
    traces = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in contenders.items():
            if command[0] == "mpirun":
                traces[name] = run(command + ["--trace", str(pathlib.Path(folder) / "trace.json")])
    return {"case": case.title, "commands": {n: " ".join(c) for n, c in contenders.items()}, "runs": runs,
            "traces": traces}


def table(report):
    m = report["machine"]
    lines = [
        f"# {report['name']}", "",
        f"{m['cpu']}, {m['cores']} cores ({', '.join(m['instructions']) or 'no AVX2'}), "
        f"{m['memory_bytes'] / 2**30:.0f} GiB, {m['system']}; {report['date']}; Gradus {report['gradus']}; fp32. "
        f"Medians of {report['rounds']} interleaved rounds; {report['threads']} threads for one rank, half of them "
        f"for each of two; load average before {report['load_before']:.2f}.",
        "", "Command: `" + report["command"] + "`", "",
        "| case | ranks | tokens/s | of one rank | spread | peak of a rank, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in report["results"]:
        median = {n: statistics.median(x["tokens_per_s"] for x in of) for n, of in r["runs"].items()}
        one = next(iter(median.values()))
        for name, of in r["runs"].items():
            speeds = [x["tokens_per_s"] for x in of]
            peak = statistics.median(x["peak_bytes"] for x in of)
            lines.append(f"| {r['case']} | {name} | {median[name]:.1f} | {median[name] / one:.2f} | "
                         f"{100 * (max(speeds) - min(speeds)) / median[name]:.0f}% | {peak / 2**20:.0f} |")
    lines += ["", "The first rank's step in one further run of each, traced, in milliseconds:", "",
              "| case | ranks | computes | waits | communicates | of that, while it computes |",
              "| --- | --- | ---: | ---: | ---: | ---: |"]
    for r in report["results"]:
        for name, x in r["traces"].items():
            hidden = x["communication_hidden_ms"]
            share = 100 * hidden / x["communication_ms"] if x["communication_ms"] > 0 else 0.0
            lines.append(f"| {r['case']} | {name} | {x['compute_ms']:.1f} | {x['wait_ms']:.1f} | "
                         f"{x['communication_ms']:.1f} | {hidden:.1f} ({share:.0f}%) |")
    return "\n".join(lines) + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--name", required=True, help="of the files in bench/results")
    p.add_argument("--cases", type=lambda text: text.split(","), default=["char", "gpt2-t64"], help=",".join(CASES))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=0, help="timed steps of each run; 0: the case's own")
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="of one rank; two share them")
    p.add_argument("--gradus", type=pathlib.Path, default=ROOT / "build/release/bin/gradus")
    a = p.parse_args()
    if a.threads < 2:
        p.error("--threads: two ranks need one each")
    report = {
        "name": a.name, "date": datetime.date.today().isoformat(),
        "command": "bench/compare_layouts.py " + " ".join(sys.argv[1:]),
        "machine": machine(), "gradus": revision(),
        "rounds": a.rounds, "threads": a.threads, "load_before": os.getloadavg()[0], "results": [],
    }
    folder = ROOT / "bench" / "results"
    for name in a.cases:
        report["results"].append(measure(a, CASES[name]))
        (folder / f"{a.name}.json").write_text(json.dumps(report, indent=1) + "\n")
        (folder / f"{a.name}.md").write_text(table(report))
    print(table(report), end="")


if __name__ == "__main__":
    main()

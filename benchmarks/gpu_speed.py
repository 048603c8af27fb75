"""What only a GPU settles, question by question: speed switch by switch and beside the peers, and the GPU tests.

  python -m benchmarks.gpu_speed prepare FOLDER                    prepares corpora (needs CORRAL_TEST_DATA; no GPU)
  python -m benchmarks.gpu_speed run FOLDER [--seconds N] [JOB ..] runs jobs without a result in FOLDER, as time allows
  python -m benchmarks.gpu_speed table FOLDER                      prints the table of all results
  python -m benchmarks.gpu_speed questions FOLDER                  prints the questions with their jobs

``make bench-gpu``. A letter stands for the jobs of a question: ``run FOLDER b c``. Models have Llama 3's shapes and
random weights; data are samples of Alpaca and FLAN, and long documents. Every job is a process (gpu_jobs.py) of at most
ten minutes with one JSON file as its result, so that several commands can share the work. Without a GPU, tiny models
run instead, as a rehearsal that measures nothing.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_jobs import ALL, JOBS, PARTS, QUESTIONS, TESTS
from train.process.allocator import GROWING

DOCUMENTS = {"documents": (64, 60_000, 8192), "long-documents": (16, 240_000, 32768)}
"""Number, characters of each and ``data.seq_len`` of the corpora of documents."""
FLAN_ROWS = 400
"""Rows of every file of the FLAN mixture, and a tenth of every task: writing out its shots takes milliseconds a row."""
LIMIT_S = 570.0
"""A job that takes longer is ended and named: ten minutes are what a command may take on a lent machine."""
PEERS = ("hf", "trl", "trl-packed")
UPDATES, PADDED, PACKED_TOKENS = 5, 16, 8192
"""For a peer: updates (the first is not timed), padded samples per micro-batch, tokens per packed micro-batch."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_speed")
    parser.add_argument("what", choices=("prepare", "run", "table", "questions"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", nargs="*", help=f"jobs to run: {', '.join(ALL)}; or letters of questions; default: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no job after this time")
    parser.add_argument("--rows", type=int, default=0, help="rows to prepare of every source; 0: all of Alpaca's")
    chosen = parser.parse_args()
    folder: Path = chosen.folder.resolve()
    jobs = [job for word in chosen.jobs for job in (QUESTIONS[word].jobs if word in QUESTIONS else (word,))]
    unknown = sorted({*jobs} - {*ALL})
    if unknown:
        sys.exit(f"corral: no such job: {', '.join(unknown)}; there are: {', '.join(ALL)}")
    if chosen.what == "prepare":
        prepare_all(folder, chosen.rows)
    elif chosen.what == "run":
        run(folder, list(dict.fromkeys(jobs)) or list(ALL), chosen.seconds)
    elif chosen.what == "questions":
        for letter, question in QUESTIONS.items():
            print(f"{letter}  {question.text}: {', '.join(question.jobs)}")
            if question.left:
                print(f"   not answered: {question.left}")
    if chosen.what != "questions":
        show(folder)


def prepare_all(folder: Path, rows: int) -> None:
    """Prepare the corpora with GPT-2's tokenizer: for random weights only lengths matter, not token ids."""
    from conf.compose import compose
    from data_prep.prepare import prepare

    data = Path(os.environ.get("CORRAL_TEST_DATA") or sys.exit("corral: set CORRAL_TEST_DATA to the data's folder"))
    os.environ["CORRAL_DATA"] = str(folder / "flan-files")
    alpaca = data.resolve() / "alpaca" / "alpaca_data.json.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(alpaca, "rt", encoding="utf-8") as file:
        answers = " ".join(row["output"] for row in json.load(file))
    common = ["name=bench", f"model.tokenizer={data.resolve() / 'tokenizers' / 'gpt2'}"]
    limit = [f"data.sources.alpaca.rows={rows}"] if rows else []

    def make(name: str, *settings: str) -> None:
        prepare(compose([*common, *settings, f"data.prepared={folder / name}"]), argv=[])

    make("alpaca", "data=alpaca", f"data.sources.alpaca.path={alpaca}", "data.seq_len=2048", *limit)
    cut = ["data.over_length=truncate_right", "data.bad_row_budget=0.2"]
    for name, (number, characters, seq_len) in DOCUMENTS.items():
        long = [answers[index * characters : (index + 1) * characters] for index in range(number)]
        rows_of = [{"instruction": "Write on.", "input": "", "output": text} for text in long if text]
        path = folder / f"{name}.json"
        path.write_text(json.dumps(rows_of), encoding="utf-8")
        make(name, "data=alpaca", f"data.sources.alpaca.path={path}", f"data.seq_len={seq_len}", *cut)
    write_flan(data.resolve(), folder / "flan-files", min(rows or FLAN_ROWS, FLAN_ROWS))
    make("flan", "data=flan_mini", "data.seq_len=2048", *cut)


def write_flan(data: Path, folder: Path, rows: int) -> None:
    """The first ``rows`` of every file of ``data=flan_mini``, and of every task a tenth as many."""
    for source in [*(data / "flan_cot").iterdir(), *(data / "t0_sf").iterdir(), *(data / "niv2" / "tasks").iterdir()]:
        content = gzip.decompress(source.read_bytes())
        if ".json." in source.name:
            task = json.loads(content)
            content = json.dumps(task | {"Instances": task["Instances"][: max(1, rows // 10)]}).encode()
        else:
            content = b"".join(content.splitlines(keepends=True)[:rows])
        target = folder / source.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(content, mtime=0))


def run(folder: Path, jobs: list[str], seconds: float) -> None:
    """Run every job in a separate process. A job that fails or takes too long is reported and left out."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ends = time.monotonic() + seconds
    for name in jobs:
        needs = JOBS[name].needs if name in JOBS else ""
        if (folder / "results" / f"{name}.json").is_file():
            continue
        if needs and not installed(needs):
            print(f"{name}: left out, {needs} is not installed", flush=True)
            continue
        if time.monotonic() > ends:
            print(f"{name}: no time left; run the same command again")
            continue
        began = time.monotonic()
        told = outcome(command(name, folder, device), environment(name, device))
        print(f"{name}: {told} after {time.monotonic() - began:.0f} s", flush=True)


def installed(module: str) -> bool:
    """Whether ``module`` could be imported; its parents are imported to see."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def outcome(command: list[str], own: dict[str, str]) -> str:
    """Run ``command`` to its end or to LIMIT_S, when it is killed with all that it has started."""
    process = subprocess.Popen(command, env=own, start_new_session=True)
    try:
        code = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"FAILED, more than {LIMIT_S:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"FAILED with exit code {code}" if code else "done"


def command(name: str, folder: Path, device: str) -> list[str]:
    if name in JOBS:
        module = "gpu_speed_peer" if JOBS[name].variants[0] in PEERS else "gpu_worker"
        return [sys.executable, "-m", f"benchmarks.{module}", name, str(folder), device]
    if name == "ceilings":
        return [sys.executable, "-m", "benchmarks.gpu_ceilings", str(folder), device]
    module = "gpu_tests" if name in TESTS else "gpu_parts"
    return [sys.executable, "-m", f"benchmarks.{module}", name, str(folder), device]


def environment(name: str, device: str) -> dict[str, str]:
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CORRAL_BENCH_DEVICE": device}
    return os.environ | own | GROWING | (JOBS[name].environment if name in JOBS else {})


def read(folder: Path) -> dict[str, dict[str, Any]]:
    files = {name: folder / "results" / f"{name}.json" for name in ALL}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def lines(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per job and variant: medians over the timed updates."""
    found = []
    for name, result in results.items():
        for variant, of_one in result.get("variants", {}).items():
            updates = of_one["updates"]
            rate = lambda key: statistics.median(each[key] / each["seconds"] for each in updates)  # noqa: B023, E731
            times = sorted(each["seconds"] for each in updates)
            found.append(
                {
                    "job": name,
                    "variant": variant,
                    "samples_per_s": rate("samples"),
                    "tokens_per_s": rate("tokens"),
                    "targets_per_s": rate("targets"),
                    "flops_per_s": rate("flops"),
                    "spread": (times[-1] - times[0]) / statistics.median(times),
                    "peak_gib": of_one["peak_gib"],
                    "planned_gib": result.get("planned_gib"),
                    "first_step_s": result["first_step_s"],
                    "metrics": result.get("metrics", {}),
                    "losses": [each["loss"] for each in updates],
                }
            )
    return found


def show(folder: Path) -> None:
    """Print the tables, and name the jobs that were not measured."""
    from train.tracking.flops import peak_of

    results, console = read(folder), Console(width=160)
    if not results:
        return
    versions = next(iter(results.values()))["versions"]
    peak = peak_of(versions["device"])
    console.print(", ".join(f"{key} {value}" for key, value in versions.items()))
    for what, rate in results.get("ceilings", {}).get("flops_per_s", {}).items():
        console.print(f"{what}: {rate / 1e12:.1f} TFLOP/s" + (f", {rate / peak:.0%} of the data sheet" if peak else ""))
    for name in (*PARTS, *TESTS):
        for what, figure in results.get(name, {}).get("figures", {}).items():
            console.print(f"{name}: {what}: {figure:.4g}")
        for note in results.get(name, {}).get("notes", []):
            console.print(f"{name}: {note}")
    console.print(table_of(results, peak))
    (folder / "results.json").write_text(
        json.dumps({"versions": versions, "lines": lines(results)}, indent=1), encoding="utf-8"
    )
    missing = [name for name in ALL if name not in results]
    if missing:
        console.print(f"not measured: {', '.join(missing)}")


def table_of(results: dict[str, dict[str, Any]], peak: float | None) -> Table:
    table, own = Table(), {"reserved": "memory/reserved_gib", "retries": "memory/alloc_retries"}
    own |= {"compiled": "perf/compiled_calls"}
    columns = ("job", "variant", "samples/s", "tokens/s", "targets/s", "MFU", "spread", "peak GiB", "planned", *own)
    for column in columns:
        table.add_column(column, justify="left" if column in ("job", "variant") else "right", overflow="fold")
    for line in lines(results):
        table.add_row(
            line["job"],
            line["variant"],
            f"{line['samples_per_s']:,.1f}",
            f"{line['tokens_per_s']:,.0f}",
            f"{line['targets_per_s']:,.0f}",
            f"{line['flops_per_s'] / peak:.1%}" if peak and line["flops_per_s"] else "-",
            f"{line['spread']:.1%}",
            f"{line['peak_gib']:.2f}",
            "-" if line["planned_gib"] is None else f"{line['planned_gib']:.2f}",
            *(f"{line['metrics'][key]:g}" if key in line["metrics"] else "-" for key in own.values()),
        )
    return table


if __name__ == "__main__":
    main()

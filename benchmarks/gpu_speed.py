"""Training speed on one GPU, switch by switch and beside the peers: ``make bench-gpu``.

  python -m benchmarks.gpu_speed prepare FOLDER                    corpora (needs CORRAL_TEST_DATA; no GPU)
  python -m benchmarks.gpu_speed run FOLDER [--seconds N] [JOB ..] what FOLDER has no result of yet, while time lasts
  python -m benchmarks.gpu_speed table FOLDER                      the table of all results

Models of Llama 3's shapes from random weights, real samples of Alpaca and documents of 8,192 tokens. Each job is a
process (gpu_jobs.py); its result is one JSON file, so that the whole can be done in pieces. Without a GPU everything
runs on tiny models (a rehearsal: nothing there is a measurement).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_jobs import JOBS

DOCUMENTS = 64
PEERS = ("hf", "trl", "trl-packed")
UPDATES, PADDED, PACKED_TOKENS = 5, 16, 8192
"""Of a peer: updates, the first not timed; padded samples per micro-batch; tokens of a packed one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_speed")
    parser.add_argument("what", choices=("prepare", "run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join(['ceilings', *JOBS])}; default: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no job begins after so long")
    parser.add_argument("--rows", type=int, default=0, help="of Alpaca; 0: all")
    chosen = parser.parse_args()
    folder: Path = chosen.folder.resolve()
    unknown = sorted({*chosen.jobs} - {"ceilings", *JOBS})
    if unknown:
        sys.exit(f"corral: no such job: {', '.join(unknown)}; there are: {', '.join(['ceilings', *JOBS])}")
    if chosen.what == "prepare":
        prepare_all(folder, chosen.rows)
    elif chosen.what == "run":
        run(folder, chosen.jobs or ["ceilings", *JOBS], chosen.seconds)
    show(folder)


def prepare_all(folder: Path, rows: int) -> None:
    """The corpora, with GPT-2's tokenizer: ids are as good as any for random weights, lengths are what counts."""
    from conf.compose import compose
    from data_prep.prepare import prepare

    data = Path(os.environ.get("CORRAL_TEST_DATA") or sys.exit("corral: set CORRAL_TEST_DATA to the data's folder"))
    alpaca = data.resolve() / "alpaca" / "alpaca_data.json.gz"
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(alpaca, "rt") as file:
        answers = " ".join(row["output"] for row in json.load(file))
    long = [answers[index * 60_000 : (index + 1) * 60_000] for index in range(DOCUMENTS)]
    documents = folder / "documents.json"
    documents.write_text(json.dumps([{"instruction": "Write on.", "input": "", "output": text} for text in long]))
    limit = [f"data.sources.alpaca.rows={rows}"] if rows else []
    for name, path, seq_len, own in (
        ("alpaca", alpaca, 2048, limit),
        ("documents", documents, 8192, ["data.over_length=truncate_right", "data.bad_row_budget=0.2"]),
    ):
        common = ["name=bench", "data=alpaca", f"data.sources.alpaca.path={path}", f"data.seq_len={seq_len}"]
        tokenizer = f"model.tokenizer={data.resolve() / 'tokenizers' / 'gpt2'}"
        prepare(compose([*common, tokenizer, f"data.prepared={folder / name}", *own]), argv=[])


def run(folder: Path, jobs: list[str], seconds: float) -> None:
    """Each job in a process of its own. One that fails is told and left out."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ends = time.monotonic() + seconds
    for name in jobs:
        if (folder / "results" / f"{name}.json").is_file():
            continue
        if time.monotonic() > ends:
            print(f"{name}: no time left; run the same command again")
            continue
        began = time.monotonic()
        outcome = subprocess.run(command(name, folder, device), env=environment(device))
        told = "done" if outcome.returncode == 0 else f"FAILED with exit code {outcome.returncode}"
        print(f"{name}: {told} after {time.monotonic() - began:.0f} s", flush=True)


def command(name: str, folder: Path, device: str) -> list[str]:
    if name == "ceilings":
        return [sys.executable, "-m", "benchmarks.gpu_ceilings", str(folder), device]
    job = JOBS[name]
    if job.variants[0] in PEERS:
        return [sys.executable, "-m", "benchmarks.gpu_speed_peer", name, str(folder), device]
    return [sys.executable, "-m", "benchmarks.gpu_worker", name, str(folder), device]


def environment(device: str) -> dict[str, str]:
    own = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CORRAL_BENCH_DEVICE": device}
    return os.environ | own | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    names = ["ceilings", *JOBS]
    files = {name: folder / "results" / f"{name}.json" for name in names}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


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
                    "losses": [each["loss"] for each in updates],
                }
            )
    return found


def show(folder: Path) -> None:
    """The tables; what was not measured is named."""
    from train.flops import peak_of

    results, console = read(folder), Console(width=120)
    if not results:
        return
    versions = next(iter(results.values()))["versions"]
    peak = peak_of(versions["device"])
    console.print(", ".join(f"{key} {value}" for key, value in versions.items()))
    for what, rate in results.get("ceilings", {}).get("flops_per_s", {}).items():
        console.print(f"{what}: {rate / 1e12:.1f} TFLOP/s" + (f", {rate / peak:.0%} of the data sheet" if peak else ""))
    table = Table()
    for column in ("job", "variant", "samples/s", "tokens/s", "targets/s", "MFU", "spread", "peak GiB", "planned"):
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
        )
    console.print(table)
    (folder / "results.json").write_text(json.dumps({"versions": versions, "lines": lines(results)}, indent=1))
    missing = [name for name in ("ceilings", *JOBS) if name not in results]
    if missing:
        console.print(f"not measured: {', '.join(missing)}")


if __name__ == "__main__":
    main()

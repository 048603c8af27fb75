"""Runs a peer on the samples of Corral's updates: ``python -m benchmarks.gpu_speed_peer JOB FOLDER DEVICE``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from benchmarks.gpu_jobs import JOBS
from benchmarks.gpu_speed import PACKED_TOKENS, PADDED, UPDATES
from benchmarks.gpu_worker import random_start, settings, versions, write
from benchmarks.train_speed import write_updates


def main(name: str, folder: Path, device: str) -> None:
    from conf.compose import compose
    from data_prep.corpus.prepared import open_prepared
    from data_prep.stream.stream import Stream

    job, tiny = JOBS[name], device == "cpu"
    start = random_start(job.model, folder, device)
    cfg = compose(settings(job, folder, start, tiny))
    (peer,) = job.variants
    with tempfile.TemporaryDirectory(prefix="corral-peer-") as scratch_name:
        scratch = Path(scratch_name)
        for link, target in (("init", start), ("corpus", folder / job.corpus)):
            (scratch / link).symlink_to(target)
        write_updates(cfg, scratch, updates=UPDATES, padded=4 if tiny else PADDED, packed_tokens=PACKED_TOKENS)
        script = Path(__file__).with_name("peers.py")
        subprocess.run([sys.executable, str(script), peer, str(scratch)], check=True)
        turn = json.loads((scratch / f"{peer}.json").read_text(encoding="utf-8"))
    splits = open_prepared(cfg).split("train")
    plans = list(Stream(splits, cfg.data, seed=cfg.seed, global_size=cfg.batch.global_size, max_steps=UPDATES))
    updates = [
        {
            "seconds": after - before,
            "loss": loss,
            "samples": plan.samples,
            "tokens": plan.tokens,
            "targets": plan.targets,
            "flops": 0.0,
        }
        for (before, after), loss, plan in zip(pairwise(turn["ends"]), turn["losses"][1:], plans[1:], strict=True)
    ]
    variants = {peer: {"updates": updates, "peak_gib": turn["peak_gib"]}}
    write(folder, name, {"versions": versions(device), "first_step_s": turn["ends"][0], "variants": variants})
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3])

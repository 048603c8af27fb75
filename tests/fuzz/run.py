"""``python -m tests.fuzz.run seconds=600 seed=0 [targets=rows,corpus]``: damaged inputs through every entry point.

Case N of a target is the same damage for every run of one seed, and ``case=TARGET:SEED:N`` runs it again alone. Prints
a table; exit code 1 if any input ended otherwise than tests/fuzz/judge.py says. The folder of such an input is kept.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from conf.safety.streams import guarded
from tests.fuzz import judge
from tests.fuzz.target import Case, Target
from tests.fuzz.worker import FAILED, Ended, Worker

KEPT = Path("outputs/fuzz")
KEPT_OF_A_KIND = 2
LOOK_SECONDS = 0.05
"""Between two looks at what the running cases take."""


@dataclass
class Tally:
    """What came of one target."""

    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    peak: int = 0
    flaws: Counter[str] = field(default_factory=Counter)
    """By kind."""

    def add(self, ended: Ended) -> None:
        self.refused += ended.refused and not ended.flaw
        self.accepted += not ended.refused and not ended.flaw
        self.slowest, self.peak = max(self.slowest, ended.seconds), max(self.peak, ended.peak)


class Fuzz:
    """Targets, each attacked for its share of the time, in ``folder``, which holds the whole ones and the copies."""

    def __init__(self, folder: Path, seed: int, keep: Path = KEPT) -> None:
        self.folder, self.seed, self.keep = folder, seed, keep
        self.tallies: dict[str, Tally] = {}
        self._whole: dict[object, Path] = {}

    def whole_of(self, target: Target) -> Path:
        """A whole one, made in a process of its own: threads that a library starts do not survive a fork."""
        if target.make not in self._whole:
            path = self._whole[target.make] = self.folder / f"whole-{target.name}"
            path.mkdir()
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    target.make(path)
                    code = 0
                finally:
                    sys.stderr.flush()
                    if code:
                        sys.excepthook(*sys.exc_info())
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0, f"{target.name}: no whole one could be made"
        return self._whole[target.make]

    def attack(self, targets: Sequence[Target], seconds: float, lanes: int) -> None:
        """Every target for ``seconds`` x ``lanes`` / their number, ``lanes`` of them at a time."""
        waiting = [(target, self.whole_of(target)) for target in targets]
        share, running = seconds * lanes / len(targets), []
        while waiting or running:
            while waiting and len(running) < lanes:
                target, whole = waiting.pop(0)
                work = self.folder / f"{target.name}-copy"
                running.append((Worker(target, self.seed, whole, work, 0), whole, time.monotonic() + share))
            select.select([worker.pipe for worker, *_ in running], [], [], LOOK_SECONDS)
            running = [
                (each, whole, until) for one, whole, until in running if (each := self._watched(one, whole, until))
            ]

    def _watched(self, worker: Worker, whole: Path, until: float) -> Worker | None:
        """``worker`` after a look at it, another if it has ended, or None when the time of its target is up."""
        ended, goes_on = worker.heard()
        for each in ended:
            self._note(worker, each)
        wrong = worker.too_much() if goes_on else None
        if goes_on and not wrong and time.monotonic() < until:
            return worker
        in_case, code = worker.began is not None, worker.end()
        if not goes_on and code == FAILED:
            raise RuntimeError(f"{worker.target.name}, case {worker.next}: the fuzzer failed:\n{_tail(worker.work)}")
        if not goes_on and in_case:
            wrong = Ended(worker.next, False, _ending(code), 0.0, worker.highest, _tail(worker.work))
        if wrong:
            self._note(worker, wrong)
        if time.monotonic() >= until:
            return None
        return Worker(worker.target, self.seed, whole, worker.work, worker.next + (wrong is not None))

    def alone(self, target: Target, number: int) -> Ended:
        """One case again."""
        work = self.folder / f"{target.name}-copy"
        worker = Worker(target, self.seed, self.whole_of(target), work, number, 1)
        found: list[Ended] = []
        goes_on = True
        while goes_on and not found:
            select.select([worker.pipe], [], [], LOOK_SECONDS)
            found, goes_on = worker.heard()
            if not found and (wrong := worker.too_much()):
                found = [wrong]
        code = worker.end()
        print(f"damage: {worker.said}")
        ended = found[0] if found else Ended(number, False, _ending(code), 0.0, 0, _tail(work))
        self._note(worker, ended)
        return ended

    def _note(self, worker: Worker, ended: Ended) -> None:
        tally = self.tallies.setdefault(worker.target.name, Tally())
        tally.add(ended)
        if not ended.flaw:
            return
        kind = judge.kind_of(ended.flaw)
        tally.flaws[kind] += 1
        if tally.flaws[kind] > KEPT_OF_A_KIND:
            return
        case = Case(worker.target.name, self.seed, ended.number)
        kept = self.keep / str(case).replace(":", "-")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(worker.work, kept / "input", symlinks=True, dirs_exist_ok=True)
        text = f"case={case}\n{worker.said}\n{ended.flaw}\n{ended.trace}"
        (kept / "case.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
        print(f"case={case}: {ended.flaw}\n  {worker.said[:300]}\n  kept in {kept}", flush=True)


def _ending(code: int) -> str:
    return f"it ends its process by {signal.Signals(-code).name}" if code < 0 else f"it ends its process with {code}"


def _tail(work: Path) -> str:
    return work.with_suffix(".printed").read_text(encoding="utf-8", errors="replace")[-3000:]


def told(tallies: dict[str, Tally]) -> str:
    """The table of docs/security.md."""
    rows = [("target", "cases", "refused", "accepted", "slowest, s", "peak, MiB", "findings"), ("---",) * 7]
    every = [*tallies.items()]
    total = Tally()
    for _, each in every:
        total.refused, total.accepted = total.refused + each.refused, total.accepted + each.accepted
        total.slowest, total.peak = max(total.slowest, each.slowest), max(total.peak, each.peak)
        total.flaws += each.flaws
    for name, each in [*every, ("all", total)]:
        found = each.flaws.total()
        figures = (each.refused + each.accepted + found, each.refused, each.accepted)
        rows.append(
            (name, *(f"{figure:,}" for figure in figures), f"{each.slowest:.2f}", str(each.peak >> 20), str(found))
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def quiet() -> None:
    """The environment of the tests, before torch is imported: no network, one thread per process."""
    os.environ.update(
        OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="",
        RAYON_NUM_THREADS="1", ARROW_NUM_THREADS="1", WANDB_MODE="offline",
    )  # fmt: skip


def chosen(names: str, known: Iterable[Target]) -> list[Target]:
    by_name = {each.name: each for each in known}
    wanted = names.split(",") if names else [*by_name]
    unknown = [name for name in wanted if name not in by_name]
    assert not unknown, f"unknown: {', '.join(unknown)}; there are {', '.join(by_name)}"
    return [by_name[name] for name in wanted]


def main(argv: Sequence[str]) -> int:
    given = dict(each.split("=", 1) for each in argv)
    seconds, seed = float(given.pop("seconds", 600)), int(given.pop("seed", 0))
    names, case = given.pop("targets", ""), given.pop("case", "")
    keep = Path(given.pop("keep", KEPT))
    assert not given, f"unknown: {', '.join(given)}; there are seconds, seed, targets, case and keep"
    quiet()
    with guarded():  # where libraries keep a stream, they keep one that is safe, as below every command
        from tests.fuzz.targets import TARGETS

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if case:
            name, of_seed, number = case.split(":")
            fuzz = Fuzz(Path(folder), int(of_seed), keep)
            ended = fuzz.alone(*chosen(name, TARGETS), int(number))
            print(ended.trace or (f"refused: {ended.sentence}" if ended.refused else "accepted"))
        else:
            fuzz = Fuzz(Path(folder), seed, keep)
            fuzz.attack(chosen(names, TARGETS), seconds, os.cpu_count() or 1)
            print(f"\n{told(fuzz.tallies)}\n\nseconds={seconds:g} seed={seed}")
    kinds = [f"{name}: {count} x {kind}" for name, each in fuzz.tallies.items() for kind, count in each.flaws.items()]
    print("\n".join(kinds) or "nothing was found")
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m tests.faults.soak kills=200 terms=100 seed=0``: runs killed and stopped at random, resumed until done.

Every run has to end as the run that nobody disturbed: the same sha256 of weights and moments, the same ledger, the same
losses. Every rank that was not killed has to leave in 10 s, every run that was asked to stop in 25 s, and what its
exit.json says has to be on the disk. Prints the tables of docs/reliability.md; exit code 1 if anything was otherwise.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from tests.end_to_end.commands import tiny_run
from tests.faults import judge
from tests.faults.plans import EVALUATED, EVERY, FULL_DISK, STEPS, WORLD, Attack, drawn
from tests.faults.tables import Tally, told
from tests.faults.warm import Ended, Job, Warm

MODEL = (
    "model.config={model_type: llama, hidden_size: 128, intermediate_size: 256, num_hidden_layers: 2, "
    "num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256, tie_word_embeddings: false}"
)
"""Its state files are larger than the buffer of their writer, so that a kill in the middle leaves a part."""
COMMON = (
    MODEL, f"schedule.max_steps={STEPS}", f"checkpoint.every_steps={EVERY}", "checkpoint.background=always",
    f"evaluation.every_steps={EVALUATED}", "evaluation.max_rows=4", "evaluation.generate_rows=1",
    "evaluation.max_new_tokens=3", "compute.threads=1",
)  # fmt: skip
LORA = ("tuning=lora", "tuning.dropout=0.1", "data.share_prefix=false")
VARIANTS = {
    f"ZeRO {stage}, {kind}": (f"zero={stage}", *more)
    for stage in (1, 2, 3)
    for kind, more in (("full", ()), ("LoRA", LORA))
}
MOST_IN_A_RUN = 6
"""Attacks on one run; then it is left alone."""
REPEATED = 0.25
"""Share of the attacks that are made again at once."""
ACTED = re.compile(r"CORRAL_FAULTS acts \(rank \d+, after step \d+, at ([\d.]+)\): .*action=(?:SIGKILL|SIGTERM)")


class Soak:
    """In ``folder``, which gets the corpus, the undisturbed runs, and attempts.jsonl with the plan of every attempt."""

    def __init__(self, warm: Warm, folder: Path, seed: int, variants: Mapping[str, Sequence[str]] = VARIANTS) -> None:
        self.warm, self.folder, self.seed, self.variants = warm, folder, seed, variants
        code, output = warm.call("data_prep", *tiny_run(folder, "x"), log=folder / "prepare.log")
        assert code == 0, output
        self._whole: dict[str, tuple[judge.Result, float]] = {}

    def whole(self, variant: str) -> tuple[judge.Result, float]:
        """The run that nobody disturbs: its result, and how many seconds it took."""
        if variant not in self._whole:
            name = f"whole-{len(self._whole)}"
            ended, _ = self.attempt(variant, name)
            assert ended.codes == [0] * WORLD, ended.output
            self._whole[variant] = judge.result_of(self.folder / name, self.verified), max(ended.times)
        return self._whole[variant]

    def wrong_at_end(self, variant: str, name: str, ended: Ended) -> list[str]:
        """Every difference from the run that nobody disturbs."""
        run_dir = self.folder / name
        return [*judge.of_end(run_dir, ended, self.whole(variant)[0], lambda: judge.result_of(run_dir, self.verified))]

    def verified(self, run_dir: Path, step: int | None) -> tuple[int, str]:
        """Exit code and output of train.fingerprint; None: of the newest checkpoint that verifies."""
        more = [] if step is None else [f"checkpoint={step}"]
        return self.warm.call("train.fingerprint", f"run_dir={run_dir}", *more, log=self.folder / "fingerprint.log")

    def attack(self, action: str, count: int) -> dict[str, Tally]:
        """Attack runs of the variants in turn until ``count`` attacks have acted; all runs come to their end."""
        tallies = {name: Tally() for name in self.variants}
        number = 0
        while (done := sum(tally.attacks.total() for tally in tallies.values())) < count:
            variant = [*self.variants][number % len(self.variants)]
            self._run(variant, f"{action.lower()}-{number}", action, min(MOST_IN_A_RUN, count - done), tallies[variant])
            number += 1
            print(f"{time.strftime('%H:%M:%S')} {action}: {done} of {count}", file=sys.stderr, flush=True)
        return tallies

    def _run(self, variant: str, name: str, action: str, most: int, tally: Tally) -> None:
        """One run, from its first attempt to its end."""
        _, seconds = self.whole(variant)
        began, run_dir, random = time.monotonic(), self.folder / name, Random(f"{self.seed} {name}")
        tally.runs += 1
        attack: Attack | None = None
        acted, again = 0, False
        while True:
            start = judge.newest_step(run_dir)
            if acted == most:
                attack = None
            elif not again:
                attack = drawn(random, action, start, seconds)
            ended, at = self.attempt(variant, name, attack)
            if attack is None or (at is None and not (FULL_DISK in attack.faults and 74 in ended.codes)):
                break
            if at is not None:
                acted += 1
                tally.attacks[attack.place] += 1
                tally.again += again
                tally.resuming += attack.kind == "start" and start > 0
                tally.slowest = max(tally.slowest, max(ended.times) - at)
                wrong = self._wrong(run_dir, action, ended, at, tally)
                tally.wrong += [f"{name} ({variant}), {attack}: {each}" for each in wrong]
            again = at is not None and random.random() < REPEATED
        tally.seconds += time.monotonic() - began
        wrong = self.wrong_at_end(variant, name, ended)
        tally.wrong += [f"{name} ({variant}), at the end: {each}" for each in wrong]
        if not wrong:
            shutil.rmtree(run_dir)

    def _wrong(self, run_dir: Path, action: str, ended: Ended, at: float, tally: Tally) -> list[str]:
        if action == "SIGKILL":
            return [*judge.of_kill(ended, at)]
        ending, wrong = judge.of_term(run_dir, ended, at, self.verified)
        tally.endings[ending] += 1
        return wrong

    def attempt(
        self, variant: str, name: str, attack: Attack | None = None, more: Sequence[str] = ()
    ) -> tuple[Ended, float | None]:
        """How an attempt ended, and when the attack acted: seconds after the start, None if it did not."""
        attack = attack or Attack("nowhere")
        faults = {"CORRAL_FAULTS": attack.faults} if attack.faults else {}
        arguments = tiny_run(self.folder, name, *COMMON, *self.variants[variant], *more)
        log = str(self.folder / f"{name}.log")
        ended = self.warm.run(Job("train", arguments, log, WORLD, faults, attack.signals, attack.agent))
        acted = [float(match[1]) - ended.began for match in ACTED.finditer(ended.output)]
        at = min([*acted, *ended.sent], default=None)
        record = {"run": name, "variant": variant, "attack": str(attack), "acted": at, "codes": ended.codes}
        with (self.folder / "attempts.jsonl").open("a") as stream:
            stream.write(json.dumps({**record, "times": ended.times, "hung": ended.hung}) + "\n")
        return ended, at


def main(argv: Sequence[str]) -> int:
    given = dict(each.split("=", 1) for each in argv)
    numbers = {key: int(given.pop(key, default)) for key, default in (("kills", 200), ("terms", 100), ("seed", 0))}
    folder = Path(given.pop("folder", None) or tempfile.mkdtemp(prefix="soak-"))
    assert not given, f"unknown: {', '.join(given)}; there are kills, terms, seed and folder"
    folder.mkdir(parents=True, exist_ok=True)
    with Warm() as warm:
        soak = Soak(warm, folder, numbers["seed"])
        kills = soak.attack("SIGKILL", numbers["kills"])
        terms = soak.attack("SIGTERM", numbers["terms"])
    print(told(kills, terms, numbers))
    wrong = [each for tallies in (kills, terms) for tally in tallies.values() for each in tally.wrong]
    for each in wrong:
        print(f"\nwrong: {each}")
    print(f"\n{len(wrong)} things were wrong; the plan of every attempt is in {folder}/attempts.jsonl")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The parts of the report. Every part makes HTML from a RunRecord, and an empty string without data."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.durable import write_whole
from conf.errors import CannotCreate
from conf.safety.texts import for_html
from train.report.memory import planned_memory
from train.report.page import document, figure, folded, sample, samples, section, settings, table, tiles
from train.report.plots import line_plot, smoothed
from train.report.reading import Points, RunRecord, flat, is_finite, read_run
from train.tracking.figures import clock, short_count

SHOWN_PER_SOURCE = 3
"""Answers per source that the page shows; the others are folded."""
SHOWN_EVENTS = 200


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` from the files that the run has written so far. Raises CannotCreate (73)."""
    path = run_dir / "report.html"
    try:
        write_whole(path, render(read_run(run_dir)).encode("utf-8", "replace"))  # a line may hold half a character
    except OSError as error:
        raise CannotCreate(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def render(run: RunRecord) -> str:
    body = "".join(
        [
            heading(run),
            section("Training", plots(run)),
            section("Held-out samples, before and after", before_and_after(run)),
            section("Answers to held-out samples", answers(run)),
            section("Data", data(run)),
            section("Memory", planned_memory(run)),
            section("Events", events(run)),
            section("Configuration", folded("run.yaml, resolved", settings(texts(flat(run.config))))),
            section("Provenance", provenance(run)),
        ]
    )
    return document(f"{run.name} · Corral", body)


def heading(run: RunRecord) -> str:
    return f'<h1>{for_html(run.name)}</h1><p class="dim">{for_html(status(run))}</p>{tiles(key_figures(run))}'


def status(run: RunRecord) -> str:
    """One line: the run's start, its steps so far and its end."""
    steps = run.metrics[-1]["step"] if run.metrics else 0
    started = next((event for event in run.events if "time" in event), None)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started["time"])) if started else "not started"
    if run.exit:
        code = run.exit.get("code")
        how = "finished" if code == 0 else f"ended with code {code}: {run.exit.get('reason', '')}"
    else:
        how = "finished" if any(event.get("kind") == "end" for event in run.events) else "no end recorded yet"
    return f"{when} · {steps} steps · {how}"


def key_figures(run: RunRecord) -> dict[str, str]:
    figures = {
        "training loss": change(run.series("train/loss"), "{:.3f}"),
        "held-out loss": change(run.series("eval/loss"), "{:.3f}"),
        "held-out exact match": change(mean_over_sources(run, "exact_match"), "{:.0%}"),
        "tokens trained on": last(run.series("train/tokens"), short_count),
        "samples": last(run.series("train/samples"), short_count),
        "tokens per second (median)": median(run.series("perf/tokens_per_second")),
        "time in steps": total_time(run),
        "peak memory": last(run.series("memory/peak_gib"), lambda value: f"{value:.2f} GiB"),
    }
    return {name: value for name, value in figures.items() if value}


def change(points: Points, form: str) -> str:
    """The first and last value as "before → after"; a single value alone."""
    if not points:
        return ""
    first, final = form.format(points[0][1]), form.format(points[-1][1])
    return first if len(points) == 1 else f"{first} → {final}"


def last(points: Points, shown: Any) -> str:
    return str(shown(points[-1][1])) if points else ""


def median(points: Points) -> str:
    values = sorted(value for _, value in points)
    return short_count(values[len(values) // 2]) if values else ""


def total_time(run: RunRecord) -> str:
    """The time of the logged steps, scaled to all steps if only some were logged."""
    times = run.series("perf/step_time_s")
    if not times:
        return ""
    return clock(sum(value for _, value in times) * max(1.0, times[-1][0] / len(times)))


def mean_over_sources(run: RunRecord, name: str) -> Points:
    """Unweighted mean of ``eval/<source>/<name>`` by step."""
    means = []
    sources = run.names("eval/", f"/{name}")
    for line in run.metrics:
        values = [line[key] for source in sources if is_finite(line.get(key := f"eval/{source}/{name}"))]
        if values:
            means.append((float(line["step"]), sum(values) / len(values)))
    return means


def plots(run: RunRecord) -> str:
    whole = [0.0, 1.0]
    parts = [
        loss_plot(run),
        plot("Loss, held-out", by_source(run, "loss", {"all": run.series("eval/loss")}), "{:.3f}", dots=True),
        plot("Exact match, held-out", by_source(run, "exact_match"), "{:.0%}", dots=True, percent=True, show=whole),
        plot("ROUGE-L, held-out", by_source(run, "rouge_l"), "{:.2f}", dots=True, show=whole),
        plot("Learning rate", {"": run.series("train/lr")}, "{:.2e}"),
        plot("Gradient norm, before clipping", {"": run.series("train/grad_norm")}, "{:.2f}"),
        plot("Tokens per second", {"": run.series("perf/tokens_per_second")}, "{:,.0f}"),
        plot("MFU", {"": run.series("perf/mfu")}, "{:.1%}", percent=True),
        plot("Share of samples by source", shares(run), "{:.1%}", percent=True),
    ]
    grid = "".join(parts)
    return f'<div class="plots">{grid}</div>' if grid else ""


def loss_plot(run: RunRecord) -> str:
    """Training loss; long runs also have a smoothed line."""
    loss = run.series("train/loss")
    curves = {"per step": loss} | ({"smoothed": smoothed(loss, len(loss) // 60)} if len(loss) >= 120 else {})
    faint = ["per step"] if len(curves) > 1 else []
    return plot("Loss, training (nats per target token)", curves, "{:.3f}", faint=faint)


def plot(title: str, series: Mapping[str, Points], form: str, show: Sequence[float] = (0.0,), **how: Any) -> str:
    drawn = {name: points for name, points in series.items() if points}
    legend = {name: form.format(points[-1][1]) for name, points in drawn.items()}
    return figure(title, line_plot(drawn, show=show, **how), legend)


def by_source(run: RunRecord, name: str, first: Mapping[str, Points] | None = None) -> dict[str, Points]:
    curves = {source: run.series(f"eval/{source}/{name}") for source in run.names("eval/", f"/{name}")}
    if first and len(curves) == 1:  # the curve of a single source equals that of the total
        return dict(first)
    return {**(first or {}), **curves}


def shares(run: RunRecord) -> dict[str, Points]:
    names = run.names("data/share/")
    return {name: run.series(f"data/share/{name}") for name in names} if len(names) > 1 else {}


def before_and_after(run: RunRecord) -> str:
    """First and last evaluation per source."""
    forms = {"loss": "{:.4f}", "exact_match": "{:.1%}", "rouge_l": "{:.3f}"}
    sources = list(dict.fromkeys(source for name in forms for source in run.names("eval/", f"/{name}")))
    rows = [
        [source, *(change(run.series(f"eval/{source}/{name}"), form) for name, form in forms.items())]
        for source in sources
    ]
    if run.series("eval/loss"):
        rows.append(["all, by tokens", change(run.series("eval/loss"), "{:.4f}"), "", ""])
    return table(["source", "loss", "exact match", "ROUGE-L"], rows)


def answers(run: RunRecord) -> str:
    """The newest answers per source: some visible, the others folded."""
    if not run.samples:
        return ""
    step = max(run.samples)
    by_name: dict[str, list[str]] = {}
    for answered in run.samples[step]:
        by_name.setdefault(str(answered.get("source", "")), []).append(answer_card(answered))
    shown = [card for cards in by_name.values() for card in cards[:SHOWN_PER_SOURCE]]
    rest = [card for cards in by_name.values() for card in cards[SHOWN_PER_SOURCE:]]
    right = sum(bool(answered.get("exact_match")) for answered in run.samples[step])
    lead = f'<p class="dim">step {step}: {right} of {len(run.samples[step])} right, greedy decoding</p>'
    return lead + samples(shown) + folded(f"{len(rest)} more", samples(rest))


def answer_card(answered: Mapping[str, Any]) -> str:
    keys = ("source", "prompt", "reference", "answer")
    source, prompt, reference, answer = (str(answered.get(key, "")) for key in keys)
    right, rouge = bool(answered.get("exact_match")), float(answered.get("rouge_l") or 0.0)
    return sample(source, prompt, reference, answer, right=right, rouge=rouge)


def data(run: RunRecord) -> str:
    """Samples and tokens per source and split, and the reasons for rejected records."""
    sources: Mapping[str, Any] = run.manifest.get("sources", {})
    rows, reasons = [], []
    for name, source in sources.items():
        train, validation = (source["splits"].get(split, {}) for split in ("train", "validation"))
        rejected: Mapping[str, int] = source.get("rejected", {})
        supervised = train.get("supervised_tokens", 0) / max(1, train.get("tokens", 0))
        counts = [train.get("rows", 0), validation.get("rows", 0), train.get("tokens", 0), sum(rejected.values())]
        rows.append([name, *(f"{count:,}" for count in counts), f"{supervised:.1%}"])
        by_count = sorted(rejected.items(), key=lambda item: -item[1])
        reasons += [[name, reason, f"{count:,}"] for reason, count in by_count]
    headings = ["source", "training samples", "held-out samples", "training tokens", "rejected records", "targets"]
    why = table(["source", "reason", "records"], reasons, numbers_from=2)
    return table(headings, rows) + folded("rejected records by reason", why)


def events(run: RunRecord) -> str:
    rows = []
    for event in run.events[-SHOWN_EVENTS:]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["time"])) if "time" in event else ""
        details = {key: value for key, value in event.items() if key not in ("time", "kind", "step")}
        rows.append([when, str(event.get("kind", "")), str(event.get("step", "")), "; ".join(pairs(details))])
    shown = table(["time (UTC)", "event", "step", "details"], rows, numbers_from=4)
    return shown if len(rows) <= 12 else folded(f"{len(rows)} events", shown)


def provenance(run: RunRecord) -> str:
    values = texts(flat(run.provenance))
    if run.manifest:
        values["corpus config_sha256"] = str(run.manifest.get("config_sha256", ""))
        values["tokenizer"] = str(run.manifest.get("tokenizer", {}).get("fingerprint", ""))
    if run.checkpoints:
        values["checkpoints"] = ", ".join(run.checkpoints)
    values["run_dir"] = str(run.run_dir)
    return settings(values)


def pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} {text}" for key, text in texts(values).items()]


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as a config writes them: JSON, but strings without quotes."""
    return {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in values.items()}

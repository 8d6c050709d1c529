"""Scores of items -> items.jsonl, summary.json, report.md and lists for other kits. Pictures are
drawn elsewhere.

The same scores give the same bytes: no date, no speed, no place of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.corpora.utterance import collapse
from plugins.evaluation import formats
from plugins.evaluation.items import Item
from plugins.evaluation.run import AUDIO
from plugins.evaluation.scores import METRICS, Metric, column
from plugins.evaluation.speaking import BASE, MODEL, TUNED
from plugins.evaluation.statistics import RESAMPLES, Estimate, difference, estimate
from plugins.files.disk import replace_when_done
from plugins.hearing.scorers import Missing, Scorer

ITEMS, SUMMARY, REPORT = "items.jsonl", "summary.json", "report.md"
DIFFERENCE = f"{TUNED} - {BASE}"
STAR = "the interval of the paired difference excludes 0."
_DIGITS = 6
_PERCENT = " %"
_WORST = 5  # items that are shown
_SHARES = ("wer_seed", "stopped", "silence")  # shown in percent, as all weighted ones
_MISHEARD = 0.5  # a recogniser of the language has 2 to 20 % of errors in read speech
TRUTH, CODEC = "truth", "codec"
_MEANING = {
    BASE: "the model before training",
    TUNED: "the model after training",
    MODEL: "the model",
    "generated": "the recordings that were given as generated",
    CODEC: "the truth through the codec: a ceiling for every model that speaks in its codes",
    TRUTH: "the recordings themselves",
}

Row = Mapping[str, Any]


def summarize(
    rows: Sequence[Row],
    names: Sequence[str],
    settings: Mapping[str, Any],
    scorers: Sequence[Scorer],
    missing: Sequence[Missing],
) -> dict[str, Any]:
    """What summary.json holds. names: of the systems, in the order of their columns."""
    systems = {}
    for name in names:
        failed, scores = 0, {}
        for row in rows:
            failed += bool(row["systems"].get(name, {}).get("error"))
        for metric in METRICS:
            scores[metric.name] = _written(estimate(column(rows, name, metric)))
        systems[name] = {"failed": failed, "scores": scores}
    differences: dict[str, Any] = {}
    # Only these two are one model before and after: the codec and the truth are no rivals.
    if BASE in systems and TUNED in systems:
        paired = differences[DIFFERENCE] = {}
        for metric in METRICS:
            tuned, base = column(rows, TUNED, metric), column(rows, BASE, metric)
            paired[metric.name] = _written(difference(tuned, base))
    return {
        "items": len(rows),
        "systems": systems,
        "differences": differences,
        "scorers": {scorer.name: scorer.identity for scorer in scorers},
        "missing": {scorer.name: str(scorer) for scorer in missing},
        "settings": dict(settings),
    }


def write(folder: Path, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """All but the lists for other kits."""
    lines = ""
    # Texts of any script stay readable.
    for row in rows:
        lines += json.dumps(_relative(row, folder), ensure_ascii=False) + "\n"
    _write(folder / ITEMS, lines)
    _write(folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    _write(folder / REPORT, markdown(summary, rows))


def write_lists(folder: Path, rows: Sequence[Row], items: Sequence[Item]) -> None:
    """`meta.lst` for Seed-TTS-eval, `text` and one `audio/SYSTEM/wav.scp` per system for VERSA,
    with absolute paths."""
    prompts = []
    for item in items:
        prompt = {"id": item.id, "text": item.text, "prompt": item.reference}
        if item.reference:
            prompt["prompt_text"] = item.dialogue.references[0].text or ""
        prompts.append(prompt)
    formats.write_meta(folder / formats.META, prompts)
    formats.write_kaldi(folder / formats.TEXT, {item.id: item.text for item in items})
    recordings: dict[str, dict[str, str]] = {}
    for row in rows:
        for name, said in row["systems"].items():
            # A system that failed at everything has its list too, an empty one.
            of_system = recordings.setdefault(name, {})
            if said["file"] is not None:
                of_system[row["id"]] = str(said["file"].absolute())
    for name, paths in recordings.items():
        formats.write_kaldi(folder / AUDIO / name / formats.SCP, paths)


def markdown(summary: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """report.md: the table, and the items that were understood worst."""
    return "\n".join(["# Evaluation", "", table(summary), *_worst(rows, summary["systems"])])


def table(summary: Mapping[str, Any]) -> str:
    """All systems side by side, and what is missing."""
    heads, *body = cells(summary, list(summary["systems"]))
    lines = [intervals(summary), "", _line(heads), _line(["---"] * len(heads))]
    lines += [*map(_line, body), ""]
    if summary["differences"]:
        lines += [f"`*`: {STAR}", ""]
    lines += [f"- {note}" for note in notes(summary)]
    heard_by = "; ".join(f"{name}: {identity}" for name, identity in summary["scorers"].items())
    lines += ["", f"Failures count as 100 % WER. {heard_by}.", ""]
    return "\n".join(lines)


def intervals(summary: Mapping[str, Any]) -> str:
    """What the numbers of the table are."""
    return f"{summary['items']} items. Mean [95 % interval, {RESAMPLES} resamples of the items]."


def cells(summary: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """The table without its marks: the heads, a line per score, what failed. names: the order of
    the systems."""
    paired = summary["differences"].get(DIFFERENCE)
    heads, failed = ["score", "better", *names], ["failed", "lower"]
    for name in names:
        failed.append(str(summary["systems"][name]["failed"]))
    if paired:
        heads.append(DIFFERENCE)
        failed.append("")
    lines = [heads]
    for metric in METRICS:
        line = [metric.title, metric.better]
        for name in names:
            score = summary["systems"][name]["scores"][metric.name]
            line.append(_cell(score, metric, summary))
        if paired:
            score = paired[metric.name]
            star = " *" if _is_sure(score) else ""
            line.append(_cell(score, metric, summary, sign="+") + star)
        lines.append(line)
    return [*lines, failed]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know, in Markdown."""
    lines = []
    for name in summary["systems"]:
        if name in _MEANING:
            lines.append(f"**{name}**: {_MEANING[name]}")
    if prompts := summary["settings"].get("prompts"):
        why = "as the model was trained with them, for every system that speaks here"
        lines.append(f"prompts: {prompts}, {why}")
    if scale := summary["settings"].get(TUNED, {}).get("adapter_scale"):
        lines.append(f"adapter_scale: {scale:g}, of **{TUNED}**")
    if best_of := summary["settings"].get("best_of"):
        lines.append(f"best of {best_of['takes']} takes, heard by {'; '.join(best_of['judge'])}")
        lines += _both_sides(best_of["judge"], summary["scorers"])
    if warning := misheard(summary):
        lines.append(f"warning: {warning}")
    for name, reason in summary["missing"].items():
        lines.append(f"missing: **{name}** ({reason})")
    return lines


def _both_sides(judge: Sequence[str], scorers: Mapping[str, str]) -> list[str]:
    """What is scored by whom the takes were chosen by, that is by their errors, too."""
    praised = []
    if scorers.get("transcript") in judge:
        praised.append("error rates (choose with another recogniser: --best_of_asr)")
    if scorers.get("voice") in judge:
        praised.append("similarity, where words were equal")
    if not praised:
        return []
    return [f"who chose the takes scores them too, which flatters {' and '.join(praised)}"]


def shown(value: float, metric: Metric, sign: str = "") -> str:
    """A score with the digits and the unit that it is read with."""
    if metric.weight is not None or metric.name in _SHARES:
        return f"{100 * value:{sign}.1f}{_PERCENT}"
    return f"{value:{sign}.3f}"


def misheard(summary: Mapping[str, Any]) -> str | None:
    """What to do if the recogniser does not understand the recordings themselves, as one of another
    language does not: its error rates then say nothing of any system."""
    truth = summary["systems"].get(TRUTH)
    rate = truth and truth["scores"]["wer"]
    if not rate or rate["mean"] < _MISHEARD:
        return None
    language = summary["settings"].get("language")
    fault = f"WER of the recordings themselves is {100 * rate['mean']:.0f} %"
    cause = f"are the texts really of language {language!r}, and does the recogniser know it?"
    return f"{fault}: {cause} Give --language and --asr (openai/whisper-large-v3 or a folder)"


def _worst(rows: Sequence[Row], names: Collection[str]) -> list[str]:
    name = next((name for name in (TUNED, MODEL, "generated") if name in names), None)
    wrong = []
    for row in rows:
        said = row["systems"].get(name, {})
        if said.get("wer") or said.get("error"):
            wrong.append((-said.get("wer", 1.0), row["id"], row["text"], said))
    if not wrong:
        return []
    lines = [f"## Worst understood ({name})", ""]
    lines += [_line(["item", "WER", "text", "heard"]), _line(["---"] * 4)]
    # No two items share an id: the order is the same in every run.
    for _, id_, text, said in sorted(wrong, key=lambda entry: entry[:2])[:_WORST]:
        heard = said["error"] or said.get("transcript", "")
        wer = f"{100 * said['wer']:.0f} %" if "wer" in said else ""
        lines.append(_line([id_, wer, text, heard]))
    return [*lines, ""]


def _cell(
    score: Mapping[str, Any] | None, metric: Metric, summary: Mapping[str, Any], sign: str = ""
) -> str:
    if metric.scorer in summary["missing"]:
        return "missing"
    if score is None:
        return ""
    cell = shown(score["mean"], metric, sign)
    if score["low"] is not None:
        low, high = shown(score["low"], metric, sign), shown(score["high"], metric, sign)
        cell += f" [{low}, {high}]".replace(_PERCENT, "")
    return cell


def _is_sure(score: Mapping[str, Any] | None) -> bool:
    return score is not None and score["low"] is not None and not score["low"] <= 0 <= score["high"]


def _line(cells: Sequence[str]) -> str:
    # A bar or a line break of a transcript would end its cell.
    plain = [collapse(cell.replace("|", "\\|")) for cell in cells]
    return f"| {' | '.join(plain)} |"


def _written(score: Estimate | None) -> dict[str, Any] | None:
    """Rounded, so that another machine's last bits do not change the files."""
    if score is None:
        return None
    written: dict[str, Any] = {"mean": score.mean, "low": score.low, "high": score.high}
    for name, value in written.items():
        if value is not None:
            written[name] = round(value, _DIGITS)
    return {**written, "items": score.items}


def _relative(row: Row, folder: Path) -> dict[str, Any]:
    """Our own clips by their place in the folder, which may move; recordings of others as they
    are."""
    systems = {}
    for name, said in row["systems"].items():
        path = said["file"]
        if path is not None:
            inside = path.is_relative_to(folder)
            path = path.relative_to(folder).as_posix() if inside else str(path)
        systems[name] = {**said, "file": path}
    return {**row, "systems": systems}


def _write(path: Path, text: str) -> None:
    with replace_when_done(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

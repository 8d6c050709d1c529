"""Scores of items -> items.jsonl, summary.json, report.md and lists for other kits (L3).

The same scores give the same bytes: no date, no speed, no place of the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.evaluation import formats
from plugins.evaluation.items import Item
from plugins.evaluation.run import AUDIO
from plugins.evaluation.scorers import Missing, Scorer
from plugins.evaluation.scores import METRICS, Metric, column
from plugins.evaluation.speaking import BASE, TUNED
from plugins.evaluation.statistics import RESAMPLES, Estimate, difference, estimate
from plugins.files.disk import replace_when_done

ITEMS, SUMMARY, REPORT = "items.jsonl", "summary.json", "report.md"
DIFFERENCE = f"{TUNED} - {BASE}"
_DIGITS = 6
_WORST = 5
_MISHEARD = 0.5  # a recogniser of the language has 2 to 20 % of errors in read speech
TRUTH = "truth"
_MEANING = {
    BASE: "the model before training",
    TUNED: "the model after training",
    "model": "the model",
    "generated": "the recordings that were given as generated",
    "codec": "the truth through the codec: a ceiling for every model that speaks in its codes",
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
    columns = {
        name: {metric.name: column(rows, name, metric) for metric in METRICS} for name in names
    }
    summary: dict[str, Any] = {
        "items": len(rows),
        "systems": {
            name: {
                "failed": sum(bool(row["systems"].get(name, {}).get("error")) for row in rows),
                "scores": {metric: _written(estimate(scores)) for metric, scores in found.items()},
            }
            for name, found in columns.items()
        },
        "differences": {},
        "scorers": {scorer.name: scorer.identity for scorer in scorers},
        "missing": {each.name: str(each) for each in missing},
        "settings": dict(settings),
    }
    if BASE in columns and TUNED in columns:
        summary["differences"][DIFFERENCE] = {
            metric.name: _written(
                difference(columns[TUNED][metric.name], columns[BASE][metric.name])
            )
            for metric in METRICS
        }
    return summary


def write(folder: Path, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """All but the lists for other kits."""
    shown = (json.dumps(_relative(row, folder), ensure_ascii=False) for row in rows)
    _write(folder / ITEMS, "".join(f"{line}\n" for line in shown))
    _write(folder / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    _write(folder / REPORT, markdown(summary, rows))


def write_lists(folder: Path, rows: Sequence[Row], items: Sequence[Item]) -> None:
    """`meta.lst` for Seed-TTS-eval, `text` and one `audio/SYSTEM/wav.scp` per system for VERSA,
    with absolute paths."""
    prompts = []
    for item in items:
        text = item.dialogue.references[0].text if item.reference else None
        prompts.append(
            {"id": item.id, "text": item.text, "prompt": item.reference, "prompt_text": text or ""}
        )
    formats.write_meta(folder / formats.META, prompts)
    formats.write_kaldi(folder / formats.TEXT, {item.id: item.text for item in items})
    for name in dict.fromkeys(name for row in rows for name in row["systems"]):
        paths = {row["id"]: row["systems"].get(name, {}).get("file") for row in rows}
        there = {id_: str(path.absolute()) for id_, path in paths.items() if path is not None}
        formats.write_kaldi(folder / AUDIO / name / formats.SCP, there)


def markdown(summary: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """report.md: the table, and the items that were understood worst."""
    worst = _worst(rows, list(summary["systems"]))
    return "\n".join(["# Evaluation", "", table(summary), *worst])


def table(summary: Mapping[str, Any]) -> str:
    """All systems side by side, and what is missing."""
    names = list(summary["systems"])
    has_difference = bool(summary["differences"])
    heads = ["score", "better", *names, *([DIFFERENCE] if has_difference else [])]
    lines = [
        f"{summary['items']} items. Mean [95 % interval, {RESAMPLES} resamples of the items].",
        "",
    ]
    lines += [_line(heads), _line(["---"] * len(heads))]
    for metric in METRICS:
        cells = [
            _cell(summary["systems"][name]["scores"][metric.name], metric, summary)
            for name in names
        ]
        if has_difference:
            found = summary["differences"][DIFFERENCE][metric.name]
            cells.append(
                _cell(found, metric, summary, signed=True) + (" *" if _is_sure(found) else "")
            )
        lines.append(_line([metric.title, metric.better, *cells]))
    lines.append(
        _line(
            [
                "failed",
                "lower",
                *(str(summary["systems"][name]["failed"]) for name in names),
                *([""] * has_difference),
            ]
        )
    )
    lines.append("")
    if has_difference:
        lines += ["`*`: the interval of the paired difference excludes 0.", ""]
    lines += [f"- **{name}**: {_MEANING[name]}" for name in names if name in _MEANING]
    if prompts := summary["settings"].get("prompts"):
        lines.append(
            f"- prompts: {prompts}, as the model was trained with them, for every system that speaks here"
        )
    if warning := misheard(summary):
        lines.append(f"- warning: {warning}")
    lines += [f"- missing: **{name}** ({reason})" for name, reason in summary["missing"].items()]
    lines += [
        "",
        "Failures count as 100 % WER. "
        + "; ".join(f"{k}: {v}" for k, v in summary["scorers"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def misheard(summary: Mapping[str, Any]) -> str | None:
    """What to do if the recogniser does not understand the recordings themselves, as one of another
    language does not: its error rates then say nothing of any system."""
    truth = summary["systems"].get(TRUTH)
    rate = truth and truth["scores"]["wer"]
    if not rate or rate["mean"] < _MISHEARD:
        return None
    language = summary["settings"].get("language")
    found = f"WER of the recordings themselves is {100 * rate['mean']:.0f} %"
    cause = f"are the texts really of language {language!r}, and does the recogniser know it?"
    return f"{found}: {cause} Give --language and --asr (openai/whisper-large-v3 or a folder)"


def _worst(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    name = next((name for name in (TUNED, "model", "generated") if name in names), None)
    if name is None:
        return []
    found = [(row, row["systems"].get(name, {})) for row in rows]
    wrong = sorted((each for each in found if each[1].get("wer") or each[1].get("error")),
                   key=lambda each: (-each[1].get("wer", 1.0), each[0]["id"]))  # fmt: skip
    if not wrong:
        return []
    lines = [
        f"## Worst understood ({name})",
        "",
        _line(["item", "WER", "text", "heard"]),
        _line(["---"] * 4),
    ]
    for row, said in wrong[:_WORST]:
        heard = said["error"] or said.get("transcript", "")
        wer = f"{100 * said['wer']:.0f} %" if "wer" in said else ""
        lines.append(_line([row["id"], wer, row["text"], heard]))
    return [*lines, ""]


def _cell(
    found: Mapping[str, Any] | None,
    metric: Metric,
    summary: Mapping[str, Any],
    *,
    signed: bool = False,
) -> str:
    if metric.scorer in summary["missing"]:
        return "missing"
    if found is None:
        return ""
    share = metric.weight is not None or metric.name in ("wer_seed", "stopped", "silence")
    sign = "+" if signed else ""

    def shown(value: float) -> str:
        return f"{100 * value:{sign}.1f}" if share else f"{value:{sign}.3f}"

    interval = "" if found["low"] is None else f" [{shown(found['low'])}, {shown(found['high'])}]"
    return shown(found["mean"]) + (" %" if share else "") + interval


def _is_sure(found: Mapping[str, Any] | None) -> bool:
    return found is not None and found["low"] is not None and not found["low"] <= 0 <= found["high"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _written(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    low, high = (
        None if value is None else round(value, _DIGITS) for value in (found.low, found.high)
    )
    return {"mean": round(found.mean, _DIGITS), "low": low, "high": high, "items": found.items}


def _relative(row: Row, folder: Path) -> dict[str, Any]:
    """Our own clips by their place in the folder, which may move; recordings of others as they
    are."""
    systems = {}
    for name, said in row["systems"].items():
        path = said["file"]
        inside = path is not None and path.is_relative_to(folder)
        systems[name] = {
            **said,
            "file": path and (path.relative_to(folder).as_posix() if inside else str(path)),
        }
    return {**row, "systems": systems}


def _write(path: Path, text: str) -> None:
    with replace_when_done(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

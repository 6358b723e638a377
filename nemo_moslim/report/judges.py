"""The report's section on judges: how far one agrees with given scores, or with the labels of rated answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_moslim.report.blocks import Heading, Section, Table, Text
from nemo_moslim.report.find import Found, Result


def judges_section(found: Found) -> Section:
    """Every agreement.json of task=judge_agreement."""
    section = Section("judges", "Judges")
    for result in found.agreements:
        if len(found.agreements) > 1:
            section.blocks.append(Heading(result.name))
        section.blocks += annotator_blocks(result) if "annotators" in result.content else score_blocks(result)
    return section


def score_blocks(result: Result) -> list[Any]:
    """A judge against scores that another one gave: overall, per turn, per model."""
    content = result.content
    parts = {"all": content, **{f"turn {turn}": part for turn, part in content["per_turn"].items()}}
    rows = [
        [name, f"{part['n']:,}", shown(part["spearman"]), shown(part["kappa"])]
        for name, part in {**parts, **content["per_model"]}.items()
    ]
    order = content["spearman_of_model_means"]
    note = (
        f"{lost(content['verdicts']) or 'every verdict has a score'}; {content['rows_without_score']:,} rows without a "
        f"given score. Spearman of the models' means: {'–' if order is None else f'{order:.3f}'}."
    )
    intro = f"{judge_text(content['judge'])}, against the scores in {content['data']}, {content['dimension']}."
    table = Table(["answers", "n", "Spearman [95 %]", "weighted kappa [95 %]"], rows, note, "Against given scores")
    return [Text(intro, "note"), table]


def annotator_blocks(result: Result) -> list[Any]:
    """Two annotators against the labels of rated answers, the paper's Figure 9."""
    content = result.content
    rows, notes = [], []
    for dimension, entry in content["dimensions"].items():
        for name, own in entry["annotators"].items():
            figures = [shown(own[key]) for key in ("accuracy", "kappa", "spearman")]
            rows.append([f"{dimension}, {name}", f"{entry['n']:,}", *figures, shown(entry["between"]["kappa"])])
            if left_out := lost(own["verdicts"]):
                notes.append(f"{dimension}, {name}: {left_out}.")
        majority = "–" if entry["majority"] is None else f"{entry['majority']:.3f}"
        rows.append([f"{dimension}, majority level", f"{entry['labelled']:,}", majority, "", "", ""])
    header = ["annotator", "n", "accuracy [95 %]", "kappa with labels [95 %]", "Spearman [95 %]",
              "kappa of the two [95 %]"]  # fmt: skip
    who = "; ".join(judge_text(report) for report in content["annotators"].values())
    intro = Text(f"Rated answers of {content['data']}. {who}.", "note")
    return [intro, Table(header, rows, " ".join(notes), "Against the labels of rated answers")]


def judge_text(judge: Mapping[str, Any]) -> str:
    """Who judged, and what it took: judge endpoint, m; 12 requests, 3 replies from the cache; tokens …; cost …."""
    text = f"judge: {judge_name(judge)}"
    if "requests" in judge:
        text += f"; {judge['requests']:,} requests, {judge.get('from_cache', 0):,} replies from the cache"
    if "tokens" in judge:
        used, cached = judge["tokens"], judge["tokens_with_cache"]
        text += (
            f"; tokens {used['input']:,} in, {used['output']:,} out (with the cache's {cached['input']:,} and "
            f"{cached['output']:,})"
        )
    if judge.get("cost") is not None:
        text += f"; cost {judge['cost']:,.4f} (with the cache's {judge['cost_with_cache']:,.4f})"
    if judge.get("cut"):
        text += f"; {judge['cut']:,} answers read without the left part of their text"
    return text


def judge_name(judge: Mapping[str, Any]) -> str:
    """The judge's kind and model."""
    return ", ".join(str(judge[key]) for key in ("judge", "model", "reward", "scripted") if judge.get(key))


def lost(verdicts: Mapping[str, int]) -> str:
    """Verdicts without a score: 2 refused, 1 failed; empty where there are none."""
    return ", ".join(f"{count:,} {status}" for status, count in verdicts.items() if count and status != "scored")


def shown(entry: Mapping[str, Any]) -> str:
    """0.812 [0.750, 0.861]."""
    if entry["value"] is None:
        return "–"
    return f"{entry['value']:.3f}" + ("" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]")


def agreement_sentences(results: Sequence[Result]) -> list[str]:
    """For the summary: how far each judge agrees."""
    sentences = []
    for result in results:
        content = result.content
        if "annotators" in content:
            for dimension, entry in content["dimensions"].items():
                told = ", ".join(f"{name} {shown(own['accuracy'])}" for name, own in entry["annotators"].items())
                sentences.append(f"Exact level of {dimension}: {told}.")
        else:
            found = f"Spearman {shown(content['spearman'])}, weighted kappa {shown(content['kappa'])}"
            sentences.append(f"{judge_name(content['judge'])} against given scores: {found}.")
    return sentences

"""lbctl rollout report: what was asked, what happened, and why, for whoever reviews a deployment.

Markdown for job summaries, JUnit for test tabs, HTML as one file, JSON for programs. All say the same.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from enum import StrEnum
from html import escape

from lb.cli import words
from lb.cli.output import Table
from lb.cli.rollout_view import data, figure, history, place
from lb.core.rollout import is_analysed
from lb.core.splits import describe
from lb.model.evidence import Outcome
from lb.model.rollout import Ending, Phase, Rollout, RolloutSpec, StepVerdict


class ReportFormat(StrEnum):
    """Values of -o of a report."""

    MARKDOWN = "md"
    JSON = "json"
    JUNIT = "junit"
    HTML = "html"


def report(rollout: Rollout, form: ReportFormat) -> str:
    """The report of a rollout, over or under way."""
    match form:
        case ReportFormat.JSON:
            return json.dumps({"rollout": data(rollout)}, indent=2, ensure_ascii=False)
        case ReportFormat.JUNIT:
            return junit(rollout)
        case ReportFormat.HTML:
            return html(rollout)
        case ReportFormat.MARKDOWN:
            return markdown(rollout)


# -- what is in it ---------------------------------------------------------------------------------


def _title(rollout: Rollout) -> str:
    return f"{rollout.service} to pool {rollout.spec.pool}: {place(rollout)}"


def _when(spec: RolloutSpec) -> str:
    return words.moment(spec.when) if spec.when else "at a time that nobody wrote down"


def _facts(rollout: Rollout) -> list[tuple[str, str]]:
    spec, status = rollout.spec, rollout.status
    steps = ", ".join(f"{each:g}" for each in spec.steps)
    found = [
        ("rollout", rollout.id),
        ("asked", f"{_when(spec)} by {spec.who or 'nobody who says so'}"),
        (
            "steps",
            f"{steps} %, every {spec.every:g} s" + (", with a gate after each" if spec.gate else ""),
        ),
    ]
    if spec.deadline is not None:
        found.append(("deadline", f"{spec.deadline:g} s"))
    if status.words:
        found.append(("because", status.words))
    if status.before is not None:
        found.append(("split before", describe(status.before)))
    if status.wrote is not None:
        found.append(("split written last", describe(status.wrote)))
    if not is_analysed(rollout):
        found.append(("analysis", "none: it went by time, and by health checks"))
    return found


def _verdicts(rollout: Rollout) -> Table:
    rows = [
        (
            str(each.step),
            each.verdict.metric,
            each.verdict.outcome.value + (" (observed only)" if each.verdict.observe else ""),
            figure(each.verdict.canary, each.verdict.unit),
            figure(each.verdict.stable, each.verdict.unit),
            figure(each.verdict.limit, each.verdict.unit),
            f"{each.verdict.canary_samples:,}",
            f"{each.verdict.stable_samples:,}",
            each.verdict.words,
        )
        for each in rollout.status.verdicts
    ]
    columns = (
        "Step",
        "Metric",
        "Verdict",
        "Canary",
        "Stable",
        "Limit",
        "n canary",
        "n stable",
        "In words",
    )
    return Table(columns, rows)


# -- forms -----------------------------------------------------------------------------------------

_SIGNS = {Phase.PROMOTED: "✅", Phase.ABORTED: "❌"}


def markdown(rollout: Rollout) -> str:
    """For $GITHUB_STEP_SUMMARY and merge requests."""
    lines = [f"## {_SIGNS.get(rollout.status.phase, '⏳')} {_cell(_title(rollout))}", ""]
    lines += [f"- **{name}**: {_cell(value)}" for name, value in _facts(rollout)]
    if rollout.status.verdicts:
        lines += ["", "### Verdicts", "", *_markdown_table(_verdicts(rollout))]
    lines += ["", "### What happened", "", *_markdown_table(history(rollout))]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _cell(text: str) -> str:
    # What a backend or a command said must not become markup of the page that shows it.
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|").replace("`", "'")


def junit(rollout: Rollout) -> str:
    """One test case for each metric of each step, and one for the rollout."""
    cases = [_case_of_rollout(rollout), *(_case(rollout, each) for each in rollout.status.verdicts)]
    suite = ET.Element(
        "testsuite",
        name=f"rollout {rollout.service} {rollout.id}",
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors=str(sum(case.find("error") is not None for case in cases)),
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
    )
    suite.extend(cases)
    whole = ET.Element("testsuites")
    whole.append(suite)
    ET.indent(whole)
    return ET.tostring(whole, encoding="unicode", xml_declaration=False)


def _case_of_rollout(rollout: Rollout) -> ET.Element:
    status = rollout.status
    case = ET.Element("testcase", classname=f"rollout.{rollout.service}", name="promoted")
    if status.history:
        case.set("time", f"{status.history[-1].at - status.history[0].at:.3f}")
    if not rollout.is_over:
        ET.SubElement(case, "skipped", message=_printable(place(rollout)))
    elif status.phase is not Phase.PROMOTED:
        unsure = status.ending in (Ending.INCONCLUSIVE, Ending.REFUSED)
        kind = "error" if unsure else "failure"
        ET.SubElement(case, kind, message=_printable(f"{place(rollout)}: {status.words}"))
    return case


def _case(rollout: Rollout, told: StepVerdict) -> ET.Element:
    verdict = told.verdict
    share = rollout.spec.steps[told.step - 1] if told.step else 0.0
    name = f"step {told.step} ({share:g} %): {verdict.metric}"
    case = ET.Element("testcase", classname=f"rollout.{rollout.service}", name=name)
    said = _printable(verdict.words)
    if verdict.observe:
        ET.SubElement(case, "skipped", message=f"only observed; {verdict.outcome}")
    elif verdict.outcome is Outcome.FAIL:
        ET.SubElement(case, "failure", message=said)
    elif verdict.outcome is not Outcome.PASS:
        ET.SubElement(case, "error", message=f"{verdict.outcome}: {said}")
    ET.SubElement(case, "system-out").text = said
    return case


def _printable(text: str) -> str:
    # XML 1.0 has no way to write most control characters.
    return "".join(each if each.isprintable() else " " for each in text)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1b1f24; background: #fff }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #d0d7de }
h1.promoted { color: #1a7f37 } h1.aborted { color: #cf222e }
dt { font-weight: 600 } dd { margin: 0 0 .4rem }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 }
  th, td { border-color: #30363d } }
"""


def html(rollout: Rollout) -> str:
    """One file that needs no other."""
    facts = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in _facts(rollout))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(_title(rollout))}</title><style>{_STYLE}</style></head><body>",
        f'<h1 class="{rollout.status.phase}">{escape(_title(rollout))}</h1>',
        f"<dl>{facts}</dl>",
    ]
    if rollout.status.verdicts:
        parts += ["<h2>Verdicts</h2>", _html_table(_verdicts(rollout))]
    parts += ["<h2>What happened</h2>", _html_table(history(rollout)), "</body></html>"]
    return "\n".join(parts)


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(
        ("<table>", row(table.columns, "th"), *(row(each, "td") for each in table.rows), "</table>")
    )

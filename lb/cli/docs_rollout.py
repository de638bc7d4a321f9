"""Writes docs/reference/rollout.md: the state diagram of the table in lb/core/rollout.py, the phases,
and how a rollout can end."""

from __future__ import annotations

from lb.cli.rollout_wait import ENDINGS
from lb.core.rollout import TABLE, Event
from lb.model.rollout import OVER, Ending, Phase, RolloutSpec

PHASES = {
    Phase.PENDING: "Asked for; a node has to take it up, and the canary has to be usable.",
    Phase.STEPPING: "The step's split is written; nodes apply it.",
    Phase.BAKING: "Every live node has applied it; the step's time runs, and the canary is looked at.",
    Phase.ANALYSING: "That time is over; the verdict on the whole step is awaited.",
    Phase.GATE: "The step was good; a person has to agree.",
    Phase.PAUSED: "A person said to wait.",
    Phase.PROMOTING: "All new flows go to the canary; nodes apply it.",
    Phase.PROMOTED: "Every live node has applied that. The end.",
    Phase.ABORTING: "The split of before is written; nodes apply it.",
    Phase.ABORTED: "No live node holds a slot for it, or somebody else wrote the split. The end.",
}
WHY = {
    Ending.ANALYSIS: "The canary was found to be worse.",
    Ending.UNHEALTHY: "None of its backends could be used.",
    Ending.INCONCLUSIVE: "Not enough data, or it could not be measured.",
    Ending.DEADLINE: "It was not promoted in time.",
    Ending.PERSON: "A person aborted it.",
    Ending.EDITED: "Somebody else changed the split; it stays as they wrote it.",
    Ending.REMOVED: "The service is gone.",
    Ending.REFUSED: "It could not begin; the split was not touched.",
}


def rollout_page() -> str:
    """The page, without the mark of a generated one."""
    parts = [
        "# Rollouts: phases and endings\n",
        "How to use them: [roll out a new version](../howto/rollout.md).\n",
        "## Phases\n",
        _table(("phase", "meaning"), [(f"`{phase}`", words) for phase, words in PHASES.items()]),
        diagram(),
        "What isn't drawn changes nothing. Where several things have happened at once, the order of"
        " [`_happened()`](../../lb/core/rollout.py) counts: first what somebody else did to the service,"
        " then an abort, then all other reasons to abort.\n",
        "## Times\n",
        "They are those of the clock of the node that runs it. When somebody sets that clock, they go"
        " with it, as if nobody had. When another node goes on whose clock is behind, the time of the"
        " phase begins anew; when it is ahead, it is shorter by as much: keep clocks together (NTP).\n",
        "The deadline counts from when a node takes the rollout up, whatever the clock of the machine"
        " says that `lbctl` runs on. With a node there that is at once, and the wait for a canary that"
        " can be used counts; while none is there nothing does.\n",
        "## Why a rollout is aborted\n",
        _table(
            ("`ending`", "meaning", "exit code of `wait`"),
            [
                (f"`{ending}`", words, str(int(ENDINGS[ending].exit_code)))
                for ending, words in WHY.items()
            ],
        ),
        "## What is asked for (`spec`)\n",
        _table(
            ("setting", "meaning"),
            [(f"`{n}`", str(f.description)) for n, f in RolloutSpec.model_fields.items()],
        ),
    ]
    return "\n".join(parts)


def diagram() -> str:
    """In Mermaid, as GitHub and others draw it. Events with the same way are one arrow."""
    arrows: dict[tuple[Phase, Phase], list[Event]] = {}
    for (before, event), after in TABLE.items():
        arrows.setdefault((before, after), []).append(event)
    # In Mermaid a semicolon ends a statement.
    lines = [
        f"    {before} --> {after}: {' / '.join(event.value.replace(';', ',') for event in events)}"
        for (before, after), events in arrows.items()
    ]
    ends = [f"    {phase} --> [*]" for phase in Phase if phase in OVER]
    return "\n".join(("```mermaid", "stateDiagram-v2", "    [*] --> pending", *lines, *ends, "```", ""))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(["| " + " | ".join(each) + " |" for each in lines] + [""])

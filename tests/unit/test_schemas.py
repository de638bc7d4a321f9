"""The schemas that `lbctl schema` prints are JSON Schema, and say what lb itself accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from lb.cli.declarative import DOCUMENTS
from lb.model import analysis, manifest
from lb.model.analysis import Analysis
from lb.model.health import Health
from lb.model.objects import Service
from lb.model.rollout import RolloutSpec

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    "manifest": manifest.schema(),
    "analysis": analysis.schema(),
    **{name: kind.model_json_schema() for name, kind in DOCUMENTS.items()},
}
# Words that say something to people and tools, and are no rules.
REMARKS = {"title", "description", "default", "$defs", "discriminator", "const"}


def examples() -> Iterator[tuple[str, str, str]]:
    """Schema, name, text."""
    for file in sorted(ROOT.glob("configs/examples/*.yaml")):
        yield "manifest", file.name, file.read_text()
    for file in sorted(ROOT.glob("configs/analysis/*.yaml")):
        yield "analysis", file.name, file.read_text()
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.md")]):
        blocks = re.findall(r"^ *```yaml\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, text in enumerate(blocks):
            kind = "analysis" if text.lstrip().startswith("metrics:") else "manifest"
            yield kind, f"{page.name}-{number}", text


EXAMPLES = list(examples())


@pytest.mark.parametrize(
    ("schema", "text"), [(s, t) for s, _, t in EXAMPLES], ids=[n for _, n, _ in EXAMPLES]
)
def test_every_example_is_what_the_schema_says(schema: str, text: str) -> None:
    Draft202012Validator(SCHEMAS[schema]).validate(yaml.safe_load(text))


def test_there_are_examples_with_durations_and_per_cents() -> None:
    texts = [text for _, _, text in EXAMPLES]
    assert any("interval: 1s" in text for text in texts)
    assert any(re.search(r": \d+(\.\d+)?%", text) for text in texts)


def words_of(schema: Any) -> Iterator[str]:
    """Of a schema and those in it."""
    if not isinstance(schema, dict):
        return
    yield from schema
    for word, value in schema.items():
        if word in ("properties", "$defs", "patternProperties"):
            for each in value.values():
                yield from words_of(each)
        elif word in ("items", "additionalProperties", "propertyNames", "not"):
            yield from words_of(value)
        elif word in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for each in value:
                yield from words_of(each)


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_rule_is_said_in_words_that_validators_ignore(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert set(words_of(SCHEMAS[name])) <= {*Draft202012Validator.VALIDATORS, *REMARKS}


SERVICE = {"name": "web", "vip": "203.0.113.1", "port": 80}
SPEC = {"pool": "canary", "steps": [100]}


def with_limit(value: object) -> dict[str, Any]:
    return {"metrics": [{"name": "errors", "limit": value}]}


def with_status(value: object) -> dict[str, Any]:
    return {"check": {"kind": "http", "status": value}}


TRIED: list[tuple[Any, dict[str, Any]]] = [
    *((Health, {"interval": each}) for each in (0.1, 3600, "100ms", "1h", "1.5s")),
    *((Health, {"interval": each}) for each in (0, 3601, "x", True, None)),
    *((Health, {"flap_hold": each}) for each in (1, "1m", "", "10 s", "-1s", [])),
    *((Health, with_status(each)) for each in (200, "200-299", [200, "404"])),
    *((Health, with_status(each)) for each in (99, "2xx", [], [True], None)),
    *((Service, {**SERVICE, "window": each}) for each in (1, 604800, "15m", 900.0)),
    *((Service, {**SERVICE, "window": each}) for each in (0, 604801, 1.5, "1w")),
    *((RolloutSpec, {**SPEC, "every": each}) for each in (0.1, "60s", 0, -1, "x", None)),
    *((RolloutSpec, {**SPEC, "deadline": each}) for each in (None, "30m", 0)),
    *((Analysis, with_limit(each)) for each in (0, 0.5, "1%", "1 %", "250ms", -1, "1 % ?", True)),
    *((Analysis, {**with_limit(1), "false_alarms": each}) for each in ("1%", 0.2, 0.21, 0)),
]


@pytest.mark.parametrize(("kind", "settings"), TRIED)
def test_a_schema_accepts_what_lb_accepts(kind: Any, settings: dict[str, Any]) -> None:
    try:
        kind.model_validate(settings)
        good = True
    except ValidationError:
        good = False
    assert Draft202012Validator(kind.model_json_schema()).is_valid(settings) is good


def test_times_are_stored_as_numbers() -> None:
    assert (
        Service.model_validate({**SERVICE, "window": "15m"}).model_dump_json().count('"window":900,')
        == 1
    )
    assert Health.model_validate({"interval": "500ms"}).interval == 0.5

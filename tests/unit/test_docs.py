"""The documentation keeps its word: commands exist, links lead somewhere, tables are complete."""

from __future__ import annotations

import configparser
import ctypes
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import typer

from bench.__main__ import SUITES
from lb import settings as settings_module
from lb.cli.main import app as lbctl_app
from lb.datapath import consts, headers, mapkeys, replay, structs
from lb.datapath.bpf import MapType
from lb.datapath.maps import new_table, specs
from lb.errors import ExitCode
from lb.model import analysis, manifest
from lb.model.objects import Mode
from lb.node.main import app as lbd_app
from lb.settings import Checks, Etcd, Hook, Limits, Metrics, Observation, Settings
from tests.kernels import debian, plan

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PROGRAMS = {"lbctl": typer.main.get_command(lbctl_app), "lbd": typer.main.get_command(lbd_app)}
MAKE_VARIABLES = {
    "MODE": set(Mode),
    "HOOK": set(Hook),
    "SUITES": set(SUITES),
    "QUICK": {"1"},
    "WORKERS": {"1"},
    "KERNEL": set(debian.SERIES),
    "PART": set(plan.PARTS),
}
MAKE_FILES = {"OLD", "NEW"}

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SEPARATORS = frozenset(";|&()")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name)


# --- commands -------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[list[str]]:
    """Simple commands of all `sh` blocks, and those behind a `$ ` in others, as words."""
    for language, body in FENCE.findall(text):
        for line in body.replace("\\\n", " ").splitlines():
            if language != "sh":
                prompt = re.match(r"\s*\$ (.*)", line)
                if not prompt:
                    continue
                line = prompt[1]
            yield from simple_commands(line)


def simple_commands(line: str) -> Iterator[list[str]]:
    words: list[str] = []
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    tokens = iter([*lexer, ";"])
    for word in tokens:
        if word in (">", "<"):
            next(tokens)  # the file
        elif set(word) <= SEPARATORS:
            if words:
                yield unwrapped(words)
            words = []
        else:
            words.append(word)


def unwrapped(words: list[str]) -> list[str]:
    """The command that is run in the end, without sudo, watch and the like."""
    rest = list(words)
    while rest:
        if rest[0] in ("sudo", "env", "time") or re.match(r"\w+=", rest[0]):
            rest = rest[1:]
        elif rest[:3] == ["ip", "netns", "exec"]:
            rest = rest[4:]
        elif rest[:2] == ["watch", "-n"]:
            rest = rest[3:]
        else:
            break
    return rest


def parse(words: list[str]) -> None:
    """Let the program's own parser read the command line. Raises what it raises."""
    command: Any = PROGRAMS[Path(words[0]).name]
    path, arguments = words[0], words[1:]
    while hasattr(command, "commands"):
        if arguments and arguments[0].startswith("-"):
            break  # --version, --help: of the whole program
        assert arguments, f"{path}: which command?"
        assert arguments[0] in command.commands, f"{path} has no command {arguments[0]!r}"
        command, path = command.commands[arguments[0]], f"{path} {arguments[0]}"
        arguments = arguments[1:]
    with suppress(typer.Exit):  # --help, --version
        command.make_context(path, list(arguments))


def check_options(words: list[str]) -> None:
    """Like parse(), of a command that is only mentioned: what it names must exist."""
    command: Any = PROGRAMS[words[0]]
    for word in words[1:]:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
        elif word.startswith("-"):
            known = {each for p in command.params for each in (*p.opts, *p.secondary_opts)}
            known |= {"--help", "--install-completion"}
            assert word.partition("=")[0] in known, f"{' '.join(words)}: no option {word}"
        else:
            assert not hasattr(command, "commands"), f"{' '.join(words)}: no {word!r}"


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_make(words: list[str]) -> None:
    for word in words[1:]:
        variable, equals, value = word.partition("=")
        if equals and variable in MAKE_VARIABLES:
            assert set(value.split()) <= MAKE_VARIABLES[variable], word
        elif equals and variable in MAKE_FILES:
            assert value.endswith(".json"), word
        else:
            assert word in targets(), f"no target {word!r}"


def inline_code(text: str) -> list[str]:
    return [each.replace("\n", " ") for each in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


@every_page
def test_commands_can_be_typed(page: Path) -> None:
    text = page.read_text()
    for words in command_lines(text):
        if Path(words[0]).name in PROGRAMS:
            try:
                parse(words)
            except Exception as error:  # noqa: BLE001 - whatever the parser raises
                pytest.fail(f"{shlex.join(words)}: {error}")
        elif words[0] == "make":
            check_make(words)
    for code in inline_code(text):
        words = code.removeprefix("sudo ").split()
        if words and words[0] in PROGRAMS and not code.endswith("]"):  # usage lines of the reference
            check_options(words)
        elif words and words[0] == "make":
            check_make(words)


NO_STORE = {"analysis", "import", "schema"}


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/howto/*.md")), ids=name)
def test_commands_that_need_root_have_sudo(page: Path) -> None:
    """The embedded store is root's, and so is the password of another one: one rule for all pages."""
    bodies = [body for language, body in FENCE.findall(page.read_text()) if language == "sh"]
    for before, noun in re.findall(r"(^|\S+) *\blbctl +(\S+)", "\n".join(bodies), re.MULTILINE):
        assert before == "sudo" or noun in NO_STORE or "/" in before, f"{before} lbctl {noun}"


def test_the_check_sees_commands_and_refuses_bad_ones() -> None:
    readme = [words for words in command_lines((ROOT / "README.md").read_text()) if words]
    first = {" ".join(words[:3]) for words in readme}
    assert {"make demo", "make test", "make lab", "lbctl backend weight", "lbctl service add"} <= first
    for bad in ("lbctl frobnicate", "lbctl backend weight", "lbctl status --nope", "lbd --hook dpdk"):
        with pytest.raises(Exception, match=r".+"):
            parse(bad.split())
    with pytest.raises(AssertionError):
        check_options(["lbctl", "backend", "list", "--wait"])
    with pytest.raises(AssertionError):
        check_make(["make", "coffee"])


# --- links and paths ------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{name(page)}: {target}"


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    words = [word for line in command_lines(text) for word in line] + inline_code(text)
    for word in words:
        if re.fullmatch(r"(lb|xdp|tc|tests|configs|docs)/[\w./-]+", word):
            assert (ROOT / word).exists(), f"{name(page)}: {word}"


# --- tables of docs/data-path.md ------------------------------------------------------------------


def rows(section: str) -> dict[str, list[str]]:
    """The rows of the first table of a section, by the name in their first cell."""
    text = (ROOT / "docs/data-path.md").read_text().partition(f"\n## {section}\n")[2]
    found = {}
    for line in text.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells[1:]
    return found


def test_every_outcome_is_described() -> None:
    described = rows("Outcomes")
    assert list(described) == [each.name.lower() for each in consts.Outcome]
    assert all(meaning for meaning, *_ in described.values())


def test_every_map_is_described_with_its_sizes() -> None:
    kinds = {
        MapType.HASH: "hash",
        MapType.ARRAY: "array",
        MapType.PERCPU_ARRAY: "per-CPU array",
        MapType.LRU_HASH: "LRU hash",
        MapType.LPM_TRIE: "LPM trie",
        MapType.ARRAY_OF_MAPS: "array of maps",
        MapType.DEVMAP_HASH: "devmap hash",
    }
    described = rows("Maps")
    wanted = {
        name: [kinds[each.kind], str(each.key_size), str(each.value_size), str(each.max_entries)]
        for name, each in specs(Limits()).items()
    }
    assert {name: cells[:4] for name, cells in described.items()} == wanted
    assert f"{new_table().value_size:,} bytes" in described["tables"][4]


def test_the_vip_that_is_shown_in_bytes() -> None:
    text = (ROOT / "docs/data-path.md").read_text()
    address = ip_address("198.51.100.100")
    key = mapkeys.endpoint(address, 80, 6)
    assert len(key) == ctypes.sizeof(structs.Endpoint)
    shown = "".join(re.findall(r"^((?:[0-9a-f]{2} {1,2})+)", text.partition("key:\n")[2], re.MULTILINE))
    assert bytes.fromhex(shown)[: len(key)] == key


# --- settings, examples, systemd ------------------------------------------------------------------


def test_lb_toml_loads_and_shows_every_setting() -> None:
    file = ROOT / "configs/lb.toml"
    loaded = settings_module.load(file, {})
    shown = tomllib.loads(file.read_text())
    assert shown.keys() == Settings.model_fields.keys()
    assert shown["etcd"].keys() == Etcd.model_fields.keys()
    assert shown["limits"].keys() == Limits.model_fields.keys()
    assert shown["checks"].keys() == Checks.model_fields.keys()
    assert shown["observation"].keys() == Observation.model_fields.keys()
    assert shown["metrics"].keys() == Metrics.model_fields.keys()
    # As the file says: all but these are the defaults.
    own = {"node", "interfaces"}
    assert loaded.model_dump(exclude=own) == Settings().model_dump(exclude=own)


def test_examples_load() -> None:
    examples = sorted((ROOT / "configs/examples").glob("*.yaml"))
    assert examples
    for example in examples:
        assert manifest.load(example.read_text(), example.name).services


def test_manifests_and_analyses_in_the_pages_load() -> None:
    blocks = [block for page in PAGES for block in FENCE.findall(page.read_text())]
    blocks = [body for language, body in blocks if language == "yaml"]
    analyses = [body for body in blocks if body.lstrip().startswith("metrics:")]
    assert 0 < len(analyses) < len(blocks)
    for body in blocks:
        if body in analyses:
            assert analysis.load(body, "a page").metrics
        else:
            assert manifest.load(body, "a page").services


def test_the_unit_of_a_server_that_observes_itself() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "configs/systemd/lb-observe.service")
    words = unit["Service"]["ExecStart"].split()
    assert words[0] == "/opt/lb/bin/lbctl"
    parse(words)
    assert int(unit["Service"]["RestartPreventExitStatus"]) == ExitCode.USAGE


def test_the_systemd_unit_names_what_exists() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "configs/systemd/lbd.service")
    service = unit["Service"]
    words = service["ExecStart"].split()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(words[0]).name in scripts
    parse(words)
    assert words[words.index("--config") + 1] == str(settings_module.DEFAULT_FILE)
    assert int(service["RestartPreventExitStatus"]) == ExitCode.USAGE
    assert Path("/var/lib", service["StateDirectory"]) == Path(Settings().store).parent
    assert Path("/var/cache", service["CacheDirectory"]) == headers.CACHE.parent
    # The programs are installed where the unit looks for them.
    for page in ("README.md", "docs/howto/install.md"):
        installs = [line for line in command_lines((ROOT / page).read_text()) if "venv" in line]
        assert [Path(line[-1], "bin/lbd") for line in installs] == [Path(words[0])]


# --- lbctl replay ---------------------------------------------------------------------------------


def test_replay_copies_every_map_that_the_programs_write() -> None:
    headers = "".join(path.read_text() for path in (ROOT / "xdp/include").glob("*.h"))
    written = set(re.findall(r"bpf_map_(?:update|delete)_elem\(lb_(\w+?)(?:_map)?,", headers))
    assert {"conntrack", "fragments"} <= written
    assert written <= {*replay._COPIED, *replay._FRESH}

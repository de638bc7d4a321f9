"""Errors, exit codes, pipes, completion and start-up time (lb/cli/main.py)."""

import json
import os
import subprocess
import sys

import dpkt
import pytest

from lb.cli import main
from lb.cli.output import Format
from lb.errors import ConflictError, DatapathError, ExitCode
from lb.store.base import Compare, Put
from lb.store.opening import Absent, open_store

PROGRAM = [sys.executable, "-m", "lb.cli.main"]


def program(*arguments, **options):
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, **options)


def test_errors_are_json_on_stdout_too(web):
    result = web("backend", "weight", "web", "b1", "70000", "-o", "json")
    assert result.code == 2
    assert result.json == {
        "error": {
            "kind": "UserError",
            "message": "weight: must be 0 to 65535, not 70000",
            "hint": "nothing was changed; `lbctl schema backend` says what is valid",
            "exit_code": 2,
        }
    }
    assert result.err.startswith("error: weight: must be 0 to 65535")


@pytest.mark.parametrize(
    "arguments",
    [
        ("service", "add", "--nonsense", "-o", "json"),
        ("-o", "json", "service", "lst"),
        ("service", "show", "--output=json"),
        ("backend", "list", "a", "b", "-ojson"),
        ("backend", "add", "web", "b1", "10.0.0.1", "--timeout", "x", "-o", "json"),
        ("nope", "-o", "json"),
        ("service", "add", "x", "--vip", "10.0.0.1:80", "--timeout", "-1", "-o", "json"),
        ("service", "add", "x", "--vip", "10.0.0.1:80", "--timeout", "nan", "-o", "json"),
    ],
)
def test_usage_errors_are_json_too(lbctl, arguments):
    result = lbctl(*arguments)
    assert result.code == 2
    error = result.json["error"]
    assert (error["kind"], error["exit_code"]) == ("UsageError", 2)
    assert "--help" in error["hint"]
    assert len(result.err.splitlines()) == 2
    assert result.err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (("backend", "weight", "web", "b1", "1", "--wait", "--timeout"), "60 s"),
        (("service", "metrics", "web", "--over"), "soon"),
        (("service", "set", "web", "--window"), "1w"),
        (("service", "add", "x", "--vip", "10.0.0.9:80", "--window"), "1w"),
        (("backend", "drain", "web", "b1", "--deadline"), "later"),
        (("rollout", "wait", "web", "--timeout"), "x"),
        (("check", "web/b1", "--check-timeout"), "x"),
    ],
)
def test_what_is_no_time_is_said_with_what_is_one(web, arguments, given):
    refused = web(*arguments, given)
    assert refused.code == 2
    assert f"'{given}' is not a duration; write 2, 500ms, 10s or 5m" in refused.err
    assert arguments[-1].removeprefix("--").removeprefix("check-") in refused.err


def test_times_are_written_alike_everywhere(web, nodes):
    nodes.follow("n1")
    web.ok("backend", "weight", "web", "b1", "1", "--wait", "--timeout", "1m")
    web.ok("service", "set", "web", "--window", "15m")
    assert web.json("service", "show", "web")["service"]["window"] == 900
    web.ok("service", "add", "x", "--vip", "10.0.0.9:80", "--window", "90s")
    assert web.json("service", "show", "x")["service"]["window"] == 90
    refused = web("service", "set", "web", "--window", "500ms")
    assert (refused.code, "window: must be 1 to 604800, not 0.5" in refused.err) == (2, True)
    for over in ("100ms", "inf"):
        refused = web("service", "metrics", "web", "--over", over)
        assert (refused.code, "one second at least" in refused.err) == (2, True)


def test_errors_as_yaml(web):
    assert web("service", "show", "x", "-o", "yaml").out.startswith("error:\n  kind: NotFoundError\n")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["x", "-o", "json"], Format.JSON),
        (["x", "-oyaml"], Format.YAML),
        (["x", "-o=json"], Format.JSON),
        (["x", "--output", "yaml", "--output=json"], Format.JSON),
        (["x", "-o"], Format.TABLE),
        (["x", "-o", "xml"], Format.TABLE),
        (["x", "--", "-o", "json"], Format.TABLE),
        ([], Format.TABLE),
    ],
)
def test_asked_format(arguments, found):
    assert main.asked_format(arguments) is found


def test_without_arguments_it_helps(lbctl):
    for arguments in ((), ("service",), ("backend",)):
        result = lbctl(*arguments)
        assert result.code == 2
        assert "Usage: lbctl" in result.err
        assert "Commands:" in result.err


def test_help_and_version(lbctl):
    text = " ".join(lbctl.ok("backend", "weight", "-h").out.split())
    assert text.startswith("Usage: lbctl backend weight [OPTIONS]")
    assert "NAME=WEIGHT" in text
    assert lbctl.ok("--version").out == "lbctl 0.1.0\n"


def test_a_bug_is_one_line(lbctl, monkeypatch):
    def broken(_session):
        raise KeyError("surprise")

    monkeypatch.setattr("lb.cli.session.Session.snapshot", broken)
    result = lbctl("status", "-o", "json")
    assert result.code == ExitCode.INTERNAL
    assert result.json["error"]["kind"] == "InternalError"
    assert len(result.err.splitlines()) == 2
    assert "LB_DEBUG=1" in result.err
    monkeypatch.setenv("LB_DEBUG", "1")
    assert "Traceback" in lbctl("status").err


def test_a_store_that_cannot_be_opened(lbctl, machine):
    (machine / "text.db").write_text("this is no database, but long enough to look like one" * 20)
    assert lbctl("status", "--store", str(machine / "text.db")).code == 5
    assert lbctl("status", "--store", "redis://somewhere").code == 2
    result = lbctl("status", "--store", "etcd://127.0.0.1:1")  # nobody listens there
    assert result.code == 5
    assert "127.0.0.1:1" in result.err
    assert lbctl("status", "--store", str(machine)).code == 5


def test_store_and_config_options(lbctl, machine):
    other = str(machine / "other.db")
    open_store(other).close()
    open_store(str(machine / "store.db")).close()
    lbctl.ok("service", "add", "web", "--vip", "10.0.0.1:80", "--store", other)
    assert lbctl.json("service", "list") == []
    assert len(lbctl.json("service", "list", "--store", other)) == 1
    assert lbctl.json("status", "--store", other)["store"]["url"] == other
    assert lbctl("status", "--config", str(machine / "none.toml")).code == 3
    (machine / "bad.toml").write_text("stroe = 'x'")
    result = lbctl("status", "--config", str(machine / "bad.toml"))
    assert (result.code, "stroe" in result.err) == (2, True)


@pytest.mark.parametrize("command", [("status",), ("service", "list"), ("export",), ("history",)])
@pytest.mark.parametrize("path", ["x.db", "none/a/b.db"])
def test_who_looks_makes_no_store(lbctl, machine, monkeypatch, command, path):
    for arguments in (("--store", str(machine / path)), ()):
        monkeypatch.setenv("LB_STORE", str(machine / path))
        result = lbctl(*command, *arguments)
        assert result.code == 5
        assert result.err.startswith(f"error: no store at {machine / path}\nhint: check the path")
    assert [each.name for each in machine.iterdir()] == ["lb.toml"]
    (machine / "empty").write_text("")
    assert lbctl(*command, "--store", str(machine / "empty")).code == 5
    assert not (machine / "empty").read_bytes()
    below_a_file = lbctl(*command, "--store", str(machine / "lb.toml" / "x.db"))
    assert (below_a_file.code, "no store at" in below_a_file.err) == (5, True)


def test_the_first_change_makes_the_store_that_the_settings_name(lbctl, machine, monkeypatch):
    monkeypatch.setenv("LB_STORE", str(machine / "folder" / "x.db"))
    add = ("service", "add", "web", "--vip", "10.0.0.1:80")
    assert lbctl("backend", "weight", "web", "b1", "1").code == 3  # refused: nothing to make it for
    assert "dry run" in lbctl.ok(*add, "--dry-run").out
    assert lbctl("rollback", "3").code == 3
    assert lbctl(*add, "--store", str(machine / "other.db")).code == 5
    assert not (machine / "folder").exists()
    assert not (machine / "other.db").exists()
    assert "stored at revision 1" in lbctl.ok(*add).out
    assert [each["name"] for each in lbctl.json("service", "list")] == ["web"]


def test_a_store_that_somebody_makes_meanwhile(machine):
    path = str(machine / "x.db")
    with open_store(path, absent=Absent.MAKE_AT_COMMIT) as late:
        assert (late.read("").revision, late.get("a")) == (0, None)
        with open_store(path) as early:
            early.commit([Put("a", "1")])
        assert late.get("a").value == "1"
        with pytest.raises(ConflictError):
            late.commit([Put("a", "2")], [Compare("a", 0)])


def test_a_home_that_no_shell_has_seen(lbctl, machine, monkeypatch):
    monkeypatch.chdir(machine)
    monkeypatch.setenv("HOME", "/home/somebody")
    result = lbctl("service", "add", "web", "--vip", "10.0.0.1:80", "--store", "~/x.db")
    assert result.code == 2
    assert "hint: write /home/somebody/x.db" in result.err
    assert not (machine / "~").exists()
    assert lbctl("status", "--store", "").code == 2


@pytest.mark.usefixtures("store")
def test_end_of_input_and_datapath_errors_have_their_codes(lbctl, monkeypatch):
    def refuse(*_):
        raise DatapathError("no maps", hint="start lbd")

    monkeypatch.setattr("lb.cli.kernel.open_kernel", refuse)
    result = lbctl("trace", "10.9.0.1:1000", "10.0.0.1:80", "-o", "json")
    assert result.code == 6
    assert result.json["error"]["hint"] == "start lbd"


# -- the program -------------------------------------------------------------------------------


@pytest.mark.usefixtures("machine")
def test_the_program():
    added = program("service", "add", "web", "--vip", "10.0.0.1:80", "-o", "json")
    assert (added.returncode, added.stderr) == (0, "")
    assert json.loads(added.stdout)["changed"] is True
    again = program("service", "add", "web", "--vip", "10.0.0.1:80", "-o", "json")
    assert again.returncode == 4
    assert json.loads(again.stdout)["error"]["kind"] == "ConflictError"


@pytest.mark.usefixtures("web")
def test_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    for arguments in (("export",), ("schema",), ("service", "list", "-o", "json")):
        process = subprocess.run(
            [*PROGRAM, *arguments], stdout=write, stderr=subprocess.PIPE, timeout=60
        )
        assert (process.returncode, process.stderr) == (141, b"")
    os.close(write)


@pytest.mark.usefixtures("machine")
def test_help_needs_none_of_the_heavy_modules():
    code = (
        "import sys\nfrom lb.cli import main\nassert main.run(['--help']) == 0\n"
        "heavy = {'numpy', 'pyroute2', 'bcc', 'yaml', 'rich', 'sqlite3', 'tenacity', 'grpc'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.usefixtures("web")
def test_listing_without_a_kernel_needs_no_numpy():
    code = (
        "import sys\nfrom lb.cli import main\nassert main.run(['backend', 'list']) == 0\n"
        "heavy = {'numpy', 'pyroute2', 'bcc', 'rich', 'etcd3', 'grpc'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


# -- completion --------------------------------------------------------------------------------


def complete(lbctl, monkeypatch, line):
    with monkeypatch.context() as patch:
        patch.setenv("_LBCTL_COMPLETE", "complete_bash")
        patch.setenv("COMP_WORDS", line)
        patch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        return lbctl()


@pytest.mark.parametrize(
    ("line", "offered", "missing"),
    [
        ("lbctl service show ", ["web", "api"], ["b1"]),
        ("lbctl service show w", ["web"], ["api"]),
        ("lbctl backend weight web ", ["b1", "b2", "b3"], ["a1"]),
        ("lbctl backend drain web b1 ", ["b2"], ["a1"]),
        ("lbctl backend show api ", ["a1"], ["b1"]),
        ("lbctl backend list ", ["web", "api"], []),
        ("lbctl ba", ["backend"], ["service"]),
        ("lbctl schema m", ["manifest"], ["service"]),
    ],
)
def test_completion(web, monkeypatch, line, offered, missing):
    web.ok("service", "add", "api", "--vip", "10.0.0.2:80")
    web.ok("backend", "add", "api", "a1", "10.0.1.9")
    result = complete(web, monkeypatch, line)
    assert result.err == ""
    assert set(offered) <= set(result.out.split())
    assert not set(missing) & set(result.out.split())


def test_completion_of_another_store(web, monkeypatch, machine):
    other = str(machine / "other.db")
    open_store(other).close()
    web.ok("service", "add", "elsewhere", "--vip", "10.0.0.1:80", "--store", other)
    assert "elsewhere" in complete(web, monkeypatch, f"lbctl service show --store {other} ").out


def test_completion_without_a_store_is_silent_and_makes_none(lbctl, monkeypatch, machine):
    result = complete(lbctl, monkeypatch, "lbctl service show ")
    assert (result.out.strip(), result.err) == ("", "")
    assert not (machine / "store.db").exists()
    monkeypatch.setenv("LB_CONFIG", str(machine / "none.toml"))
    result = complete(lbctl, monkeypatch, "lbctl service show ")
    assert (result.out.strip(), result.err) == ("", "")


def test_a_mode_that_does_not_exist(lbctl):
    done = lbctl("service", "add", "a", "--vip", "198.51.100.9:80", "--mode", "masq")
    assert done.code == 2
    assert done.err.startswith(
        "error: invalid value for '--mode': 'masq' is not one of 'dsr', 'nat', 'ipip'"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("rollout", "report", "web", "--id", "\udcff"),
        ("backend", "weight", "web", "b1=\udcff"),
        ("apply", "-f", "a\0b"),
        ("replay", "a\0b"),
    ],
)
def test_words_that_are_no_text(web, arguments):
    result = web(*arguments)
    assert result.code == 2
    assert "is not UTF-8" in result.err
    assert result.err.isascii()


def test_bytes_that_are_no_text_from_a_shell(machine):
    del machine  # settings and store are its own
    result = program("service", "show", b"caf\xe9", env={**os.environ, "PYTHONUTF8": "1"})
    assert result.returncode == 2
    assert r"'caf\udce9' is not UTF-8" in result.stderr


@pytest.mark.parametrize("command", [("apply", "-f"), ("restore",), ("replay",), ("import", "ipvs")])
def test_files_that_can_not_be_read(lbctl, tmp_path, command):
    for name in ("x" * 300, str(tmp_path)):  # longer than a name can be, and a folder
        result = lbctl(*command, name)
        assert result.code == 2, result
        assert name in result.err
        assert "Errno" not in result.err
    assert f"{tmp_path} is a directory" in result.err or command == ("restore",)


def test_a_novel_is_not_quoted(lbctl, tmp_path):
    (tmp_path / "m.yaml").write_text("x" * 3_000_000)
    result = lbctl("apply", "-f", str(tmp_path / "m.yaml"))
    assert result.code == 2
    assert "a manifest is a mapping with the key 'services', not 'xxx" in result.err
    assert len(result.err) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stroe = 'x'", "stroe is not a setting; did you mean 'store'?"),
        ("[limits]\nservcies = 3", "limits.servcies is not a setting; did you mean 'services'?"),
        ("[nonsense]", "nonsense is not a setting\n"),
        ("hook = 'xpd'", "hook: must be 'auto', 'xdp', 'xdp-generic' or 'tc'; not 'xpd'"),
        ("[limits]\nvips = 1", "limits.vips: must be greater than or equal to 2; not 1"),
        ("[metrics]\nlisten = 'x'", "metrics.listen: not HOST:PORT, as in 127.0.0.1:9642; not 'x'"),
    ],
)
def test_settings_that_are_wrong(lbctl, machine, text, message):
    (machine / "bad.toml").write_text(text)
    result = lbctl("status", "--config", str(machine / "bad.toml"))
    assert result.code == 2
    assert f"bad.toml: {message}" in result.err


def test_settings_that_are_no_file(lbctl, machine):
    for name in (str(machine), ""):
        result = lbctl("status", "--config", name)
        assert result.code == 2
        assert f"{name or '.'} is a directory\nhint: --config" in result.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--store", "X", "status"), "put --store behind the command: lbctl COMMAND … --store …"),
        (("-o", "json", "status"), "put -o behind the command: lbctl COMMAND … -o …"),
        (("backend", "--wait", "list"), "put --wait behind the command: lbctl backend COMMAND …"),
        (("backend", "--nonsense", "list"), "see `lbctl backend --help`"),
    ],
)
def test_options_before_the_command(lbctl, arguments, hint):
    result = lbctl(*arguments)
    assert result.code == 2
    assert f"\nhint: {hint}" in result.err


def test_the_help_says_where_options_go(lbctl):
    assert "Options go behind the command: lbctl status -o json" in lbctl.ok("--help").out


def test_what_is_no_address_is_in_no_example(lbctl):
    for words in (("a", "b"), ("10.0.0.1:99999", "b:80"), ("a:1", "b:1")):
        result = lbctl("trace", *words)
        assert result.code == 2
        assert "hint: for example " in result.err
        assert "for example a" not in result.err
    assert "for example 10.0.0.1:80" in lbctl("service", "add", "web", "--vip", "10.0.0.1").err


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' * 100_000])
def test_a_copy_that_is_nested_without_an_end(lbctl, tmp_path, text):
    (tmp_path / "copy.json").write_text(text)
    result = lbctl("restore", str(tmp_path / "copy.json"))
    assert result.code == 2
    assert "can't be used: it is no copy of what a node serves" in result.err
    (tmp_path / "copy.json").write_text("")
    assert "it is no copy of what a node serves" in lbctl("restore", str(tmp_path / "copy.json")).err


@pytest.mark.usefixtures("store")
def test_frames_that_can_not_be_written(lbctl, tmp_path):
    with (tmp_path / "in.pcap").open("wb") as file:
        dpkt.pcap.Writer(file)
    out = str(tmp_path / "none" / "out.pcap")
    result = lbctl("replay", str(tmp_path / "in.pcap"), "--interface", "lo", "--write", out)
    assert result.code == 2
    assert f"--write {out}: No such file" in result.err


# -- output that can't be written, and Ctrl-C --------------------------------------------------


def shell(line, **environ):
    """A line of a shell in which `lbctl` is the program, as it is installed."""
    lbctl = f'lbctl() {{ "{sys.executable}" -m lb.cli.entry "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", lbctl + line],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize(
    "line",
    [
        "lbctl export",
        "lbctl status -o json",
        "lbctl --help",
        "lbctl service list",
        "lbctl diff -f <(echo 'services: []') --prune",  # whose own code is 1
    ],
)
def test_a_full_disk_behind_the_output(line):
    result = shell(f"{line} >/dev/full")
    assert result.returncode == 74
    assert result.stderr.startswith(
        "error: the output can't be written (No space left on device)\nhint: "
    )
    assert len(result.stderr.splitlines()) == 2


def test_a_change_is_stored_whose_output_can_not_be_written(web):
    result = shell("lbctl backend weight web b1 7 -o json >/dev/full")
    assert result.returncode == 74
    assert "(No space left on device); the change is stored at revision 5" in result.stderr
    assert web.json("backend", "show", "web", "b1")["weight"] == 7
    # Nobody can be told anything at all: the change is made, and the exit code says it.
    assert shell("lbctl backend weight web b1 0 >/dev/null 2>/dev/full").returncode == 0
    assert web.json("backend", "show", "web", "b1")["weight"] == 0
    assert shell("lbctl backend show web nobody -o json >/dev/full 2>&1").returncode == 3


@pytest.mark.usefixtures("web")
def test_closed_streams_lead_nowhere():
    for line in ("lbctl service list >&-", "lbctl backend weight web b1 7 -o json <&- >&- 2>&-"):
        result = shell(line)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), line
    nothing = shell("lbctl apply -f - <&-")
    assert nothing.returncode == 2
    assert "the file is empty" in nothing.stderr


@pytest.mark.usefixtures("web")
def test_an_encoding_that_lacks_a_character():
    code = (
        "import io, sys\nfrom lb.cli.main import _open_streams\nfrom lb.cli.output import Format, emit\n"
        "_open_streams()\nemit(Format.TABLE, {}, 'a → b')\nemit(Format.JSON, {'a': '→'})\n"
        "emit(Format.YAML, {'a': '→'})"
    )
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert result.stderr == ""
    assert result.stdout == 'a ? b\n{\n  "a": "\\u2192"\n}\na: "\\u2192"\n'
    assert shell("lbctl rollout start --help", PYTHONIOENCODING="latin-1").returncode == 0


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("module", ["typer", "pydantic", "lb.cli.rollout"])
def test_ctrl_c_while_it_is_imported(module):
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["lbctl", "status"]
from lb.cli.entry import main
main()
"""
    # Who runs the tests in the background has it ignored, and that is inherited.
    command = ["env", "--default-signal=INT", sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_ctrl_c_is_told_to_programs(lbctl, monkeypatch):
    def interrupted(_session):
        raise KeyboardInterrupt

    monkeypatch.setattr("lb.cli.session.Session.snapshot", interrupted)
    result = lbctl("status", "-o", "json")
    assert result.code == 130
    assert result.json["error"]["kind"] == "Interrupted"
    assert lbctl("status").out == ""

"""docs/reference/cli.md and exit-codes.md are what the commands say."""

import re

from lb.cli import docs
from lb.cli.main import app
from lb.errors import ExitCode


def test_pages_are_up_to_date():
    assert docs.stale() == [], "run python -m lb.cli.docs"


def test_a_stale_page_is_noticed_and_written_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(docs, "DIRECTORY", tmp_path / "reference")
    assert docs.main(["--check"]) == 1
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    with (tmp_path / "reference" / "cli.md").open("a") as page:
        page.write("by hand\n")
    assert docs.main(["--check"]) == 1
    assert "cli.md is stale" in capsys.readouterr().err


def test_every_command_is_there_and_answers_help(lbctl):
    titles = re.findall(r"^## (lbctl .*)$", docs.cli_page(), re.MULTILINE)
    found = {" ".join(path): callback for path, callback in docs._commands(app, ("lbctl",))}
    commands = list(found)
    assert titles == commands
    assert not [name for name, callback in found.items() if not callback.__doc__]
    assert len(commands) > 25
    for command in commands:
        arguments = command.split()[1:]
        text = lbctl.ok(*arguments, "--help").out
        assert "--output" in text
        assert "--store" in text


def test_every_exit_code_has_a_meaning():
    rows = re.findall(r"^\| (\d+) \|[^|]*\| ([^|]+) \|", docs.exit_codes_page(), re.MULTILINE)
    meanings = {int(code): text for code, text in rows}
    for code in ExitCode:
        assert len(meanings[code]) > 3

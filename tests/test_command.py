"""The command `buzz`: fast where nothing is to be run, one line for a mistake, and otherwise the command of a room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import buzz
from buzz.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["configs"], *([name, "--help"] for name in COMMANDS)])
def test_what_runs_nothing_reads_no_torch(words):
    code = (
        "import sys; from buzz.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "sys.exit(status or 77 * bool({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    )
    done = python("-c", code, *words, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    if words == ["--version"]:
        assert done.stdout == f"buzz {buzz.__version__}\n"
    elif words[-1] == "--help":
        assert done.stdout.startswith(" ".join(["usage: buzz", *words[:-1], "[-h]"]))


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name:<9} {command.about}\n" in told
        assert callable(import_module(command.module).main)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "no command is given"),
        (["evl", "x.yaml"], "unknown command 'evl' (did you mean 'eval'?)"),
        (["--verbose"], "unknown command '--verbose'"),
        (["quickstart"], "unknown command 'quickstart'"),
    ],
)
def test_a_wrong_command_is_one_line(words, what, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: usage: {what}, one of {', '.join(COMMANDS)} is wanted; see --help\n"


@pytest.mark.parametrize("name", ["eval", "report", "bench"])
def test_what_a_command_refuses_is_its_status(name, capsys):
    assert main([name, "no/such/thing"]) == 2
    assert capsys.readouterr().err.startswith("error: no/such/thing: ")


def test_as_a_module_it_says_what_it_is_called(tmp_path):
    """Also to the run folder; and OpenMP's threads are told to wait briefly before torch is read."""
    (tmp_path / "buzz_spy.py").write_text(
        "import json, os, sys\n"
        "def main(arguments, prog):\n"
        "    print(json.dumps([sys.argv, arguments, prog, os.environ['GOMP_SPINCOUNT']]))\n"
        "    return 3\n"
    )
    code = (
        "import runpy, sys; import buzz.cli; from buzz.cli import Command\n"
        "buzz.cli.COMMANDS['spy'] = Command('buzz_spy', '')\n"
        "sys.argv = ['x', 'spy', 'a', 'b=1']; runpy.run_module('buzz', run_name='__main__', alter_sys=True)"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = python("-c", code, cwd=tmp_path, env={**environment, "PYTHONPATH": path})
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout) == [["buzz", "spy", "a", "b=1"], ["a", "b=1"], "buzz spy", "4000"]

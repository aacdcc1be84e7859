"""What `make package` builds, installed where no checkout is in sight: it is whole, it runs, and its types are seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import buzz
from tests.evaluation.tiny import articles, save_model

ROOT = Path(__file__).parents[1]
GIT = ROOT / ".git"


def call(*command: object, cwd: Path) -> str:
    """The stdout of a command that must not fail, without anything that would lead it to the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MYPY"))}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it. The build needs no network."""
    folder = tmp_path_factory.mktemp("built")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel. All else it borrows from this one, whose own .pth files, and so an editable
    installation of the checkout, it does not follow."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)  # a pip of its own would take seconds
    (wheel,), (site,) = built.glob("*.whl"), folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    call(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=folder)
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return folder


def kept() -> set[str]:
    """The files of the project: those that git knows and that are there; in an unpacked sdist, all in its folders."""
    try:
        git = ["git", "-c", "safe.directory=*", "-C", ROOT, "ls-files", "-z"]
        names = subprocess.check_output(git, text=True, stderr=subprocess.DEVNULL).split("\0") if GIT.exists() else []
    except (OSError, subprocess.CalledProcessError):
        names = []
    found = [ROOT / name for name in names if name] or [
        file for top in ("buzz", "configs", "docs", "scripts", "tests") for file in (ROOT / top).rglob("*")
    ]
    return {file.relative_to(ROOT).as_posix() for file in found if file.is_file() and file.suffix != ".pyc"}


def test_the_sdist_has_every_file_and_the_wheel_those_that_run(built: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    files = kept()
    assert len(files) > 300
    assert files - in_sdist == set()
    wanted = {name for name in files if name.startswith("buzz/")}
    wanted |= {f"buzz/{name}" for name in files if name.startswith("configs/")}
    assert wanted - in_wheel == set()
    assert {name.partition("/")[0] for name in in_wheel} == {"buzz", f"buzz_kv-{buzz.__version__}.dist-info"}


@pytest.mark.slow
def test_an_installed_wheel_evaluates_a_packaged_config(environment: Path, tmp_path: Path) -> None:
    (site,) = environment.glob("lib/python*/site-packages")
    command = environment / "bin" / "python", site / "bin" / "buzz"  # pip wrote this environment's name into the script
    assert call(*command, "configs", cwd=tmp_path).endswith(f"\nin {site / 'buzz' / 'configs'}\n")

    save_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in articles(3)))
    overrides = ["model.gguf=null", "model.id=model", "task.data=rows.jsonl", "task.prompt={document}"]
    overrides += ["methods=[full, local]", "speed=null", "generation.max_new_tokens=4", "output=out"]
    table = call(*command, "eval", "quickstart", *overrides, cwd=tmp_path)
    assert [line.split()[:2] for line in table.splitlines()[2:4]] == [["full", "3"], ["local", "3"]]
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    facts = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert facts["command"][:3] == ["buzz", "eval", "quickstart"]
    assert facts["git"] is None


@pytest.mark.slow
def test_the_types_of_an_installed_wheel_are_seen(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*,transformers.*]\nfollow_imports = skip\n")
    uses = ["import buzz", "reveal_type(buzz.make_policy('full').trace(5, 3))", "buzz.make_policy(7)"]
    (tmp_path / "uses.py").write_text("\n".join(uses) + "\n")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", environment / "bin" / "python", "uses.py"]
    done = subprocess.run([str(word) for word in mypy], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    revealed, wrong, *_ = done.stdout.splitlines()
    assert revealed == 'uses.py:2: note: Revealed type is "list[int]"'
    assert wrong.startswith('uses.py:3: error: Argument 1 to "make_policy" has incompatible type "int"')

"""Runs of the command line in processes that are forked after all imports, so that many of them cost little; and how
their folders are compared.

As a script: reads one JSON object a line (see `Fork`), answers each with one line.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_eval.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Fork:
    """A process that has everything imported and forks runs. Use it as a context manager."""

    def __enter__(self) -> Fork:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(
        self,
        config: Path,
        *overrides: str,
        processes: int = 1,
        number: int = signal.SIGKILL,
        after: float | None = None,
        written: int = 0,
        ranks: list[int] | None = None,
        broken: str = "",
    ) -> tuple[list[int | None], str]:
        """Run a config in one process or several, as a launcher would start them.

        Args:
            number: a signal, sent `after` so many seconds (None: never) to these `ranks` (None: all).
            written: the seconds count from the moment at which the run folder, `out` beside the config, has so many
                samples of all methods together.
            broken: Python code that each process runs first; it knows its `rank`.

        Returns:
            Exit statuses by rank (negative: killed by that signal; None: it hung for a minute), and all of stderr.
        """
        request = {
            "arguments": ["--config", str(config), *overrides],
            "processes": processes,
            "number": int(number),
            "after": after,
            "written": written,
            "folder": str(config.parent / "out"),
            "ranks": list(range(processes)) if ranks is None else ranks,
            "broken": broken,
            "stderr": str(config.parent / "stderr.txt"),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline()), Path(request["stderr"]).read_text()


def wait_for_samples(folder: Path, number: int) -> None:
    """Return once a run folder has so many samples, of all methods together, or after a minute."""
    deadline = time.monotonic() + 60
    while count_samples(folder) < number and time.monotonic() < deadline:
        time.sleep(0.002)


def count_samples(folder: Path) -> int:
    """Lines in the files of samples."""
    return sum(path.read_bytes().count(b"\n") for path in (folder / "samples").glob("*.jsonl"))


def samples(folder: Path, method: str) -> list[Any]:
    """The records of a method, untimed."""
    lines = (folder / "samples" / f"{method}.jsonl").read_text().splitlines()
    return [untimed(json.loads(line)) for line in lines]


def summary(folder: Path) -> Any:
    """summary.json, untimed."""
    return untimed(json.loads((folder / "summary.json").read_text()))


def untimed(value: Any) -> Any:
    """Without dates, seconds, and how many processes there were."""
    timed = ("seconds", "finished", "processes")
    if isinstance(value, dict):
        return {key: untimed(part) for key, part in value.items() if key not in timed}
    return [untimed(part) for part in value] if isinstance(value, list) else value


def _serve() -> None:
    sys.path.insert(0, str(ROOT))
    # All that a run imports, so that the children need not.
    import accelerate.utils  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401

    import buzz.evaluation.run.runner
    import buzz.patching  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()  # a collection in a child would copy all of this
    for line in sys.stdin:
        request = json.loads(line)
        Path(request["stderr"]).write_text("")
        port = _free_port()
        children = [_fork(request, rank, port) for rank in range(request["processes"])]
        if request["after"] is not None:
            wait_for_samples(Path(request["folder"]), request["written"])
            time.sleep(request["after"])
            for rank in request["ranks"]:
                os.kill(children[rank], request["number"])
        print(json.dumps([_wait(child) for child in children]), flush=True)


def _fork(request: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        stderr = os.open(request["stderr"], os.O_WRONLY | os.O_APPEND)
        os.dup2(stderr, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if request["processes"] > 1:
            size = str(request["processes"])
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        exec(request["broken"], {"rank": rank})
        from buzz.evaluation.run.cli import main

        status = main(request["arguments"])
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int) -> int | None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


if __name__ == "__main__":
    _serve()

"""Tracking a run with Weights & Biases, which never stops or delays the run for long: see docs/wandb.md.

Nothing in here raises. Whatever goes wrong with W&B is one line on stderr, and the run goes on without tracking; if it
is only the server that cannot be had, it goes on with offline tracking.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from buzz.evaluation.files import write_atomically, writing
from buzz.evaluation.models.section import model_name
from buzz.evaluation.show.wandb_log import Record, WandbLog
from buzz.words import one_line

# Seconds for the server to answer at the start and to take what is left at the end. Environment variables of the same
# name, WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT, win.
_LIMITS = {"init_timeout": 30.0, "finish_timeout": 120.0}
_LONGEST_TAG = 64  # characters, a limit of the server's


class Tracker:
    """What a run tells about itself. No method raises, and without tracking they all do nothing.

    Args:
        log: where it goes; None: no tracking.
    """

    def __init__(self, log: WandbLog | None) -> None:
        self._log, self._warned = log, False
        self._live = log is not None

    def samples(self, method: str, records: Iterable[Record], done: int, total: int) -> None:
        """A batch is finished.

        Args:
            records: of this batch.
            done, total: samples of the method finished so far, those of an earlier start included, and in all; where
                several processes share a run, those of this process.
        """
        self._do(lambda log: log.samples(method, records, done, total))

    def method_done(self, method: str, records: Iterable[Record]) -> None:
        """A method is finished; `records` are all of its records, of all processes. Telling it twice does no harm."""
        # A table waits for the server. If that is away just now, `summary` finds the table missing and logs it.
        self._do(lambda log: log.method_done(method, records), again=True)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """The run is finished; `summary` is what summary.json holds."""
        self._do(lambda log: log.summary(summary))

    def report(self, page: Path) -> None:
        """The run's report, a file report.html; a run without one has none to log."""
        if page.is_file():
            self._do(lambda log: log.report(page))

    def _do(self, action: Callable[[WandbLog], None], again: bool = False) -> None:
        if self._log is None or not self._live:
            return
        try:
            action(self._log)
        except Exception as error:
            self._live = again
            if not (again and self._warned):
                rest = "this is tried again at the end" if again else "the run goes on without tracking"
                _warn(f"{_said(error)}; {rest}")
            self._warned = True

    def _close(self, state: Path, exit_code: int) -> None:
        """End the W&B run; what was logged before something broke is kept."""
        if self._log is None:
            return
        try:
            self._finish(self._log, state, exit_code)
        except Exception as error:
            if not self._warned:
                _warn(_said(error))
        finally:
            _end_session()

    def _finish(self, log: WandbLog, state: Path, exit_code: int) -> None:
        try:
            log.run.finish(exit_code=exit_code)
        except TimeoutError:
            _warn(f"not everything was uploaded in time; {_how_to_sync(log.run)}")
        # Not before: a service that crashed has lost tables, and then the next start logs them again.
        _write_state(state, {"id": log.run.id, "tables": log.tables})


@contextlib.contextmanager
def track(
    config: Mapping[str, Any],
    folder: str | Path,
    facts: Mapping[str, Any] | None = None,
    known: Mapping[str, Mapping[str, Record]] | None = None,
    main: bool = True,
) -> Iterator[Tracker]:
    """Track a run as the section `wandb` of its config says; of several processes only the main one does.

    W&B's files go to `<folder>/wandb`. A run that goes on in its folder goes on in W&B, under the same run id.

    Args:
        config: of the run, as plain data; logged whole, as the W&B run's config.
        folder: the run folder; exists.
        facts: about the environment, as in environment.json; logged as `environment` beside the config.
        known: by method and sample id, the records that an earlier start left.
        main: this is the main process.
    """
    if config["wandb"]["mode"] == "disabled" or not main:
        yield Tracker(None)
        return
    folder = Path(folder).absolute()
    state = folder / "wandb" / "run.json"
    with _staged_in(folder / "wandb" / "data"):
        tracker = Tracker(_start(config, folder, state, facts or {}, known or {}))
        exit_code = 1  # shown as failed, if the block does not come to its end
        try:
            yield tracker
            exit_code = 0
        finally:
            tracker._close(state, exit_code)


@contextlib.contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Inside the block W&B keeps what it has to upload in a folder, and not in the user's home."""
    name = "WANDB_DATA_DIR"  # there is no setting for it
    if name in os.environ:
        yield
        return
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _start(
    config: Mapping[str, Any],
    folder: Path,
    state: Path,
    facts: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Record]],
) -> WandbLog | None:
    try:
        before = _read_state(state)
        run = _open(config, folder, facts, before.get("id"))
        tables = before.get("tables", {})
        _write_state(state, {"id": run.id, "tables": tables})
        print(f"tracking: {run.url or f'offline; {_how_to_sync(run)}'}", file=sys.stderr)
        return WandbLog(run, config, known, tables)
    except Exception as error:
        _warn(f"{_said(error)}; the run goes on without tracking")
        _end_session()
        return None


def _open(config: Mapping[str, Any], folder: Path, facts: Mapping[str, Any], run_id: str | None) -> Any:
    """The W&B run, online if that is wanted and can be had."""
    import wandb

    # A process that has a W&B run of its own has its own settings and login, too.
    alone = wandb.run is None
    if config["wandb"]["mode"] == "online":
        try:
            if alone:
                wandb.setup(wandb.Settings(silent=True, mode="online"))
                # Here, since init would ask for a key on a terminal, and wait.
                if not wandb.login(prompt=False, verify=False):
                    raise RuntimeError("not logged in (`wandb login`, or WANDB_API_KEY)")
            return _init(config, folder, facts, run_id, "online")
        except Exception as error:
            _warn(f"{_said(error)}; the run is tracked offline")
            _end_session()  # it holds the run's id as one in use
    if alone:
        wandb.setup(wandb.Settings(silent=True, mode="offline"))
    return _init(config, folder, facts, run_id, "offline")


def _init(config: Mapping[str, Any], folder: Path, facts: Mapping[str, Any], run_id: str | None, mode: Any) -> Any:
    import wandb

    task, model = config["task"]["name"], model_name(config["model"]["id"], config["model"]["gguf"])
    in_sweep = "WANDB_SWEEP_ID" in os.environ  # of W&B's own, which names its runs and gives them their ids
    limits: Any = {name: limit for name, limit in _LIMITS.items() if f"WANDB_{name.upper()}" not in os.environ}
    return wandb.init(
        dir=folder,
        mode=mode,
        project=config["wandb"]["project"],
        id=None if in_sweep else run_id,
        name=None if in_sweep else config["name"],
        group=config["wandb"]["group"] or config["name"],
        job_type=task,
        tags=[tag[:_LONGEST_TAG] for tag in (model, task) if tag],
        config={**config, "environment": dict(facts)},
        resume="allow",
        reinit="create_new",  # a run of the caller's own is not touched
        settings=wandb.Settings(
            silent=True,
            console="off",
            # The commit is among the facts; neither code nor the diff of a checkout leaves the machine.
            disable_git=True,
            disable_code=True,
            save_code=False,
            # Else tables point at artifacts, and those at absolute paths, which a copy of the run folder has not.
            allow_offline_artifacts=False,
            finish_timeout_raises=True,
            **limits,
        ),
    )


def _end_session() -> None:
    """Stop W&B's service process, unless the process has a W&B run of its own."""
    wandb = sys.modules.get("wandb")
    # SystemExit: what teardown raises if the service ended badly.
    with contextlib.suppress(Exception, SystemExit):
        if wandb is not None and wandb.run is None:
            wandb.teardown()


def _read_state(path: Path) -> dict[str, Any]:
    """What the last start of the run left for this one; a file that cannot be read counts as empty."""
    with contextlib.suppress(OSError, ValueError):
        state = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(state, dict):
            return state
    return {}


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(state) + "\n")


def _how_to_sync(run: Any) -> str:
    return f"upload it with: wandb sync {shlex.quote(str(Path(run.dir).parent))}"


def _said(error: Exception) -> str:
    """The first line of an error; some of W&B's go on with a report on every attempt."""
    text = str(error).strip() or type(error).__name__
    return one_line(text.splitlines()[0])


def _warn(text: str) -> None:
    print(f"warning: wandb: {text}", file=sys.stderr)

"""Tracking: a run that goes on, W&B's own sweeps, and that nothing that goes wrong with W&B stops a run."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from buzz.evaluation.run.config import load_config
from buzz.evaluation.show import wandb_log
from buzz.evaluation.show.tracking import track
from buzz.evaluation.show.wandb_log import WandbLog
from tests.evaluation.tracking_toys import (
    FULL,
    NARROW,
    WIDE,
    all_records,
    isolated,
    make_config,
    needs_wandb,
    only_run,
    services,
    summary_of,
    warnings_in,
    whole_run,
)
from tests.evaluation.wandb_reader import read_runs

ROOT = Path(__file__).resolve().parents[3]
DOC = ROOT / "docs" / "wandb.md"
KEY = "0" * 40


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Iterator[Path]:
    yield from isolated(monkeypatch, tmp_path)


# --- going on --------------------------------------------------------------------------------------------------------


@needs_wandb
def test_a_run_that_goes_on_is_the_same_run(folder):
    records = all_records()

    def stopped_run() -> None:
        with track(make_config(), folder) as tracker:
            tracker.samples(FULL, records[FULL], 4, 4)
            tracker.method_done(FULL, records[FULL])
            tracker.samples(WIDE, records[WIDE][:2], 2, 4)
            raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        stopped_run()
    known = {FULL: {row["id"]: row for row in records[FULL]}, WIDE: {row["id"]: row for row in records[WIDE][:2]}}
    with track(make_config(name="renamed"), folder, known=known) as tracker:
        tracker.samples(WIDE, records[WIDE][2:], 4, 4)
        tracker.method_done(FULL, records[FULL])
        tracker.method_done(WIDE, records[WIDE])
        tracker.samples(NARROW, records[NARROW], 4, 4)
        tracker.summary(summary_of({**records, NARROW: []}))

    first, second = read_runs(folder)
    assert first.run.run_id == second.run.run_id
    assert second.run.resume
    assert (first.exit_code, second.exit_code) == (1, 0)
    (row,) = [row for row in second.history if "running/streaming_window20/rouge1" in row]
    assert row["samples"] == 4
    assert row["running/streaming_window20/rouge1"] == pytest.approx(0.15)  # over all four
    assert not any("running/full/rouge1" in row for row in second.history)
    assert "tables/full" in first.tables
    assert "tables/full" not in second.tables  # logged already
    assert len(second.tables["tables/streaming_window20"]["id"]) == 4
    assert len(second.tables["tables/streaming_budget0_4"]["id"]) == 4  # never told as done, but known
    assert set(second.tables["Custom Chart Tables/charts/cache_length_table"]["lineKey"]) == {FULL, WIDE, NARROW}


@needs_wandb
def test_a_broken_state_file_begins_a_new_run(folder):
    (folder / "wandb").mkdir()
    (folder / "wandb" / "run.json").write_text("{")
    with track(make_config(), folder):
        pass
    assert json.loads((folder / "wandb" / "run.json").read_text())["id"] == only_run(folder).run.run_id


# --- nothing stops the run -------------------------------------------------------------------------------------------


def test_disabled_does_nothing(folder, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail, and be told
    whole_run(folder, make_config("disabled"))
    assert list(folder.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_without_wandb_the_run_goes_on(folder, monkeypatch, capfd, mode):
    monkeypatch.setitem(sys.modules, "wandb", None)
    whole_run(folder, make_config(mode))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: wandb: ")
    assert line.endswith("; the run goes on without tracking")


def test_only_the_main_process_tracks(folder, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "wandb", None)
    whole_run(folder, main=False)
    assert capfd.readouterr().err == ""
    whole_run(folder, main=True)
    assert len(warnings_in(capfd.readouterr().err)) == 1


@needs_wandb
@pytest.mark.parametrize("server", ["refuses", "is silent", "no login"])
def test_online_without_a_server_is_offline_tracking(folder, monkeypatch, capfd, server):
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and never answers
    port = silent.getsockname()[1] if server == "is silent" else 9
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    if server != "no login":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    started = time.monotonic()
    with silent:
        whole_run(folder, make_config("online"))
    assert time.monotonic() - started < 20
    (line,) = warnings_in(capfd.readouterr().err)
    assert line.endswith("; the run is tracked offline")
    assert ("not logged in" in line) == (server == "no login")
    found = only_run(folder)
    assert found.summary["xsum/full/n"] == 4
    assert json.loads((folder / "wandb" / "run.json").read_text())["id"] == found.run.run_id


@needs_wandb
def test_no_login_asks_nobody(folder, monkeypatch, capfd):
    """On a terminal W&B would ask for a key, and wait."""
    import wandb.errors.term

    monkeypatch.setattr(wandb.errors.term, "can_use_terminput", lambda: True)
    monkeypatch.setattr(wandb.util, "prompt_choices", lambda *_, **__: pytest.fail("asked"))
    with track(make_config("online"), folder):
        pass
    (line,) = warnings_in(capfd.readouterr().err)
    assert "not logged in" in line


class FakeServer(http.server.BaseHTTPRequestHandler):
    """As much of a W&B server as a run needs to begin."""

    protocol_version = "HTTP/1.1"
    asked: dict[str, Any]
    gone: threading.Event

    def do_POST(self) -> None:
        if self.gone.is_set():
            self.close_connection = True
            return
        query = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}")
        name = re.search(r"(?:query|mutation)\s+(\w+)", str(query.get("query")))
        self.asked.setdefault(name[1] if name else self.path, query.get("variables"))
        project = {"id": "p", "name": "trial", "entity": {"id": "e", "name": "us"}}
        bucket = {"id": "b", "name": (query.get("variables") or {}).get("name"), "project": project, "config": "{}"}
        data = {
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "model": {**project, "bucket": None},
            "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
        }
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@needs_wandb
def test_a_server_that_goes_away_delays_the_end_for_a_moment_only(folder, monkeypatch, capfd):
    asked: dict[str, Any] = {}
    gone = threading.Event()
    handler = type("Handler", (FakeServer,), {"asked": asked, "gone": gone})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    try:
        socket.create_connection(server.server_address, timeout=2).close()
    except OSError:
        pytest.skip("this machine cannot connect to itself")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    with track(make_config("online", wandb={"mode": "online", "group": "a sweep"}), folder) as tracker:
        gone.set()
        tracker.samples(FULL, all_records()[FULL], 4, 4)
        left = time.monotonic()
    assert time.monotonic() - left < 15
    server.shutdown()
    server.server_close()
    assert asked["UpsertBucket"]["groupName"] == "a sweep"
    state = json.loads((folder / "wandb" / "run.json").read_text())
    assert asked["UpsertBucket"]["name"] == state["id"]
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"tracking: http://127.0.0.1:{server.server_port}/us/trial/runs/{state['id']}"
    (line,) = warnings_in("\n".join(lines))
    assert "not everything was uploaded in time; upload it with: wandb sync " in line


@needs_wandb
def test_an_error_inside_is_one_line(folder, capfd):
    records = all_records()
    with track(make_config(), folder) as tracker:
        tracker.samples(FULL, records[FULL][:2], 2, 4)
        tracker.samples("nobody", records[FULL][2:], 4, 4)
        tracker.samples(FULL, records[FULL][2:], 4, 4)
        tracker.summary({})
    (line,) = warnings_in(capfd.readouterr().err)
    assert line == "warning: wandb: 'nobody'; the run goes on without tracking"
    found = only_run(folder)
    assert [row["samples"] for row in found.history if "samples" in row] == [2]  # what was logged before is kept


@needs_wandb
def test_a_table_that_fails_is_tried_again_at_the_end(folder, monkeypatch, capfd):
    table, calls = wandb_log._table, []

    def fails_twice(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= 2:
            raise ConnectionError("no answer\nfrom the server")
        return table(*arguments)

    monkeypatch.setattr(wandb_log, "_table", fails_twice)
    whole_run(folder)
    (line,) = warnings_in(capfd.readouterr().err)
    assert line == "warning: wandb: no answer; this is tried again at the end"
    found = only_run(folder)
    assert {"tables/full", "tables/streaming_window20", "tables/streaming_budget0_4"} <= set(found.tables)
    assert found.summary["xsum/full/n"] == 4


@needs_wandb
def test_an_error_at_the_start_is_one_line(folder, monkeypatch, capfd):
    monkeypatch.setattr(WandbLog, "__init__", lambda *_: 1 / 0)
    whole_run(folder)
    (line,) = warnings_in(capfd.readouterr().err)
    assert line == "warning: wandb: division by zero; the run goes on without tracking"


@needs_wandb
def test_a_folder_that_cannot_be_written_is_one_line(folder, capfd):
    (folder / "wandb").write_text("in the way")
    whole_run(folder)
    (line,) = warnings_in(capfd.readouterr().err)
    assert line.endswith("; the run goes on without tracking")


@needs_wandb
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the service in /proc")
def test_a_crashed_service_is_one_line(folder, capfd):
    records = all_records()
    with track(make_config(), folder) as tracker:
        tracker.samples(FULL, records[FULL][:2], 2, 4)
        (service,) = services()
        os.kill(service, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not capfd.readouterr().err.count("warning: ") and time.monotonic() < deadline:
            tracker.samples(FULL, records[FULL][2:], 4, 4)
            time.sleep(0.05)
        assert time.monotonic() < deadline
        tracker.summary(summary_of(records))
    assert warnings_in(capfd.readouterr().err) == []
    whole_run(folder)  # another run in the same process has a service of its own
    assert warnings_in(capfd.readouterr().err) == []
    assert read_runs(folder)[-1].exit_code == 0


@needs_wandb
def test_a_run_of_the_callers_own_is_not_touched(folder, tmp_path):
    import wandb

    own = wandb.init(mode="offline", dir=tmp_path, project="own", settings=wandb.Settings(silent=True, console="off"))
    try:
        whole_run(folder)
        own.log({"mine": 1})
        assert wandb.run is own
    finally:
        own.finish()
        wandb.teardown()
    assert only_run(folder).summary["xsum/full/n"] == 4
    assert only_run(tmp_path).history[-1]["mine"] == 1


# --- W&B's own sweeps ------------------------------------------------------------------------------------------------


@pytest.fixture
def sweep() -> dict[str, Any]:
    """The sweep definition of the documentation."""
    (block,) = re.findall(r"```yaml\n(program:.*?)```", DOC.read_text(), re.DOTALL)
    return yaml.safe_load(block)


@needs_wandb
def test_the_documented_sweep_gives_every_point_its_own_folder(sweep, monkeypatch, tmp_path):
    """W&B's agent makes the command; here a script in place of the program writes down what it is given."""
    from wandb import wandb_agent

    started: list[dict[str, Any]] = []

    def start(**options: Any) -> SimpleNamespace:
        started.append(options)
        return SimpleNamespace()

    monkeypatch.setattr(wandb_agent, "AgentProcess", start)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "earlier")  # the agent sets them
    script = tmp_path / "given.py"
    script.write_text("import sys, json; print(json.dumps(sys.argv[1:]))")
    assert (ROOT / sweep["program"]).is_file()

    outputs = set()
    for number in (0, 1):
        values = {key: parameter["values"][number] for key, parameter in sweep["parameters"].items()}
        agent = wandb_agent.Agent(None, None, sweep_id="sweep1")
        agent._sweep_command = list(sweep["command"])
        arguments = {key: {"value": value} for key, value in values.items()}
        agent._command_run({"run_id": f"point{number}", "program": str(script), "args": arguments})
        command, environment = started[-1]["command"], started[-1]["env"]
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        if shutil.which("python", path=environment["PATH"]) is None:
            pytest.skip("no python on the path")
        given = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
        assert given[0] == "--config"
        config = load_config(ROOT / given[1], given[2:])
        assert config.output.endswith(f"point{number}")
        assert config.wandb.mode == "online"
        assert config.generation.max_new_tokens == values["generation.max_new_tokens"]
        wanted = yaml.safe_load(values["methods"])
        assert [method.policy for method in config.methods] == [
            one if isinstance(one, str) else one["policy"] for one in wanted
        ]
        outputs.add(config.output)
    assert len(outputs) == 2
    assert sweep["metric"]["name"].split("/")[1] in {method.name for method in config.methods}


@needs_wandb
def test_in_a_sweep_the_run_is_the_agents(folder, monkeypatch, tmp_path):
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(yaml.safe_dump({"wandb_version": 1, "generation.max_new_tokens": {"value": 7}}))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    monkeypatch.setenv("WANDB_RUN_ID", "point0")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(parameters))
    with track(make_config(), folder):
        pass
    found = only_run(folder)
    assert found.run.run_id == "point0"
    assert found.run.display_name == ""  # W&B names it
    assert found.config["generation.max_new_tokens"] == 7

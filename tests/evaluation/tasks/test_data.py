"""Reading files, packages and the hub: what comes out, and one line for whatever is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.paths import fingerprint, resolve_path
from buzz.evaluation.tasks import hub
from buzz.evaluation.tasks.data import read_hub_rows, read_rows, read_text
from buzz.evaluation.tasks.fields import Maybe
from buzz.evaluation.tasks.hub import FileSource, HubSource

FIELDS = {"document": str, "summary": str}
GOOD = {"document": "Bees dance.", "summary": "Dance."}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def fails(call: Callable[[], Any], *said: str, where: str = "task.data") -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    line = str(caught.value)
    assert line.startswith(f"{where}: ")
    assert "\n" not in line
    for part in said:
        assert part in line
    return line


def rows_fail(path: Path, *said: str, fields: Mapping[str, type] = FIELDS) -> str:
    return fails(lambda: list(read_rows(path, fields)), *said)


# --- rows


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_rows_plain_and_gzip(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    text = json.dumps({"id": "a", **GOOD}) + "\n\n" + json.dumps({"id": 7, **GOOD}) + "\n" + json.dumps(GOOD)
    raw = b"\xef\xbb\xbf" + text.encode()
    path.write_bytes(gzip.compress(raw) if ending.endswith("gz") else raw)
    rows = list(read_rows(path, FIELDS))
    assert [row["id"] for row in rows] == ["a", "7", "row-4"]  # a blank line is skipped, but counts as a line
    assert rows[2] == {"id": "row-4", **GOOD}
    assert len(list(read_rows(path, FIELDS, limit=2))) == 2


def test_rows_after_the_limit_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, GOOD, "broken")
    assert len(list(read_rows(path, FIELDS, limit=2))) == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"document": "d"}, ["has no field 'summary'", "document"]),
        ({}, ["has no field 'document'"]),
        ({**GOOD, "summary": ""}, ["'summary' is empty"]),
        ({**GOOD, "summary": " \n"}, ["'summary' is empty"]),
        ({**GOOD, "summary": None}, ["'summary' is of type NoneType"]),
        ({**GOOD, "summary": ["s"]}, ["'summary' is of type list", "non-empty text is wanted"]),
        ({**GOOD, "summary": "\ud800"}, ["'summary'", "surrogate"]),
        ({**GOOD, "id": ""}, ["id ''"]),
        ({**GOOD, "id": True}, ["id True"]),
        ([1], ["is a list"]),
        ("null", ["is a NoneType"]),
        ("{'document': 1}", ["is not JSON"]),
        (json.dumps(GOOD)[:-9], ["is not JSON", "cut off"]),
        (json.dumps(GOOD)[:-1], ["is not JSON", "cut off"]),
        ("[" * 100_000, ["JSON"]),
        ("1" * 5000, ["JSON"]),
    ],
)
def test_bad_row_is_named(tmp_path: Path, bad: Any, said: list[str]) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, bad)
    rows_fail(path, f"{path} row 2: ", *said)


def test_other_types_of_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"n": 1, "l": ["x"]}, {"n": True, "l": ["x"]})
    assert next(read_rows(path, {"n": int, "l": list}))["n"] == 1
    rows_fail(path, "row 2: field 'n' is of type bool", fields={"n": int, "l": list})
    rows_fail(write(path, {"l": []}), "row 1: field 'l' is empty", fields={"l": list})


NESTED = {"parts": [{"name": str, "notes": Maybe([str])}], "meta": {"year": int}, "note": Maybe(str)}
FULL: dict[str, Any] = {"parts": [{"name": "a", "notes": ["b"]}, {"name": "c"}], "meta": {"year": 1, "x": None}}


def test_nested_fields_and_fields_that_may_miss(tmp_path: Path) -> None:
    rows = [FULL, {**FULL, "note": None}, {**FULL, "note": ""}, {**FULL, "note": "n"}]
    path = write(tmp_path / "a.jsonl", *rows, {**FULL, "parts": [{"name": "a", "notes": []}]})
    assert len(list(read_rows(path, NESTED))) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": [{"name": "a"}, {"x": 1}]}, "has no field 'parts[1].name', non-empty text is wanted there (fields"),
        ({"parts": [{"name": "a"}, []]}, "field 'parts[1]' is of type list, a mapping with name, notes is wanted"),
        ({"parts": {"name": "a"}}, "field 'parts' is of type dict, a non-empty list is wanted"),
        ({"parts": [{"name": "a", "notes": [""]}]}, "field 'parts[0].notes[0]' is empty, non-empty text is wanted"),
        ({"parts": [{"name": "a", "notes": "b"}]}, "field 'parts[0].notes' is of type str, a non-empty list"),
        ({"parts": [{"name": "\ud800"}]}, "field 'parts[0].name' holds half a surrogate pair"),
        ({"meta": {"year": "1"}}, "field 'meta.year' is of type str, an integer is wanted"),
        ({"meta": {}}, "field 'meta' is empty"),
        ({"note": 0}, "field 'note' is of type int"),
        ({"note": False}, "field 'note' is of type bool"),
    ],
)
def test_bad_nested_fields_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    rows_fail(write(tmp_path / "a.jsonl", FULL, FULL | change), f"row 2: {said}", fields=NESTED)


def test_a_check_beyond_the_fields(tmp_path: Path) -> None:
    def problem(row: Any) -> tuple[str, str] | None:
        return ("says no", "yes is wanted") if row["summary"] == "no" else None

    path = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "summary": "no"})
    fails(lambda: list(read_rows(path, FIELDS, problem=problem)), f"{path} row 2: says no, yes is wanted")


def test_duplicate_ids_name_both_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"id": "x", **GOOD}, GOOD, {"id": "x", **GOOD})
    rows_fail(path, "row 3: id 'x'", "row 1")
    rows_fail(write(path, {"_id": "x", **GOOD}, {"id": "x", "_id": "y", **GOOD}), "row 2: id 'x'", "row 1")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    rows_fail(path, f"{path} is empty")


def test_bad_utf8_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"document": "\xff"}\n')
    rows_fail(path, f"{path} row 2: byte 15 is not UTF-8 (0xff)")


@given(st.data())
def test_a_cut_gzip_file_gives_its_whole_rows_and_then_an_error(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    lines = [json.dumps({"document": hashlib.sha256(bytes([i])).hexdigest() * 3, "summary": "s"}) for i in range(50)]
    whole = gzip.compress("\n".join(lines).encode())
    path = tmp_path_factory.getbasetemp() / "cut.jsonl.gz"
    path.write_bytes(whole[: draw.draw(st.integers(1, len(whole) - 1))])
    read: list[Any] = []
    with pytest.raises(ConfigError) as caught:
        read.extend(read_rows(path, FIELDS))  # extend keeps what came before the error
    assert f"{path} row {len(read) + 1}: the gzip data is cut off" in str(caught.value)


@pytest.mark.parametrize("limit", [None, 3])
def test_a_cut_plain_file_is_told_from_a_whole_one(tmp_path: Path, limit: int | None) -> None:
    line = json.dumps(GOOD)
    path = tmp_path / "a.jsonl"
    for end in range(2 * len(line) + 3, 3 * len(line) + 2):  # somewhere in the third line
        path.write_text("\n".join([line] * 3)[:end])
        fails(lambda: list(read_rows(path, FIELDS, limit)), f"{path} row 3: is not JSON", "is the line cut off?")


def test_a_cut_gzip_text_names_the_row(tmp_path: Path) -> None:
    lines = [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)]
    whole = gzip.compress("\n".join(lines).encode())
    path = tmp_path / "cut.txt.gz"
    for end in (len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:end])
        line = fails(lambda: read_text(path), f"{path} row ", "the gzip data is cut off or broken", "whole .gz file")
        row = int(line.split(" row ")[1].split(":")[0])
        assert len(lines) // 4 < row <= len(lines) + 1  # where it broke, not where it began


def test_a_flipped_bit_and_a_file_that_is_not_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    raw = bytearray(gzip.compress((json.dumps(GOOD) + "\n").encode() * 3))
    raw[-6] ^= 1  # in the checksum
    path.write_bytes(raw)
    rows_fail(path, "the gzip data is")
    path.write_text(json.dumps(GOOD))
    rows_fail(path, "row 1: the gzip data is")


def test_other_endings_and_unreadable(tmp_path: Path) -> None:
    rows_fail(write(tmp_path / "a.csv", GOOD), ".jsonl or .jsonl.gz is wanted")
    rows_fail(write(tmp_path / "a.txt", GOOD), ".jsonl or .jsonl.gz is wanted")
    rows_fail(tmp_path / "gone.jsonl", "gone.jsonl cannot be read")


def test_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("One\nzwei – drei\n".encode()))
    assert read_text(path) == "One\nzwei – drei\n"
    path.write_bytes(gzip.compress(b" \n"))
    fails(lambda: read_text(path), "is empty")
    path.write_bytes(gzip.compress(b"ok\n\xc3"))
    fails(lambda: read_text(path), "row 2: byte 1 is not UTF-8")
    fails(lambda: read_text(write(tmp_path / "a.jsonl", GOOD)), ".txt or .txt.gz is wanted")


# --- paths


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", GOOD)
    assert resolve_path(str(path), "k") == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/a.jsonl", "k") == path
    monkeypatch.chdir(tmp_path)
    assert resolve_path("a.jsonl", "k").exists()
    fails(lambda: resolve_path("b.jsonl", "k.x"), "b.jsonl does not exist", str(tmp_path), where="k.x")
    fails(lambda: resolve_path(tmp_path, "k.x"), "is a folder", where="k.x")


def test_files_in_packages_are_found_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "heavy_package_of_the_test"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    write(package / "sub" / "a.jsonl", GOOD)
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_path(f"package:{package.name}/sub/a.jsonl", "k") == package / "sub" / "a.jsonl"
    assert package.name not in sys.modules
    fails(lambda: resolve_path(f"package:{package.name}/b", "k"), "does not exist", where="k")
    fails(lambda: resolve_path("package:no_such_pkg/a", "k"), "'no_such_pkg' is not installed", where="k")
    for spec in ("package:", "package:json", "package:json.decoder/a", "package:/a", "package:json/"):
        fails(partial(resolve_path, spec, "k"), "package:PKG/path/inside", where="k")


def test_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"buzz")
    assert fingerprint(path) == {"path": str(path), "bytes": 4, "sha256": hashlib.sha256(b"buzz").hexdigest()}


# --- the hub


SOURCE = HubSource("owner/set", "config", "ref")


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: Any, offline: bool = False) -> dict[str, Any]:
    """`datasets.load_dataset` replaced by one that records its call and gives `rows`."""
    called: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None, **options: Any) -> Any:
        called.update(path=path, name=name, **options)
        return rows

    config = types.SimpleNamespace(HF_HUB_OFFLINE=offline)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=config))
    monkeypatch.setattr(hub, "_probe", lambda source: called.update(probed=True))
    return called


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_hub(monkeypatch, [{"id": str(i), **GOOD} for i in range(5)])
    rows = list(read_hub_rows(SOURCE, "validation", FIELDS, limit=3))
    assert [row["id"] for row in rows] == ["0", "1", "2"]
    assert called == dict(
        path="owner/set", name="config", split="validation", revision="ref", streaming=True, probed=True
    )


def test_hub_offline_reads_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    called = fake_hub(monkeypatch, [GOOD], offline=True)
    assert list(read_hub_rows(SOURCE, "test", FIELDS)) == [{"id": "row-1", **GOOD}]
    assert called["streaming"] is False
    assert "probed" not in called


def test_hub_bad_row_and_failing_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, [GOOD, {"document": "d"}])
    fails(lambda: list(read_hub_rows(SOURCE, "test", FIELDS)), "owner/set (test) row 2: has no field 'summary'")

    def broken() -> Any:
        yield GOOD
        raise ConnectionError("gone\nsecond line")

    fake_hub(monkeypatch, broken())
    fails(lambda: list(read_hub_rows(SOURCE, "test", FIELDS)), "ConnectionError: gone", "task.data takes a local")


def test_hub_out_of_reach_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, [GOOD])

    def unreachable(source: HubSource) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(hub, "_probe", unreachable)
    fails(lambda: list(read_hub_rows(SOURCE, "test", FIELDS)), "owner/set (test)", "task.data takes a local .jsonl")


# --- single files on the network


def serve(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[str]:
    """`datasets.DownloadManager` replaced by one that gives `path` for every URL; returns the URLs asked for."""
    asked: list[str] = []

    class DownloadManager:
        def __init__(self, download_config: Any) -> None:
            assert download_config.use_etag is False

        def download(self, url: str) -> str:
            asked.append(url)
            return str(path)

    module = types.SimpleNamespace(DownloadManager=DownloadManager, DownloadConfig=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_file_by_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "0a1b2c"  # a cache knows no endings
    cached.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode() * 3))
    source = FileSource("https://host/a.jsonl.gz")
    asked = serve(monkeypatch, cached)
    rows = list(read_hub_rows(source, "no split", FIELDS, limit=2))
    assert rows == [{"id": "row-1", **GOOD}, {"id": "row-2", **GOOD}]
    assert asked == ["https://host/a.jsonl.gz"]
    cached.write_bytes(cached.read_bytes()[:-20])
    fails(lambda: list(read_hub_rows(source, "", FIELDS)), "https://host/a.jsonl.gz row 1: the gzip data is cut")
    write(cached, GOOD, {"document": "d"})
    plain = FileSource("https://host/a.jsonl")
    fails(lambda: list(read_hub_rows(plain, "", FIELDS)), "a.jsonl row 2: has no field 'summary'")


def test_a_file_inside_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("in/a.jsonl", "".join(json.dumps({**GOOD, "id": i}) + "\n" for i in range(500)))
    serve(monkeypatch, archive)
    source = FileSource("https://host/a.zip", member="in/a.jsonl")
    assert [row["id"] for row in read_hub_rows(source, "", FIELDS, limit=2)] == ["0", "1"]
    assert len(list(read_hub_rows(source, "", FIELDS))) == 500
    other = FileSource("https://host/a.zip", member="in/b.jsonl")
    fails(lambda: list(read_hub_rows(other, "", FIELDS)), "https://host/a.zip (in/b.jsonl)", "task.data takes a local")
    raw = bytearray(archive.read_bytes())
    raw[120] ^= 255  # inside the member
    archive.write_bytes(raw)
    fails(lambda: list(read_hub_rows(source, "", FIELDS)), "(in/a.jsonl) row ", "the zip data is cut off or broken")


def test_a_file_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **options: Any) -> str:
        assert options["revision"] == "abc"
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    source = FileSource("a.jsonl", repository="owner/set", revision="abc")
    line = fails(lambda: list(read_hub_rows(source, "", FIELDS)), "owner/set/a.jsonl cannot be loaded (ConnectionError")
    assert line.endswith("Name or service not known), task.data takes a local .jsonl or .jsonl.gz file")
    assert source.facts("") == {"hub": "owner/set", "file": "a.jsonl", "revision": "abc"}


def test_a_file_of_the_hub_is_looked_for_in_the_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked, reachable = write(tmp_path / "a.jsonl", GOOD), [], []

    def download(repository: str, file: str, local_files_only: bool = False, **options: Any) -> str:
        asked.append((repository, file, local_files_only, options["revision"]))
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(path)

    def probe(source: HubSource) -> None:
        if not reachable:
            raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(hub, "_probe", probe)
    source = FileSource("a.jsonl", repository="owner/set", revision="abc")
    fails(lambda: list(read_hub_rows(source, "", FIELDS)), "ConnectionError: no network")
    assert asked == [("owner/set", "a.jsonl", True, "abc")]  # no download was tried, which would be again and again
    reachable.append(True)
    assert list(read_hub_rows(source, "", FIELDS)) == [{"id": "row-1", **GOOD}]
    assert asked[2:] == [("owner/set", "a.jsonl", False, "abc")]

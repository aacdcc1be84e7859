"""Reports: what they say, what they refuse, and pages that need nothing but themselves."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from buzz.evaluation.errors import ConfigError
from buzz.evaluation.measure.summary import summarise
from buzz.evaluation.show.report.answers import MOST_SAMPLES
from buzz.evaluation.show.report.cli import main
from buzz.evaluation.show.report.folders import load_run
from buzz.evaluation.show.report.needles import ALL, grid_rows, needle_grids
from buzz.evaluation.show.report.pictures import HONEY, PALETTE, longest_sample, look_of, perplexity_curves
from buzz.evaluation.show.report.write import write_report
from tests.evaluation.report_runs import EVICTED_AT, NASTY, TOKENS, answers, quick_run, texts, write_run
from tests.evaluation.synthetic import method, record, summary_of


class Parsed(HTMLParser):
    """What a page's HTML says: the elements and the texts of its scripts."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, found in self.elements if (value := found.get(attribute)) is not None]


def page_of(folder: Path) -> tuple[str, Parsed]:
    text = (folder / "report.html").read_text(encoding="utf-8")
    return text, Parsed(text)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The report of a finished run."""
    folder = quick_run(tmp_path_factory.mktemp("runs") / "quick")
    return folder, write_report([folder], folder)


# --- a page on its own -----------------------------------------------------------------------------------------------


def test_files(quick):
    folder, paths = quick
    names = ["report.md", "report.html", "quality.png", "quality.svg", "cache.png", "cache.svg"]
    assert [path.name for path in paths] == names
    assert all(path.parent == folder and path.stat().st_size > 0 for path in paths)


def test_the_page_refers_to_nothing_outside(quick):
    text, page = page_of(quick[0])
    for attribute in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
        assert all(value.startswith(("#", "data:")) for value in page.values(attribute)), attribute
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))
    assert not {"iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in page.elements}
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]


def test_the_page_allows_its_own_script_alone(quick):
    _, page = page_of(quick[0])
    policy = next(found["content"] for _, found in page.elements if found.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert len(page.scripts) == 2


def test_ids_are_unique_and_links_lead_somewhere(quick):
    text, page = page_of(quick[0])
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in page.values("href") if value.startswith("#")]
    targets += re.findall(r"url\(#(.*?)\)", text)
    targets += [name for value in page.values("aria-labelledby") for name in value.split()]
    assert targets
    assert set(targets) <= set(ids)


def test_pictures_say_what_they_show(quick):
    _, page = page_of(quick[0])
    charts = [found for tag, found in page.elements if tag == "svg" and (found.get("class") or "").startswith("chart")]
    assert [found["class"] for found in charts] == ["chart page", "chart phone"] * 2
    assert all(found["role"] == "img" and found["aria-label"] and found["viewbox"] for found in charts)


def test_the_data_are_whole_whatever_the_texts_hold(quick):
    _, page = page_of(quick[0])
    (run,) = json.loads(page.scripts[0])["runs"]
    assert (run["name"], run["measure"], run["total"]) == ("made", "ROUGE-L to full", 3)
    assert [sample["id"] for sample in run["samples"]] == ["s0", "s1", "s2"]
    assert [answer["output"] for answer in run["samples"][1]["answers"]] == [NASTY, NASTY]
    assert run["samples"][1]["reference"] == ["reference 1"]
    first = run["samples"][0]["answers"]
    assert [(answer["method"], answer["full"], answer["cached"]) for answer in first] == [
        ("full", True, "400.0"),
        ("buzz", False, "100.0"),
    ]
    assert first[0]["metrics"] == [["ROUGE-1", "0.00"], ["ROUGE-L", "20.00"]]
    assert first[1]["metrics"][2] == ["ROUGE-L to full", "44.44"]
    for hive in run["hives"]:
        numbers = np.frombuffer(zlib.decompress(base64.b64decode(hive["evicted_at"])), dtype="<i2")
        assert np.array_equal(numbers.reshape(2, 2, 10), EVICTED_AT[hive["method"]])
        assert hive["tokens"] == TOKENS
        assert (hive["sample"], hive["policy"], hive["read"]) == ("s0", "sink 4", False)


def test_tables_are_in_both(quick):
    folder, _ = quick
    text, _ = page_of(folder)
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    cells = "10.0 | 400.0 | 420 | 1.00x | 4.88 | 1.00x | 20.0 | 1.5"
    assert f"| full | 3 | 10.00 [0.00, 20.00] | 30.00 [20.00, 40.00] | {cells} |" in markdown
    assert "<td>30.00 <small>[20.00, 40.00]</small></td><td>10.0</td><td>400.0</td>" in text
    for heading in ("Against the full cache", "Share of the full cache's score"):
        assert f"## {heading}" in markdown
        assert f"<h3>{heading}</h3>" in text
    assert "](quality.png)" in markdown
    assert "](cache.png)" in markdown
    assert "a &lt;machine&gt;" in text


def test_methods_are_compared_with_any_one(quick, tmp_path, capsys):
    folder, _ = quick
    run = load_run(folder)
    other = next(name for name in run.records if name != "full")
    assert main([str(folder), "--output", str(tmp_path), "--against", other, "--against", "full"]) == 0
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    section = text.split(f"## Against {other}\n")[1].split("\n## ")[0]
    rows = {line.split(" | ")[0] for line in section.splitlines()}
    assert "| full" in rows
    assert f"| {other}" not in rows
    assert f"<h3>Against {other}</h3>" in page
    # With the full cache it is the comparison that is there anyway.
    tables = [text.split(f"## Against {name}\n\n")[1].split("\n\n")[0] for name in ("full", "the full cache")]
    assert tables[0] == tables[1]
    capsys.readouterr()
    assert main([str(folder), "--against", "nobody"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --against: ")
    assert told.count("\n") == 1


def test_equal_runs_give_equal_files(quick, tmp_path):
    folder, paths = quick
    again = write_report([folder], tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_many_answers_are_cut(tmp_path):
    methods = {"full": answers("full", ["text"] * (MOST_SAMPLES + 5), 400.0)}
    methods["full"].reverse()  # the order in which records were finished is no matter
    folder = write_run(tmp_path / "many", methods)
    write_report([folder], folder)
    (run,) = json.loads(page_of(folder)[1].scripts[0])["runs"]
    assert [sample["id"] for sample in run["samples"]] == [f"s{i}" for i in range(MOST_SAMPLES)]


def test_without_matplotlib_there_are_tables(tmp_path, monkeypatch):
    folder = quick_run(tmp_path / "quick")
    monkeypatch.setattr("buzz.evaluation.show.report.pictures.importlib.util.find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="matplotlib is not installed"):
        paths = write_report([folder], folder)
    assert [path.name for path in paths] == ["report.md", "report.html"]
    text, page = page_of(folder)
    assert "chart" not in page.values("class")
    assert "30.00" in text


# --- runs that are not finished --------------------------------------------------------------------------------------


def test_a_run_that_goes_on(tmp_path):
    folder = quick_run(tmp_path / "going", finished=False)
    (folder / "samples" / "buzz.jsonl").unlink()
    late = answers("buzz", ["a", "b", "c"])
    for number, rows in enumerate((late[1:], late[:1])):  # two processes, and the second one is writing
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples" / f"buzz.shard-{number:03d}.jsonl").write_text(lines + '{"id": "s9", "met' * number)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = load_run(folder)
    assert not run.finished
    assert {row["id"] for row in run.records["buzz"]} == {"s0", "s1", "s2"}
    expected = summarise(run.records, ["rouge1", "rougeL"], {}, run.summary["run"])
    assert run.summary["methods"] == json.loads(json.dumps(expected["methods"]))
    facts = run.summary["run"]
    assert (facts["model"], facts["headline"], facts["full"]) == ("model-1.5", "rougeL", "full")
    write_report([folder], tmp_path / "out")
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert "The run is not finished. Samples so far: full 3, buzz 3." in text
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_that_has_not_begun(tmp_path):
    folder = write_run(tmp_path / "new", {"full": []}, finished=False)
    with pytest.raises(ConfigError, match="no sample of this run is finished"):
        write_report([folder], tmp_path / "out")
    quick_run(tmp_path / "other")
    (folder / "samples" / "full.jsonl").unlink()
    with pytest.warns(UserWarning, match="new is left out"):
        paths = write_report([tmp_path], tmp_path / "out")
    assert "made-quality.png" not in [path.name for path in paths]  # only one run is left, so there is no prefix


def test_a_method_that_failed(tmp_path):
    methods = {"full": answers("full", ["a", "b"], 400.0), "buzz": []}
    folder = write_run(tmp_path / "failed", methods)
    summary = summary_of(methods, {"buzz": "out of memory"})
    (folder / "summary.json").write_text(json.dumps(summary))
    write_report([folder], folder)
    assert "buzz did not finish: out of memory" in page_of(folder)[0]


# --- perplexity and needles ------------------------------------------------------------------------------------------

BLOCKS = {
    "full": [[(256, 500.0), (256, 450.0), (100, 200.0)], [(256, 510.0), (30, 60.0)]],
    "buzz": [[(256, 520.0), (256, 480.0), (100, 240.0)], [(256, 530.0), (30, 66.0)]],
}


def test_perplexity_along_a_text_ends_at_the_runs_own():
    rows = texts("full", BLOCKS["full"])
    curve = perplexity_curves(rows)
    assert curve[:, 0].tolist() == [256, 512, 612]
    assert curve[0, 1] == pytest.approx(math.exp(1010 / 512))
    assert curve[1, 1] == pytest.approx(math.exp(510 / 286))
    assert curve[1, 2] == pytest.approx(math.exp(1520 / 798))
    summary = summary_of({"full": rows})
    assert curve[-1, 2] == pytest.approx(summary["methods"]["full"]["metrics"]["perplexity"]["mean"])
    assert perplexity_curves(answers("full", ["a"])) is None


def test_windows_of_a_long_text_join_blocks():
    generator = np.random.default_rng(0)
    blocks = [(256, nats) for nats in generator.uniform(400, 600, 1000)]
    curve = perplexity_curves(texts("buzz", [blocks]), windows=40)
    assert len(curve) == 40
    assert curve[0].tolist() == pytest.approx([6400, *[math.exp(sum(n for _, n in blocks[:25]) / 6400)] * 2])
    assert curve[-1, 0] == 256_000


def test_a_run_that_reads_texts(tmp_path):
    folder = write_run(tmp_path / "read", {name: texts(name, blocks) for name, blocks in BLOCKS.items()}, "wikitext")
    paths = write_report([folder], folder)
    assert [path.name for path in paths][-2:] == ["perplexity.png", "perplexity.svg"]
    page = page_of(folder)[1]
    assert json.loads(page.scripts[0])["runs"][0]["samples"] == []
    assert "answers" not in page.values("id")
    assert "](perplexity.png)" in (folder / "report.md").read_text()


def test_needles_by_length_and_depth(tmp_path):
    ids = [f"length{length}-depth{depth}-{i}" for length in (1000, 500) for depth in ("0", "0.25") for i in (0, 1)]
    found = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    rows = {
        "full": [record(name, "full", {"recall": 1.0}) for name in ids],
        "buzz": [record(name, "buzz", {"recall": value}) for name, value in zip(ids, found, strict=True)],
        "late": [record(ids[0], "h2o", {"recall": 1.0})],
    }
    (grids,) = needle_grids(rows).values()
    assert grids["buzz"].lengths == [500, 1000]
    assert grids["buzz"].depths == [0.0, 0.25]
    assert grids["buzz"].found.tolist() == [[1.0, 0.5], [0.5, 0.0]]
    assert grid_rows(grids["late"]) == (
        ["depth", "500 words", "1000 words"],
        [["0%", "-", "100"], ["25%", "-", "-"]],
    )
    assert needle_grids({"full": answers("full", ["a"])}) == {}
    folder = write_run(tmp_path / "needles", rows, "passkey")
    write_report([folder], folder)
    assert "| 25% | 50 | 0 |" in (folder / "report.md").read_text()
    text, page = page_of(folder)
    assert "<tr><th scope='row'>25%</th><td class=m5>50</td><td class=m0>0</td></tr>" in text
    assert "Share of needles found, in percent. The question was part of the prompt that was compressed." in text
    assert "parts" not in page.values("id")


def ruler_rows(policy: str, found: Sequence[float]) -> list[dict]:
    """Records of two tasks with depths and one without, two samples a cell; the scores of each task in turn."""
    ids = [
        *(
            f"{task}/length1024-depth{d}-{i}"
            for task in ("niah_single_1", "niah_multikey_2")
            for d in (0, 1)
            for i in (0, 1)
        ),
        *(f"vt/length1024-{i}" for i in range(4)),
    ]
    return [record(name, policy, {"string_match_all": value}) for name, value in zip(ids, found, strict=True)]


@pytest.mark.parametrize("aware", [True, False])
def test_ruler_has_needles_and_parts(aware, tmp_path):
    rows = {
        "full": ruler_rows("full", [1.0] * 8 + [0.6] * 4),
        "buzz": ruler_rows("buzz", [1, 0, 1, 1, 0, 0, 0, 1, 0.2, 0.4, 0.2, 0.4]),
    }
    grids = needle_grids(rows)
    assert list(grids) == [ALL, "niah_single_1", "niah_multikey_2"]
    assert grids[ALL]["buzz"].found.tolist() == [[0.25], [0.75]]
    assert grids["niah_multikey_2"]["buzz"].found.tolist() == [[0.0], [0.5]]
    assert grid_rows(grids[ALL]["full"])[0] == ["depth", "1024 tokens"]
    folder = write_run(tmp_path / "ruler", rows, "ruler")
    if not aware:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["task"]["query_aware"] = False
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_report([folder], folder)
    when = ["The texts were compressed before the question was read.", "The question was part of the prompt that was"][
        aware
    ]
    markdown, (text, page) = (folder / "report.md").read_text(), page_of(folder)
    assert "| method | niah_single_1 | niah_multikey_2 | vt | mean |" in markdown
    assert "| buzz | 75.00 | 25.00 | 30.00 | 43.33 |" in markdown
    assert "## Needles found by length and depth (all tasks), in percent" in markdown
    assert when in markdown
    assert {"parts", "needles"} <= set(page.values("id"))
    assert "<h3>string match by task, 1024 tokens</h3>" in text
    assert f"Share of needles found, all tasks, in percent. {when}" in text
    assert "<details><summary>niah_multikey_2</summary>" in text
    drawn = (folder / "needles.svg").read_text()
    assert [drawn.count(f">{share}<") for share in (100, 75, 25)] == [2, 1, 1]  # a figure in every cell
    assert "](needles.png)" in markdown
    assert "Means: full 100%, buzz 50%." in markdown
    assert text.count("<figure>") == 1  # quality; the page has maps of its own
    assert text.count("<td class=m8>75</td>") == 1  # of both tasks at the end of the text
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["methods"]["buzz"]["parts"][2] == {
        **{"task": "vt", "length": 1024, "n": 4, "answer_tokens": 10},
        "metrics": {"string_match_all": pytest.approx(0.3)},
    }


def test_the_cache_is_shown_of_the_longest_answer_that_all_methods_have(tmp_path):
    methods = {"full": answers("full", ["a", "b", "c"]), "buzz": answers("buzz", ["a", "b"])}
    methods["full"][1]["new_tokens"] = 50
    methods["full"][2]["new_tokens"] = 500
    run = load_run(write_run(tmp_path / "run", methods))
    assert longest_sample(run) == "s1"


@pytest.mark.parametrize("names", [["full", "buzz"], ["buzz", "full"], ["h2o", "full", "buzz-stride7"]])
def test_buzz_has_the_color_of_honey(names):
    policies = {name: "buzz" if name.startswith("buzz") else name for name in names}
    summary = summary_of({name: method(policy, rouge1=[0.1, 0.2]) for name, policy in policies.items()})
    order = look_of([summary]).colors
    place = [policies[name] for name in names].index("buzz")
    assert order[place] == PALETTE[HONEY]
    assert sorted(order) == sorted(PALETTE)


# --- several runs ----------------------------------------------------------------------------------------------------


def test_several_runs_share_a_report(tmp_path):
    for name in ("b", "a"):
        quick_run(tmp_path / "sweep" / name, name="same")
    texts_run = write_run(
        tmp_path / "sweep" / "deep" / "c",
        {name: texts(name, blocks) for name, blocks in BLOCKS.items()},
        "wikitext",
        name="words",
    )
    paths = write_report([tmp_path / "sweep", texts_run], tmp_path / "out")
    assert [path.name for path in paths][2:] == [
        *["frontier.png", "frontier.svg"],
        *["same-1-quality.png", "same-1-quality.svg", "same-1-cache.png", "same-1-cache.svg"],
        *["same-2-quality.png", "same-2-quality.svg", "same-2-cache.png", "same-2-cache.svg"],
        *["words-quality.png", "words-quality.svg", "words-perplexity.png", "words-perplexity.svg"],
    ]
    assert all(path.exists() for path in paths)
    text, page = page_of(tmp_path / "out")
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#(.*?)\)", text)) <= set(ids)
    runs = json.loads(page.scripts[0])["runs"]
    assert [(run["name"], len(run["hives"])) for run in runs] == [("same", 2), ("same", 2), ("words", 0)]
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "# sweep" in markdown
    assert "(../sweep/deep/c/report.md)" in markdown
    assert "](words-perplexity.png)" in markdown


# --- mistakes --------------------------------------------------------------------------------------------------------


def broken(folder: Path, name: str, content: bytes) -> Path:
    path = quick_run(folder / "run") / name
    path.write_bytes(content)
    return path


GOOD = json.dumps(answers("full", ["a"])[0]).encode() + b"\n"
NO_BYTES = GOOD.replace(b'"mean_bytes": 1280000.0', b'"mean_bytes": 0')


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("config.yaml", b"name: [", "config.yaml", "is not the config of a run"),
        ("config.yaml", b"name: x\nmethods: [buzz]\n", "config.yaml", "is not the config of a run"),
        ("config.yaml", b"\xff\xfe", "config.yaml", "is not the config of a run"),
        ("summary.json", b'{"run": {', "summary.json", "is not valid JSON"),
        ("summary.json", b"[]", "summary.json", "is no JSON object"),
        ("summary.json", b'{"name": "sweep", "runs": {}}', "summary.json", "is no summary of a run (run)"),
        ("summary.json", b'{"run": {"name": 3}, "methods": {}}', "summary.json", "is no summary of a run (name)"),
        ("environment.json", b"{", "environment.json", "is not valid JSON"),
        ("environment.json", b"[" * 100_000, "environment.json", "is not valid JSON"),
        ("config.yaml", b"a: " + b"[" * 5000, "config.yaml", "is not the config of a run"),
        ("samples/full.jsonl", GOOD + NO_BYTES, "full.jsonl line 2", "is no finished sample (cache.mean_bytes is 0)"),
        (
            "environment.json",
            b'{"versions": 3}',
            "environment.json",
            "is no environment of a run (versions is not a mapping)",
        ),
        ("samples/full.jsonl", b"{\n" + GOOD, "full.jsonl line 1", "is not valid JSON"),
        (
            "samples/full.jsonl",
            GOOD + b'{"id": "x"}\n' + GOOD,
            "full.jsonl line 2",
            "is no finished sample (prompt_hash is missing)",
        ),
        ("hive/buzz.json", b'{"sample"', "buzz.json", "is not valid JSON"),
        ("hive/buzz.json", b'{"sample": "s0"}', "buzz.json", "is no recording of evictions (tokens)"),
    ],
)
def test_damaged_files_are_named(name, content, where, what, tmp_path, capsys):
    broken(tmp_path, name, content)
    assert main([str(tmp_path / "run")]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    assert errors.startswith(f"error: {tmp_path}/run/")
    assert f"{where}: {what}, " in errors
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_damaged_recording_is_named(tmp_path, capsys):
    path = quick_run(tmp_path / "run") / "hive" / "buzz.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "evicted_at": "AAAA"}))
    assert main([str(tmp_path / "run")]) == 2
    assert "buzz: evicted_at is damaged" in capsys.readouterr().err


def test_folders_that_are_no_runs(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, what in (("empty", "holds no run"), ("none", "does not exist"), ("file", "is a file")):
        assert main([str(tmp_path / name)]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {tmp_path / name}: {what}")
        assert errors.count("\n") == 1
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: usage: ")


def test_empty_paths(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(quick_run(tmp_path / "run"))
    for arguments, where in (([""], "runs"), ([".", ""], "runs"), ([".", "--output", ""], "output")):
        assert main(arguments) == 2
        output, errors = capsys.readouterr()
        assert output == ""
        assert errors.startswith(f"error: {where}: is empty, a ")
        assert errors.count("\n") == 1


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "summary.json", "samples/full.jsonl"])
def test_pipes_in_a_run(name, tmp_path, capsys):
    path = quick_run(tmp_path / "run") / name
    path.unlink()
    os.mkfifo(path)
    assert main([str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "is no regular file" in errors or name == "config.yaml"  # without a config, a folder is no run


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    quick_run(tmp_path / "run")
    (tmp_path / "file").write_text("x")
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "file")]) == 2
    assert "error: output: " in capsys.readouterr().err


def test_where_the_command_writes(tmp_path, capsys, monkeypatch):
    first, second = quick_run(tmp_path / "runs" / "one"), quick_run(tmp_path / "runs" / "two")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("buzz.evaluation.show.report.write.drawable", lambda: False)  # it takes long
    for arguments, where in (
        ([str(first)], first),
        ([str(tmp_path / "runs")], tmp_path / "runs"),
        ([str(first), str(second)], Path("report")),
        ([str(first), str(second), "--output", "elsewhere"], Path("elsewhere")),
    ):
        assert main(arguments) == 0
        assert (where / "report.html").exists()
        output, errors = capsys.readouterr()
        assert output == f"{where}: report.md, report.html\n"
        assert errors == "warning: matplotlib is not installed, so the report has no pictures\n"

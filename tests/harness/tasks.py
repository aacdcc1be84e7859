"""Tasks for lm-eval that need no network: a few rows each, in local files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.evaluation.tiny import WORDS

CHOICES = [" a river", " the old council", " it", " a bridge of stone"]


def _text(i: int) -> str:
    """90 bytes or fewer, each a token, of unequal lengths."""
    return " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(4 + i * 3 % 9))


ROWS: dict[str, list[dict[str, Any]]] = {
    "choice": [{"context": _text(i), "choices": CHOICES[: 2 + i % 3], "gold": i % 2} for i in range(5)],
    "answer": [{"context": _text(i), "answer": "no"} for i in range(5)],
    "rolling": [{"text": _text(i)} for i in (0, 3)] + [{"text": f"{_text(2)} {_text(5)} {_text(8)}"}],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    },
    "answer": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


def write_tasks(folder: Path) -> None:
    """A file of rows and a YAML of each task, for `--include_path`."""
    for name, rows in ROWS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "datasets")}
        common = {"task": f"buzz_{name}", "dataset_path": "json", "dataset_kwargs": source, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**common, **SETTINGS[name]}))

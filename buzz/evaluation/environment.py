"""What a run depends on beside its config: versions, machine, commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import buzz

_PACKAGES = ("transformers", "tokenizers", "accelerate", "numpy", "gguf", "rouge")


def environment() -> dict[str, Any]:
    """Versions, machine, git commit, command line and time."""
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {"python": platform.python_version(), "buzz": buzz.__version__, **_versions()},
        "platform": platform.platform(),
        "device_name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "git": git_commit(),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"torch": str(torch.__version__)}  # with its build: +cpu, +cu130
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """Commit of the checkout that buzz runs from, `-dirty` if tracked files differ; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None  # installed somewhere inside another project's checkout, say
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None

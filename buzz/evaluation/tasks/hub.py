"""Data from the network: data sets of the Hugging Face hub, and single files. Both are kept in the local cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from buzz.evaluation.errors import ConfigError

HUB_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub. `name`: its configuration; `revision`: a branch, tag, ref or commit."""

    path: str
    name: str | None = None
    revision: str | None = None

    def label(self, split: str) -> str:
        return f"{self.path} ({split})"

    def facts(self, split: str) -> dict[str, Any]:
        """What identifies the data, for the run folder."""
        return {"hub": self.path, "name": self.name, "revision": self.revision, "split": split}


@dataclass(frozen=True)
class FileSource:
    """One JSONL file, as it is, .gz or inside a .zip, where there is no data set with splits: `task.split` is not used.

    Args:
        file: the file's URL, or its path inside `repository`.
        repository: a data set repository of the hub.
        revision: of the repository.
        member: the file's path inside `file`, which is a .zip then.
    """

    file: str
    repository: str | None = None
    revision: str | None = None
    member: str | None = None

    def label(self, split: str) -> str:
        file = f"{self.repository}/{self.file}" if self.repository else self.file
        return f"{file} ({self.member})" if self.member else file

    def facts(self, split: str) -> dict[str, Any]:
        """What identifies the data, for the run folder."""
        facts = {"hub": self.repository, "file": self.file, "revision": self.revision, "member": self.member}
        return {key: value for key, value in facts.items() if value is not None}


def fetch(source: FileSource) -> str:
    """Path of a source's `file` in the local cache; it is downloaded once.

    Raises:
        Exception: of the libraries that load it; see `hub_errors`.
    """
    if source.repository:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        place: dict[str, Any] = {"repo_type": "dataset", "revision": source.revision}
        try:
            return hf_hub_download(source.repository, source.file, local_files_only=True, **place)
        except LocalEntryNotFoundError:
            _probe(HubSource(source.repository, revision=source.revision))
            return hf_hub_download(source.repository, source.file, **place)
    import datasets  # here, because it takes seconds and local files do without

    # No ETag: what is in the cache is taken without asking the network.
    settings = datasets.DownloadConfig(use_etag=False)
    return str(datasets.DownloadManager(download_config=settings).download(source.file))


def stream(source: HubSource, split: str) -> Iterable[Any]:
    """Raw rows of a hub data set.

    Streamed, so that the first 200 of a split do not cost the download of all splits. In the hub's offline mode
    (HF_HUB_OFFLINE=1) the local cache of `datasets` is read instead.
    """
    import datasets

    offline = bool(datasets.config.HF_HUB_OFFLINE)
    if not offline:
        _probe(source)
    return datasets.load_dataset(source.path, source.name, split=split, revision=source.revision, streaming=not offline)


def _probe(source: HubSource) -> None:
    """Fail at once where the hub cannot be reached: a download would be tried for the better part of a minute."""
    from huggingface_hub import HfApi

    HfApi().dataset_info(source.path, revision=source.revision, timeout=HUB_TIMEOUT)


@contextmanager
def hub_errors(label: str, allowed: str, where: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a ConfigError of one line."""
    try:
        yield
    except Exception as error:  # httpx, huggingface_hub, datasets and pyarrow share no base class
        reason = str(error).strip().partition("\n")[0][:200]
        what = f"{label} cannot be loaded ({type(error).__name__}: {reason})"
        raise ConfigError(where, what, allowed) from error


def guarded(rows: Iterable[Any], label: str, allowed: str, where: str) -> Iterator[Any]:
    """The rows; an error of the stream under way becomes a ConfigError."""
    with hub_errors(label, allowed, where):
        iterator = iter(rows)
    while True:
        with hub_errors(label, allowed, where):
            row = next(iterator, None)
        if row is None:
            return
        yield row

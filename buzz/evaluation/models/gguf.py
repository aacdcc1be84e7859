"""What a GGUF file says about itself, and repairs for what transformers makes of it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import pre_tokenizers

MAGIC = b"GGUF"

# What transformers calls the architectures of GGUF files that it reads and buzz knows.
MODEL_TYPES = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "phi3": "phi3",
    "gemma3": "gemma3_text",
}

# Value types of the format, as struct codes; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# `tokenizer.ggml.pre` of the vocabularies whose digits are single tokens before GPT-2's own splitting (llama.cpp,
# `llama_vocab::impl::load`). transformers builds all of these with GPT-2's splitting alone.
SINGLE_DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The key-value pairs in a GGUF file's header.

    Reads no tensor, and takes a tenth of a second where `gguf.GGUFReader` takes seconds for a large vocabulary.

    Returns:
        Scalars and strings by key; an array (a vocabulary, say) is only walked over and given as its length.

    Raises:
        ValueError: not a GGUF file, or one that is cut off within its header.
        OSError: the file cannot be read.
    """
    with _mapped(path) as data:
        return _read_pairs(data)[0]


class Tensor(NamedTuple):
    """Where a tensor lies in its file: bytes `start` to `end`, in numbers of a `kind` such as F32 or Q4_K."""

    name: str
    kind: str
    start: int
    end: int


def read_tensors(path: str | Path) -> list[Tensor]:
    """The tensors that a GGUF file's header speaks of, whether or not the file is long enough for them.

    Raises:
        ValueError, OSError: as `read_metadata`; a tensor of a kind that gguf does not know is damage as well.
    """
    from gguf.constants import GGML_QUANT_SIZES

    kinds = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
    with _mapped(path) as data:
        pairs, offset = _read_pairs(data)
        (count,) = struct.unpack_from("<Q", data, 8)
        found: list[Tensor] = []  # from where tensors begin
        for _ in range(count):
            name, offset = _read_value(data, offset, _STRING)
            (dimensions,) = struct.unpack_from("<I", data, offset)
            *shape, number, place = struct.unpack_from(f"<{dimensions}QIQ", data, offset + 4)
            offset += 16 + 8 * dimensions
            kind, block, nbytes = kinds[number]
            found.append(Tensor(name, kind, place, place + math.prod(shape) // block * nbytes))
    begin = offset + -offset % _alignment(pairs)
    return [Tensor(name, kind, begin + start, begin + end) for name, kind, start, end in found]


def read_alignment(path: str | Path) -> int:
    """The number of bytes that each tensor's place in a GGUF file is a multiple of; raises as `read_metadata`."""
    return _alignment(read_metadata(path))


def _alignment(metadata: dict[str, Any]) -> int:
    return max(1, int(metadata.get("general.alignment", 32)))


@contextlib.contextmanager
def _mapped(path: str | Path) -> Iterator[mmap.mmap]:
    """A GGUF file's bytes; what cannot be read of them inside the block is a ValueError."""
    with open(path, "rb") as file:
        if file.read(4) != MAGIC:
            raise ValueError("not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                yield data
            except (struct.error, UnicodeDecodeError, KeyError, OverflowError) as error:
                raise ValueError("a GGUF file that is damaged or cut off") from error


def _read_pairs(data: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The key-value pairs, and where what follows them begins."""
    version, _, count = struct.unpack_from("<IQQ", data, 4)
    if not 2 <= version <= 0xFFFF:  # a big-endian file shows its version in the high bytes
        raise ValueError("a GGUF file of an unknown version")
    offset, pairs = 24, {}
    for _ in range(count):
        key, offset = _read_value(data, offset, _STRING)
        (kind,) = struct.unpack_from("<I", data, offset)
        pairs[key], offset = _read_value(data, offset + 4, kind)
    return pairs, offset


def _read_value(data: mmap.mmap, offset: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", data, offset)
        end = offset + 8 + length
        if end > len(data):
            raise struct.error("string runs past the end of the file")
        return data[offset + 8 : end].decode("utf-8"), end
    if kind == _ARRAY:
        item, length = struct.unpack_from("<IQ", data, offset)
        return length, _skip_array(data, offset + 12, item, length)
    code = "<" + _SCALARS[kind]
    return struct.unpack_from(code, data, offset)[0], offset + struct.calcsize(code)


def _skip_array(data: mmap.mmap, offset: int, item: int, length: int) -> int:
    if item in _SCALARS:
        return offset + length * struct.calcsize("<" + _SCALARS[item])
    if item == _STRING:
        read = struct.Struct("<Q").unpack_from
        for _ in range(length):
            offset += 8 + read(data, offset)[0]
        return offset
    for _ in range(length):  # an array of arrays
        _, offset = _read_value(data, offset, item)
    return offset


@contextlib.contextmanager
def parsed_once() -> Iterator[None]:
    """Inside the block transformers parses a GGUF file once instead of up to four times.

    It builds a `gguf.GGUFReader` for the tokenizer, the config and the weights each, and gguf's table of tensor names
    anew for every submodule: 17 s for a model of 135M parameters, where 6 s do. Inside the block both are remembered.
    """
    import gguf

    saved = gguf.GGUFReader, gguf.get_tensor_name_map
    module: Any = gguf
    module.GGUFReader = functools.lru_cache(maxsize=1)(gguf.GGUFReader)
    module.get_tensor_name_map = functools.lru_cache(maxsize=4)(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        module.GGUFReader, module.get_tensor_name_map = saved


def repair_tokenizer(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Make a tokenizer that transformers built from a GGUF file what the file's metadata says, in place.

    - single-digit splitting before the byte-level step, for vocabularies that have it (SmolLM2 among them);
    - the special tokens: some transformers 5.x read a wrong eos and no pad. Without a pad in the file, eos pads.
    - whether a text begins with bos and ends with eos: Gemma answers nonsense without its bos.
    - the chat template.
    """
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(token_id)))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(tokenizer, "chat_template", None) is None:
        tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    if metadata.get("tokenizer.ggml.pre") in SINGLE_DIGITS:
        _split_digits(tokenizer.backend_tokenizer)
    _mark_ends(tokenizer, metadata)


def _mark_ends(tokenizer: Any, metadata: dict[str, Any]) -> None:
    by_default = {"bos": True} if metadata.get("tokenizer.ggml.model") == "llama" else {}  # as llama.cpp has it
    for name, place in (("bos", 0), ("eos", -1)):
        token_id = getattr(tokenizer, f"{name}_token_id")
        wanted = metadata.get(f"tokenizer.ggml.add_{name}_token", by_default.get(name))
        if wanted is not None and token_id is not None and wanted != (tokenizer("a")["input_ids"][place] == token_id):
            setattr(tokenizer, f"add_{name}_token", wanted)


def _split_digits(backend: Any) -> None:

    if "Digits" in str(backend.pre_tokenizer):
        return  # a transformers version that knows
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def end_ids(metadata: dict[str, Any]) -> list[int]:
    """Ids of the tokens that end a generation: end of sequence and, where the file has one, end of turn."""
    ids = (metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot"))
    return list(dict.fromkeys(int(token_id) for token_id in ids if token_id is not None))

"""Loads the model of a run: a hub repository, a local folder or a GGUF file."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from buzz.cache.call import Shape
from buzz.evaluation.errors import ConfigError
from buzz.evaluation.memory import is_out_of_memory, release_memory
from buzz.evaluation.models.gguf import end_ids, parsed_once, read_metadata, repair_tokenizer
from buzz.evaluation.models.section import ModelConfig
from buzz.evaluation.models.source import ModelSource, check_model, resolve_device
from buzz.patching import UnsupportedModelError, patch_model
from buzz.words import told

# Names of the text model's weights in a multimodal checkpoint, and what the text model alone calls them.
_TEXT_WEIGHTS = {
    r"^(model\.language_model|language_model\.model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


class ModelLoader:
    """Loads models and keeps the last one, so that runs of the same model load it once."""

    def __init__(self) -> None:
        self._key: Any = None
        self._loaded: Any = None

    def load(
        self, config: ModelConfig, source: ModelSource, local: int | None = None
    ) -> tuple[Any, Any, dict[str, Any]]:
        """As `load_model`; the model of before is given up first if another is wanted."""
        key = (config, source, local)
        if key != self._key:
            if self._loaded is not None:
                self._key = self._loaded = None
                release_memory()
            self._loaded = load_model(config, source, local)
            self._key = key
        return self._loaded


def load_model(
    config: ModelConfig, source: ModelSource | None = None, local: int | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """Load a run's model and tokenizer.

    `dtype: auto` is float32 on a CPU; elsewhere the checkpoint's own, and bfloat16 for a GGUF file (its weights are
    unpacked). Of a multimodal checkpoint the text model alone is loaded. The tokenizer pads on the left. The model's
    generation config holds its special tokens and nothing else, so that no sampling setting of the checkpoint plays a
    part; its `eos_token_id` is a list.

    Args:
        config: the `model` section of a run's config.
        source: what `check_model` returned; looked up if not given.
        local: of several processes this one's number among those of its host, to which GPUs are dealt in turn (see
            `resolve_device`); None: there is one.

    Returns:
        model (in eval mode, on its device), tokenizer, and what environment.json says about the model.

    Raises:
        ConfigError: as `check_model`; or weights or tokenizer are missing or damaged, or too large for the memory;
            or the model cannot be patched; or there is no chat template where one is asked for.
    """
    source = source or check_model(config)
    where = "model.gguf" if source.gguf else "model.id"
    try:
        with quiet_transformers(), _gguf_help(source):
            tokenizer = _load_tokenizer(config, source)
            model = _load_weights(config, source, local)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        what = f"the model in {source.path if source.gguf else source.root} cannot be loaded: {told(error)}"
        raise ConfigError(where, what, "a complete causal language model with its tokenizer is wanted") from error
    try:
        patch_model(model).remove()
    except UnsupportedModelError as error:
        raise ConfigError(where, told(error), "a model as its library made it is wanted") from error
    _set_generation(model, tokenizer, source)
    return model, tokenizer, _describe(model, source)


def _load_tokenizer(config: ModelConfig, source: ModelSource) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(source.root, gguf_file=source.gguf, local_files_only=source.offline)
    if source.gguf:
        repair_tokenizer(tokenizer, read_metadata(source.path))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    if config.chat_template and not tokenizer.chat_template:
        raise ConfigError(
            "model.chat_template", "is true, but this model's tokenizer has no chat template", "false is wanted"
        )
    return tokenizer


def _load_weights(config: ModelConfig, source: ModelSource, local: int | None) -> Any:
    device = resolve_device(config.device, local)
    if local is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # for kernels, which run on the current one
    dtype: Any = "auto"
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
    elif device.type == "cpu":
        dtype = torch.float32
    elif source.gguf:
        dtype = torch.bfloat16
    options: dict[str, Any] = {"gguf_file": source.gguf, "local_files_only": source.offline}
    if source.whole:
        whole = AutoConfig.from_pretrained(source.root, local_files_only=source.offline)
        options.update(config=whole.get_text_config(decoder=True), key_mapping=_TEXT_WEIGHTS)
    with contextlib.suppress(ImportError):  # newer transformers may otherwise keep a GGUF's weights packed on a GPU
        from transformers import GgufConfig

        if source.gguf:
            options["quantization_config"] = GgufConfig(dequantize=True)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source.root, dtype=dtype, output_loading_info=True, **options
        )
        if missing := sorted(found["missing_keys"]):  # transformers makes them up
            raise ValueError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
        return model.to(device).eval()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        what = f"the model does not fit into the free memory of {device}"
        raise ConfigError(
            "model.device", what, "another device, a smaller model.dtype or a smaller model is wanted"
        ) from error


def _set_generation(model: Any, tokenizer: Any, source: ModelSource) -> None:
    """Replace the checkpoint's generation settings by its special tokens alone."""
    ends = end_ids(read_metadata(source.path)) if source.gguf else []
    if not ends:
        found = model.generation_config.eos_token_id
        found = tokenizer.eos_token_id if found is None else found
        ends = list(found) if isinstance(found, list | tuple) else [found] if found is not None else []
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    model.generation_config = GenerationConfig(
        bos_token_id=model.generation_config.bos_token_id, eos_token_id=ends or None, pad_token_id=pad
    )


def _describe(model: Any, source: ModelSource) -> dict[str, Any]:
    config = model.config
    heads = config.num_attention_heads
    return {
        **dataclasses.asdict(source),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "parameters": model.num_parameters(),
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        **_reach(config),
    }


def _reach(config: Any) -> dict[str, Any]:
    """How far the layers of a model look back: how many of them at everything, the others at so many tokens."""
    windows = Shape.of(config).windows
    return {"full_attention_layers": windows.count(None), "sliding_window": next(filter(None, windows), None)}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside the block transformers shows errors alone, and no progress bars."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _gguf_help(source: ModelSource) -> Iterator[None]:
    """For a GGUF file: parse it once, and swallow a progress bar that transformers' own switch does not reach."""
    if not source.gguf:
        yield
        return
    with parsed_once(), contextlib.redirect_stderr(io.StringIO()):
        yield

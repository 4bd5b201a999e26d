"""Read the tokenizer that lies beside safetensors, as the library's `save_pretrained` leaves it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edged.errors import ConfigError
from edged_backends.torch_vocabulary_pieces import Parts, byte_level_piece, sentencepiece_piece

_TOKENIZER = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_ENDINGS = ("generation_config.json", "config.json")


def folder_parts(path: Path) -> tuple[Tokenizer, Parts]:
    """Read the vocabulary in the folder, or beside the file; `ConfigError` when it is missing or unknown."""
    folder = path if path.is_dir() else path.parent
    file = folder / _TOKENIZER
    try:
        data = file.read_bytes()
        tokenizer, content = Tokenizer.from_buffer(data), msgspec.json.decode(data)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {file}: {error}; a model in safetensors needs its {_TOKENIZER} beside it"
        ) from error
    settings = _optional(folder / _SETTINGS)
    end = _text(settings.get("eos_token"))
    parts = Parts(
        pieces=_pieces(tokenizer, content, file),
        ends=frozenset(_ends(folder, tokenizer, end)),
        chat_template=_template(folder, settings),
        beginning=_text(settings.get("bos_token")),
        end=end,
    )
    return tokenizer, parts


def _pieces(tokenizer: Tokenizer, content: Mapping[str, Any], file: Path) -> list[bytes]:
    piece = sentencepiece_piece if content["model"].get("byte_fallback") else byte_level_piece
    if (
        piece is byte_level_piece
        and '"ByteLevel"'
        not in msgspec.json.encode([content.get("decoder"), content.get("pre_tokenizer")]).decode()
    ):
        raise ConfigError(
            f"{file} is neither byte-level nor with byte fallback, as known families are; "
            "choose another model"
        )
    found = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(found.values(), default=-1) + 1)
    for token, number in found.items():
        pieces[number] = piece(token)
    for added in content.get("added_tokens") or ():
        pieces[added["id"]] = b"" if added.get("special") else added["content"].encode()
    return pieces


def _ends(folder: Path, tokenizer: Tokenizer, end: str) -> Iterable[int]:
    for name in _ENDINGS:
        stated = _optional(folder / name).get("eos_token_id")
        yield from stated if isinstance(stated, list) else [] if stated is None else [stated]
    number = tokenizer.token_to_id(end) if end else None
    if number is not None:
        yield number


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    """A file of its own, or a setting: one template, or named ones of which `default` counts."""
    file = folder / _TEMPLATE
    if file.is_file():
        return file.read_text("utf-8", "replace")
    stated = settings.get("chat_template") or ""
    if isinstance(stated, list):
        named = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
        stated = named.get("default") or ""
    return str(stated)


def _text(stated: Any) -> str:
    """A token is stated as its text, or as an object with its text."""
    return str((stated.get("content") if isinstance(stated, dict) else stated) or "")


def _optional(path: Path) -> dict[str, Any]:
    """Read a file that need not be there; `ConfigError` when it is damaged."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; pull or save the model again") from error

"""From a model's stated settings to its `Architecture`: pure, and strict about what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

import msgspec

from edged.errors import ConfigError
from edged.layers.share import Architecture, Family

FAMILIES: tuple[Family, ...] = get_args(Family)
_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
"""Position schemes whose frequencies depend on nothing but the settings, with the keys that each needs."""
_QWEN3_HEAD_DIMENSION = 128
"""What the library takes when a Qwen3 folder does not say."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that a stage must know to build its layers."""

    architecture: Architecture
    rope: dict[str, Any]
    """Rotary position settings under the library's names: `rope_type`, `rope_theta`, and the scheme's own."""
    positions: int
    """Positions that the model was made for; a sliding window may allow fewer."""


def facts_of(settings: Mapping[str, Any], where: str) -> Facts:
    """Read the settings of a `config.json`; `where` names the file in errors.

    Raises `ConfigError` for another family, for a variation of a known one that edged does not compute
    (other activations, biases, position schemes), and for a setting that is missing.
    """
    family = settings.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(unknown_family(family, where))
    _refuse_variations(settings, family, where)
    rope = _rope(settings, where)
    positions = _positive(settings, "max_position_embeddings", where)
    heads = _positive(settings, "num_attention_heads", where)
    hidden = _positive(settings, "hidden_size", where)
    architecture = Architecture(
        family=cast("Family", family),
        layers=_positive(settings, "num_hidden_layers", where),
        hidden=hidden,
        intermediate=_positive(settings, "intermediate_size", where),
        heads=heads,
        key_value_heads=_key_value_heads(settings, heads, where),
        head_dimension=_head_dimension(settings, family, hidden, heads, where),
        vocabulary=_positive(settings, "vocab_size", where),
        context_tokens=min(positions, _window(settings, family) or positions),
        tied=bool(settings.get("tie_word_embeddings", False)),
        rope_theta=float(rope["rope_theta"]),
        norm_epsilon=float(settings.get("rms_norm_eps", 1e-6)),
        attention_bias=family == "qwen2",
        query_key_norm=family == "qwen3",
    )
    return Facts(architecture=architecture, rope=rope, positions=positions)


def library_settings(facts: Facts) -> dict[str, Any]:
    """Return the arguments of the library's configuration class; nothing is left to its defaults."""
    shape = facts.architecture
    return {
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dimension,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": facts.positions,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_parameters": dict(facts.rope),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "attn_implementation": "sdpa",
        **_FAMILY_SETTINGS[shape.family],
    }


_FAMILY_SETTINGS: dict[Family, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "attention_bias": False},
    "mistral": {"sliding_window": None},
}
"""No window: `context_tokens` ends where one would begin to hide tokens."""


def unknown_family(family: Any, where: str) -> str:
    """Say that a family is not among those whose layers edged runs."""
    return f"{where} is of family {family!r}; layer pipelines run {', '.join(FAMILIES)}: choose such a model"


def _refuse_variations(settings: Mapping[str, Any], family: str, where: str) -> None:
    biased = "attention_bias" if family != "qwen2" else ""
    found = [key for key in (biased, "mlp_bias", "quantization_config") if key and settings.get(key)]
    if settings.get("hidden_act", "silu") != "silu":
        found.append("hidden_act")
    if float(settings.get("partial_rotary_factor") or 1.0) != 1.0:
        found.append("partial_rotary_factor")
    if found:
        stated = ", ".join(f"{key} = {settings[key]!r}" for key in found)
        raise ConfigError(
            f"{where} says {stated}, which layer pipelines do not compute; choose another model"
        )


def _rope(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Read either spelling: `rope_parameters`, or `rope_theta` beside `rope_scaling`."""
    stated = {**(settings.get("rope_scaling") or {}), **(settings.get("rope_parameters") or {})}
    scheme = stated.pop("type", None)
    scheme = stated.get("rope_type") or scheme or "default"
    if scheme not in _ROPE_KEYS or float(stated.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigError(
            f"{where} scales positions by {scheme!r}; layer pipelines know {', '.join(_ROPE_KEYS)}: "
            "choose another model"
        )
    missing = [key for key in _ROPE_KEYS[scheme] if key not in stated]
    if missing:
        raise ConfigError(
            f"{where} scales positions by {scheme!r} without {', '.join(missing)}; mend the file"
        )
    theta = stated.get("rope_theta") or settings.get("rope_theta") or 10_000.0
    return {**stated, "rope_type": scheme, "rope_theta": float(theta)}


def _window(settings: Mapping[str, Any], family: str) -> int:
    """Tokens that a layer sees back to; 0 for all of them."""
    used = family == "mistral" or settings.get("use_sliding_window")
    return int(settings.get("sliding_window") or 0) if used else 0


def _key_value_heads(settings: Mapping[str, Any], heads: int, where: str) -> int:
    count = heads
    if settings.get("num_key_value_heads") is not None:
        count = _positive(settings, "num_key_value_heads", where)
    if heads % count:
        raise ConfigError(f"{where} says {heads} heads over {count} key-value heads; mend the file")
    return count


def _head_dimension(settings: Mapping[str, Any], family: str, hidden: int, heads: int, where: str) -> int:
    if settings.get("head_dim") is not None:
        return _positive(settings, "head_dim", where)
    return _QWEN3_HEAD_DIMENSION if family == "qwen3" else hidden // heads


def _positive(settings: Mapping[str, Any], key: str, where: str) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where} says {key} = {value!r}, which is no positive number; mend the file")
    return value

"""Names and shapes of the tensors of a stage: as the library calls them, and as a GGUF file does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from edged.layers.share import Architecture, Share

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
_GGUF_ENDS = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight", HEAD: "output.weight"}
_GGUF_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Standardized tensor names"."""


class Wanted(NamedTuple):
    """A tensor that a stage needs."""

    name: str
    """In the stage: its layers count from 0."""
    stored: str
    """In the whole model."""
    shape: tuple[int, ...]


def wanted(architecture: Architecture, share: Share) -> Iterator[Wanted]:
    """List what a stage needs, in the order in which it is computed."""
    matrix = (architecture.vocabulary, architecture.hidden)
    if share.embedding:
        yield Wanted(EMBEDDING, EMBEDDING, matrix)
    for number in range(share.first, share.end):
        for part, shape in layer_parts(architecture).items():
            yield Wanted(
                f"model.layers.{number - share.first}.{part}", f"model.layers.{number}.{part}", shape
            )
    if share.head:
        yield Wanted(NORM, NORM, (architecture.hidden,))
        yield Wanted(HEAD, EMBEDDING if architecture.tied else HEAD, matrix)


def layer_parts(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name the tensors of one decoder layer, with their shapes: rows are outputs."""
    hidden, intermediate = architecture.hidden, architecture.intermediate
    queries = architecture.heads * architecture.head_dimension
    keys = architecture.key_value_heads * architecture.head_dimension
    rows = {"q": queries, "k": keys, "v": keys}
    parts: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (hidden,)}
    parts |= {f"self_attn.{name}_proj.weight": (count, hidden) for name, count in rows.items()}
    if architecture.attention_bias:
        parts |= {f"self_attn.{name}_proj.bias": (count,) for name, count in rows.items()}
    if architecture.query_key_norm:
        parts |= {f"self_attn.{name}_norm.weight": (architecture.head_dimension,) for name in "qk"}
    return parts | {
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }


def gguf_name(name: str) -> str:
    """Turn the library's name of a tensor of the whole model to that of a GGUF file.

    >>> gguf_name("model.layers.7.self_attn.q_proj.weight")
    'blk.7.attn_q.weight'
    """
    if name in _GGUF_ENDS:
        return _GGUF_ENDS[name]
    number, _, part = name.removeprefix("model.layers.").partition(".")
    module, _, kind = part.rpartition(".")
    return f"blk.{number}.{_GGUF_PARTS[module]}.{kind}"

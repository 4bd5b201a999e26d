"""The library's own pipeline parallelism, as a process per stage: the contender of `benchmarks/layers.py`.

    RANK=0 WORLD_SIZE=2 ... python -m benchmarks._native_pipeline FOLDER ROUNDS TOKENS

Reads prompts, lists of ids, from the JSON file that PROMPTS names; generates greedily from the batch padded
on the left, and from the first prompt alone; the last rank prints answers and seconds of each round as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig

PAD = 2


def main() -> None:
    path, rounds, tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    prompts = json.loads(Path(os.environ["PROMPTS"]).read_text("utf-8"))
    stages = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        distributed_config=DistributedConfig(pp_size=stages) if stages > 1 else None,
    )
    model.eval()
    batch, mask = padded(prompts)
    single = torch.tensor([prompts[0]])
    alone = generated(model, single, torch.ones_like(single), tokens)
    seconds, answers = [], []
    for _ in range(rounds):
        dist.barrier()
        began_s = time.monotonic()
        answers = generated(model, batch, mask, tokens)
        seconds.append(time.monotonic() - began_s)
    if dist.get_rank() == stages - 1:
        print(json.dumps({"alone": alone[0], "answers": answers, "seconds": seconds}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    batch = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return batch, mask


@torch.inference_mode()
def generated(model: object, batch: torch.Tensor, mask: torch.Tensor, tokens: int) -> list[list[int]]:
    found = model.generate(  # type: ignore[attr-defined] # the library is untyped
        batch,
        attention_mask=mask,
        max_new_tokens=tokens,
        eos_token_id=None,
        do_sample=False,
        pad_token_id=PAD,
    )
    return [row[batch.shape[1] :].tolist() for row in found]


if __name__ == "__main__":
    main()

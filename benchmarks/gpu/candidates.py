"""The likeliest next tokens after some ids, with their log probabilities, by a bare SGLang engine.

Way:   tokens.py, where two answers part -> [this, a process of its own] -> one JSON line
In:    on stdin: {"model", "config", "device", "ids"}; the engine gets what the configuration's prefill engine gets
"""

from __future__ import annotations

import json
import sys

import yaml

from benchmarks.gpu.places import PROJECT
from disagg.sglang.arguments import DEVICE_DEFAULTS

TOP = 5


def main() -> None:
    asked = json.load(sys.stdin)
    from sglang.srt.entrypoints.engine import Engine

    said = yaml.safe_load((PROJECT / "configs" / asked["config"]).read_text(encoding="utf-8"))
    engine = Engine(
        model_path=asked["model"],
        device=asked["device"],
        grammar_backend="none",
        skip_tokenizer_init=True,
        **DEVICE_DEFAULTS[asked["device"]] | said["prefill"]["engine"],
    )
    answer = engine.generate(
        input_ids=asked["ids"],
        sampling_params={"temperature": 0.0, "max_new_tokens": 1, "ignore_eos": True},
        return_logprob=True,
        top_logprobs_num=TOP,
    )
    top = answer["meta_info"]["output_top_logprobs"][0]
    print(json.dumps([{"token": int(token), "logprob": float(logprob)} for logprob, token, *_ in top]))


if __name__ == "__main__":
    main()

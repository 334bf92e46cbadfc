"""GGUF -> safetensors with transformers. A program of its own: `convert.py GGUF FOLDER`.

Way:   download -> [convert] -> manifest
In:    a GGUF file. Out: weights in bfloat16, config, tokenizer and chat template in FOLDER
Alone: torch and transformers fill this process, not the caller's, and find the stand-ins on its PYTHONPATH;
       so nothing of disagg is imported here
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Any

SAMPLE = "Grüße aus Zürich : 6 : 4, 6 : 4 🎾\n\tdef f(x): return x"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    name_special_tokens(tokenizer)
    tokenizer.save_pretrained(str(folder))
    name_decoder(folder / "tokenizer.json")
    check_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    model.save_pretrained(str(folder))


def name_special_tokens(tokenizer: Any) -> None:
    """By the file's ids: transformers 5.12 reads them too, but names <|im_start|> as the end of an answer."""
    for token in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token_id = tokenizer.init_kwargs.pop(f"{token}_id", None)
        if token_id is not None:
            setattr(tokenizer, token, tokenizer.convert_ids_to_tokens(token_id))
    # Else spaces before punctuation are lost in decoding, where a library takes this word for it.
    tokenizer.init_kwargs["clean_up_tokenization_spaces"] = tokenizer.clean_up_tokenization_spaces = False


def name_decoder(file: Path) -> None:
    """Leaves of the written decoder what the tokens need.

    transformers puts the steps of another kind of tokenizer (for bytes as <0x0A>) before it. Text comes out the same,
    but xgrammar goes by the first kind that it finds: it takes "Ġ" for a letter, and a grammar has no spaces.
    """
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    steps = (tokenizer["decoder"] or {}).get("decoders", [])
    of_bytes = [step for step in steps if step["type"] == "ByteLevel"]
    if of_bytes and tokenizer["pre_tokenizer"]["type"] == "ByteLevel":
        tokenizer["decoder"] = of_bytes[0]
        tokenizer["model"]["byte_fallback"] = False
        file.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def check_tokenizer(folder: Path) -> None:
    """Checks the written tokenizer: it has a chat template, and encoding then decoding a text gives the same text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if not tokenizer.chat_template:
        sys.exit("the tokenizer has no chat template")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": SAMPLE}], tokenize=False)
    if SAMPLE not in prompt or tokenizer.decode(tokenizer.encode(prompt)) != prompt:
        sys.exit("the tokenizer does not give back the text that it was given")


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with the process that started it
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

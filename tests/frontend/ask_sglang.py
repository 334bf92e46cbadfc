"""A program: what SGLang's own tokenizers and template detection say. It lives apart, as it imports SGLang.

In:    a JSON line {"folders": […], "texts": […], "sources": […]}; out: a JSON line as the last
"""

import json
import sys
from pathlib import Path

from sglang.srt.parser.jinja_template_utils import detect_jinja_template_content_format
from sglang.srt.utils.hf_transformers_utils import get_tokenizer

from disagg.process.tokenizer_check import first_difference
from disagg.tokenizer.tokenizer_files import load_tokenizer

asked = json.load(sys.stdin)
answers = []
for folder in asked["folders"]:
    theirs = get_tokenizer(folder)
    both = [[theirs(text, add_special_tokens=each)["input_ids"] for text in asked["texts"]] for each in (True, False)]
    decoded = [theirs.decode(ids, skip_special_tokens=True) for ids in both[0]]
    difference = first_difference(load_tokenizer(Path(folder)), theirs)
    answers.append({"ids": both, "decoded": decoded, "class": type(theirs).__name__, "difference": difference})
forms = [detect_jinja_template_content_format(source) for source in asked["sources"]]
print(json.dumps({"answers": answers, "forms": forms}))

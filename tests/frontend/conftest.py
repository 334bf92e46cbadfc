from __future__ import annotations

import sys
from pathlib import Path

import pytest

from disagg.tokenizer.codec import Codec, load_codec

sys.path.insert(0, str(Path(__file__).parent))  # tests share scripted.py; they are not a package

from scripted import make_model_folder


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return load_codec(make_model_folder(tmp_path_factory.mktemp("model")))

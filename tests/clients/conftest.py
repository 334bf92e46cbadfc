from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests share venvs.py; they are not a package
sys.path.insert(1, str(HERE.parent / "frontend"))  # and scripted.py, chat_styles.py
sys.path.insert(2, str(HERE.parent / "embeddings"))  # and vector_scene.py

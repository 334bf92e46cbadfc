from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # tests share two_frontends.py; they are not a package
sys.path.insert(1, str(HERE.parent / "frontend"))  # and its model's folder

"""Runs one of the server test kits in SGLang's wheel: python sglang_kit.py MODULE.MIXIN URL MODEL

The kits ask a server by HTTP. They are imported without `sglang/__init__.py`, which would load torch. Exit 0: each test
of the kit has run, and passed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import unittest
from typing import Any

import openai

REQUEST_S = 450.0  # for cores that do other things, too: the kits' own limit is one for GPUs


def of_kit(module: str) -> Any:
    """The module of a kit. In this process there is no whole SGLang from then on."""
    if "sglang" not in sys.modules:
        spec = importlib.util.find_spec("sglang")
        assert spec is not None
        bare = types.ModuleType("sglang")
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["sglang"] = bare
    return importlib.import_module(f"sglang.test.kits.{module}")


def main() -> int:
    path, url, model = sys.argv[1:]
    module, _, name = path.partition(".")
    kit = of_kit(module)
    if hasattr(kit, "_REQUEST_TIMEOUT"):
        kit._REQUEST_TIMEOUT = REQUEST_S
    mixin = getattr(kit, name)
    of_server: dict[str, Any] = {"base_url": url, "model": model, "served_model_name": model, "process": None}
    of_server |= {"api_key": "none", "client": openai.Client(api_key="none", base_url=f"{url}/v1")}
    case = type(name, (mixin, unittest.TestCase), of_server)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    result = unittest.TextTestRunner(sys.stderr, verbosity=2).run(suite)
    return 0 if result.testsRun and not result.skipped and result.wasSuccessful() else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Runs one of the server test kits in SGLang's wheel: python sglang_kit.py MODULE.MIXIN URL MODEL

The kits ask a server by HTTP. They are imported without `sglang/__init__.py`, which would load torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import unittest


def main() -> int:
    path, url, model = sys.argv[1:]
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    bare = types.ModuleType("sglang")
    bare.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["sglang"] = bare
    module, _, name = path.partition(".")
    mixin = getattr(importlib.import_module(f"sglang.test.kits.{module}"), name)
    of_server = {"base_url": url, "model": model, "served_model_name": model, "process": None}
    case = type(name, (mixin, unittest.TestCase), of_server)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    return 0 if suite.countTestCases() and unittest.TextTestRunner(sys.stderr).run(suite).wasSuccessful() else 1


if __name__ == "__main__":
    raise SystemExit(main())

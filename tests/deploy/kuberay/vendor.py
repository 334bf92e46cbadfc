"""Makes schemas.json.gz beside this file from KubeRay's CRDs; see README.md for which.

Usage: python tests/deploy/kuberay/vendor.py FOLDER-WITH-CRDS

Kept are the v1 schemas of RayJob and RayService, whole and unchanged; left out are the older version and what is not a
schema.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import yaml

SHA256 = {
    "ray.io_rayjobs.yaml": "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5",
    "ray.io_rayservices.yaml": "0a8fc325e6e22b9231c1f282b309555e2ecf94227ca20a03df3d1d9a403907ab",
}
HERE = Path(__file__).parent


def main() -> None:
    schemas = {}
    for name, wanted in SHA256.items():
        raw = (Path(sys.argv[1]) / name).read_bytes()
        found = hashlib.sha256(raw).hexdigest()
        if found != wanted:
            sys.exit(f"{name} is {found}, and README.md is about {wanted}")
        crd = yaml.safe_load(raw)
        (schema,) = (v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1")
        schemas[crd["spec"]["names"]["kind"]] = schema
    text = json.dumps(schemas, sort_keys=True, separators=(",", ":")).encode()
    (HERE / "schemas.json.gz").write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main()

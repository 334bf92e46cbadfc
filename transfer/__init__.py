"""KV transfers over NIXL. A real package: without this file any other `transfer` on the path would come first."""

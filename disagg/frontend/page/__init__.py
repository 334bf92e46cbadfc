"""The page of `/disagg/`: what a deployment does, live, in a browser (docs/page.md)."""

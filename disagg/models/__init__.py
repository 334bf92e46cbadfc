"""Models by name, by folder and by hub id."""

from disagg.models.catalogue import CATALOGUE, cache_folder
from disagg.models.fetch import fetch_model
from disagg.models.resolve import resolve_model

__all__ = ["CATALOGUE", "cache_folder", "fetch_model", "resolve_model"]

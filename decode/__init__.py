"""The decode worker role."""

"""The prefill worker role."""

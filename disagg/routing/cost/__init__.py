"""What a request would cost on which engines, in seconds: learnt from what the engines report."""

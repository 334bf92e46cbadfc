"""A whole deployment without machines: virtual time, a network in memory, engines that only pretend to compute."""

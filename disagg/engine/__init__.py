"""Engines: what an actor hosts, forks, watches and asks for tokens."""

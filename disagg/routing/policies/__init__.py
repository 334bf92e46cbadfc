"""The policies that `routing.policy` may name: a file each, with its formula."""

"""Helpers around `k8s/monitoring`: its files, the lines of a real run, and the real languages."""

"""Requests and results of the pipelines: the single source for bridge, HTTP API and replicas."""

"""What runs on the GPUs: one Ray Serve application per (pipeline, model), a replica per GPU.

Knows nothing of orchestrators and never imports `cluster`.
"""

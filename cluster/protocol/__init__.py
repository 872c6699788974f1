"""The orchestrator's gRPC messages: lp_rpc.proto and the modules generated from it."""

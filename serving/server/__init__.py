"""The inference server: REST and gRPC over one service."""

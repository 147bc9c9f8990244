"""The gRPC server: decodes, asks the engine, encodes; holds no drafting logic."""

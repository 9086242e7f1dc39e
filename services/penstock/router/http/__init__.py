"""The OpenAI-compatible HTTP front, in the router's process and over the same flow as gRPC."""

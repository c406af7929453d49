"""HTTP/2 for servers on an asyncio event loop, with trailers, as gRPC needs it (RFC 9113).

What is served is a `Stream` of the application's own class; it knows nothing of gRPC.
"""

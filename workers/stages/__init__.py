"""One module per stage: reuse published artifacts, make missing ones, publish atomically."""

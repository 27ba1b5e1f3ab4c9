"""ComfyUI nodes: each has a schema and a short `execute` that calls `vc_core`. `host/` adapts the core to ComfyUI."""

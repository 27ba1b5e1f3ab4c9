"""The nodes. Each is a schema and a short execute that calls `vc_core`; `host/` is how the core meets ComfyUI."""

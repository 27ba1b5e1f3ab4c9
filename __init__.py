"""ComfyUI's door to VideoComposer. It opens once the node pack is here; until then there is nothing to import."""

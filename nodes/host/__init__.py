"""Adapters from the core to ComfyUI: the network as MODEL, the autoencoder as VAE, the towers as CLIP, CLIP_VISION."""

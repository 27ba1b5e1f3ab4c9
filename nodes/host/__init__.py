"""How the core meets ComfyUI: the network as a MODEL, its autoencoder as a VAE, its towers as CLIP and CLIP_VISION."""

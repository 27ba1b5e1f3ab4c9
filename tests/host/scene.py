"""Graphs for tests: the bundled checkpoint in float32 and two prompts, to which a test adds nodes."""

from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.host.graph import Node
from tests.host.server import Host, Result

BUNDLED = "videocomposer_small (bundled)"
TEXT = "a red circle on a background of blue and white stripes"


class Scene:
    """A graph with the checkpoint and prompts, to which tests add conditions and samplers.

    Attributes:
        graph: the graph for `Host.run`.
        loader: the node with the outputs MODEL, CLIP, CLIP_VISION and VAE.
        positive, negative: the encoded prompts.
    """

    def __init__(self, host: Host, ckpt_name: str = BUNDLED, weight_dtype: str = "fp32"):
        self.host, self.graph = host, host.graph()
        self.loader = self.graph.add("VCCheckpointLoader", ckpt_name=ckpt_name, weight_dtype=weight_dtype)
        self.positive, self.negative = self.text(TEXT), self.text("")

    def add(self, kind: str, **inputs: Any) -> Node:
        """Add a node like `Graph.add`. The socket `model` defaults to the loader; None leaves it unconnected."""
        sockets = self.host.nodes[kind]["input"]
        if "model" in {**sockets.get("required", {}), **sockets.get("optional", {})}:
            inputs = {"model": self.loader, **inputs}
        inputs = {name: value for name, value in inputs.items() if name != "model" or value is not None}
        return self.graph.add(kind, **inputs)

    def text(self, text: str) -> Node:
        return self.add("CLIPTextEncode", text=text, clip=self.loader[1])

    def encode(self, **inputs: Any) -> Node:
        """Add an STCEncode, by default with these prompts."""
        return self.add("STCEncode", **{"positive": self.positive, "negative": self.negative, **inputs})

    def sample(self, stc: Node, **inputs: Any) -> Node:
        """Add our sampler after an STCEncode."""
        links = {"positive": stc[0], "negative": stc[1], "latent": stc[2]}
        return self.add("VC3DUNetSampler", **{**_QUICK, **links, **inputs})

    def stock_sample(self, stc: Node, **inputs: Any) -> Node:
        """Add the stock KSampler after an STCEncode."""
        links = {"positive": stc[0], "negative": stc[1], "latent_image": stc[2]}
        return self.add("KSampler", **{**_QUICK, **links, **inputs})

    def latents(self, *nodes: Node) -> list[Tensor]:
        """Run the graph and return the latents of these nodes."""
        saved = [self.add("SaveLatent", samples=node) for node in nodes]
        result = self.host.run(self.graph)
        return [saved_latent(result, node) for node in saved]


_QUICK = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}


def saved_latent(result: Result, node: Node) -> Tensor:
    """Return the latent that a SaveLatent wrote."""
    (file,) = result.files_of(node)
    return load_file(file)["latent_tensor"]


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Euclidean norm."""
    return ((actual - expected).norm() / expected.norm()).item()

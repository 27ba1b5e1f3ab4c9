"""The graphs of the tests: the bundled checkpoint in float32, two prompts, and what a test hangs on them."""

from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.host.graph import Node
from tests.host.server import Host, Result

BUNDLED = "videocomposer_small (bundled)"
TEXT = "a red circle on a background of blue and white stripes"


class Scene:
    """A graph that has the checkpoint and its prompts, and waits for conditions and samplers.

    Attributes:
        graph: what `Host.run` takes.
        loader: its outputs are the MODEL, CLIP, CLIP_VISION and VAE.
        positive, negative: the encoded prompts.
    """

    def __init__(self, host: Host, ckpt_name: str = BUNDLED, weight_dtype: str = "fp32"):
        self.host, self.graph = host, host.graph()
        self.loader = self.graph.add("VCCheckpointLoader", ckpt_name=ckpt_name, weight_dtype=weight_dtype)
        self.positive, self.negative = self.text(TEXT), self.text("")

    def add(self, kind: str, **inputs: Any) -> Node:
        """Adds a node as `Graph.add` does; a socket `model` is the loader's unless given, None leaves it unplugged."""
        sockets = self.host.nodes[kind]["input"]
        if "model" in {**sockets.get("required", {}), **sockets.get("optional", {})}:
            inputs = {"model": self.loader, **inputs}
        inputs = {name: value for name, value in inputs.items() if name != "model" or value is not None}
        return self.graph.add(kind, **inputs)

    def text(self, text: str) -> Node:
        return self.add("CLIPTextEncode", text=text, clip=self.loader[1])

    def encode(self, **inputs: Any) -> Node:
        """An STCEncode, of these prompts unless others are given."""
        return self.add("STCEncode", **{"positive": self.positive, "negative": self.negative, **inputs})

    def sample(self, stc: Node, **inputs: Any) -> Node:
        """Our sampler on what an STCEncode gave."""
        links = {"positive": stc[0], "negative": stc[1], "latent": stc[2]}
        return self.add("VC3DUNetSampler", **{**_QUICK, **links, **inputs})

    def stock_sample(self, stc: Node, **inputs: Any) -> Node:
        """The stock KSampler on what an STCEncode gave."""
        links = {"positive": stc[0], "negative": stc[1], "latent_image": stc[2]}
        return self.add("KSampler", **{**_QUICK, **links, **inputs})

    def latents(self, *nodes: Node) -> list[Tensor]:
        """Runs the graph and returns the latents that these nodes give."""
        saved = [self.add("SaveLatent", samples=node) for node in nodes]
        result = self.host.run(self.graph)
        return [saved_latent(result, node) for node in saved]


_QUICK = {"seed": 1, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}


def saved_latent(result: Result, node: Node) -> Tensor:
    """What a SaveLatent wrote."""
    (file,) = result.files_of(node)
    return load_file(file)["latent_tensor"]


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error, in the Euclidean norm."""
    return ((found - expected).norm() / expected.norm()).item()

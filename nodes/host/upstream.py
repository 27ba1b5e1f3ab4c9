"""What stock nodes before a sampler do to a MODEL by names and shapes of other networks.

It leaves no trace in the MODEL, so the nodes of the graph are looked at: what of them has no effect is said on the
sampler at every run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ...vc_core.config import UNetConfig
from ...vc_core.errors import UserError, shorten
from .running import say

Inputs = Mapping[str, Any]
"""A node's inputs as in the graph: values of widgets, and links `[node, output]`."""
Rule = Callable[[str, Inputs, Any], str] | str
"""`(node id, inputs, VideoComposerModel)` to a sentence for the user, "" where all is well; or what follows the id."""


def tell_unused(model: Any) -> None:
    """Says what of the nodes before the sampler that runs has no effect on a `VideoComposerModel`.

    Raises:
        UserError: one that does not work with it.
    """
    for kind, inputs in _nodes_before():
        if kind in _REFUSED:
            raise UserError(
                f"The model comes through '{kind}', which does not work with VideoComposer: remove that node."
            )
        rule = _merge if kind.startswith("ModelMerge") else _RULES.get(kind, "")
        if rule:
            say(f"{kind} {rule}" if isinstance(rule, str) else rule(kind, inputs, model))


def _nodes_before() -> Iterator[tuple[str, Inputs]]:
    """The nodes that the MODEL of the node that runs comes through, the last one first."""
    from comfy_execution.graph_utils import is_link
    from comfy_execution.progress import get_progress_state
    from comfy_execution.utils import get_executing_context
    from server import nodes as registry  # ComfyUI's, not ours of that name

    context = get_executing_context()
    if context is None:
        return
    prompt = get_progress_state().dynprompt
    waiting, seen = [context.node_id], {context.node_id}
    while waiting:
        for value in prompt.get_node(waiting.pop(0))["inputs"].values():
            if not is_link(value) or value[0] in seen:
                continue
            source, output = value
            node = prompt.get_node(source)
            outputs = registry.NODE_CLASS_MAPPINGS[node["class_type"]].RETURN_TYPES
            if outputs[output] in ("MODEL", "GUIDER"):
                seen.add(source)
                waiting.append(source)
                yield node["class_type"], node["inputs"]


def widths(config: UNetConfig) -> list[int]:
    """Widths of a network's levels, from the top."""
    return [config.width * multiplier for multiplier in config.multipliers]


def _without_effect(kind: str, widgets: Collection[str], why: str) -> str:
    return f"{kind}: {shorten(widgets)} had no effect, as {why}." if widgets else ""


def _merge(kind: str, inputs: Inputs, model: Any) -> str:
    """Merges by blocks go by what names begin with; what begins like no widget counts as the first one."""
    ratios = {name: value for name, value in inputs.items() if name not in ("model1", "model2")}
    default, *others = ratios or [""]
    names = [name for name, _ in model.diffusion_model.named_parameters()]
    unused = [
        name for name in others if ratios[name] != ratios[default] and not any(each.startswith(name) for each in names)
    ]
    return _without_effect(
        kind, unused, f"no layer of this network has a name that begins so: '{default}' counts for them"
    )


def _freeu(kind: str, inputs: Inputs, model: Any) -> str:
    channels = model.model_config.unet_config["model_channels"]
    missing = {i: channels * k for i, k in ((1, 4), (2, 2)) if channels * k not in widths(model.videocomposer.unet)}
    unused = [name for i in missing for name in (f"b{i}", f"s{i}") if inputs.get(name) != 1]
    return _without_effect(kind, unused, f"no layer of this network is {' or '.join(map(str, missing.values()))} wide")


def _to_out(*widgets: str) -> Rule:
    """Those of the widgets that are not at 1, which is no change."""

    def rule(kind: str, inputs: Inputs, model: Any) -> str:
        unused = [name for name in widgets if inputs.get(name) != 1]
        return _without_effect(kind, unused, "no layer of this network is named 'to_out.0'")

    return rule


def _prediction(kind: str, inputs: Inputs, model: Any) -> str:
    """What guides to LCM in ComfyUI name is for networks that predict noise."""
    if model.videocomposer.diffusion.prediction != "v_prediction" or inputs.get("sampling") not in ("eps", "lcm"):
        return ""
    return (
        f"{kind}: '{inputs['sampling']}' takes what the network predicts for noise, and it is v: remove that node, as "
        "the loader sets prediction and schedule, and those of few steps by few_steps."
    )


def _mixing(kind: str, inputs: Inputs, model: Any) -> str:
    """Older versions add what they keep of each side of the guidance to all sides."""
    from comfy_extras.nodes_easycache import EasyCacheHolder

    if hasattr(EasyCacheHolder, "can_apply_cache_diff"):
        return ""
    return (
        f"{kind} of this ComfyUI mixes up the sides of the guidance and spoils the video: update it, or take LazyCache."
    )


_REFUSED = ("FluxKVCache", "SelfAttentionGuidance")
_FOREIGN = "had no effect: it is for other networks."
_OVER_BATCH = "goes over the videos of a batch, not over the frames: a single one has min_cfg throughout."
_RULES: dict[str, Rule] = {
    "ARVideoI2V": _FOREIGN,
    "ChromaRadianceOptions": _FOREIGN,
    "LTXVModalityGuidance": _FOREIGN,
    "LTXVSpatioTemporalGuidance": _FOREIGN,
    "ScaleROPE": _FOREIGN,
    "WanAnimate2Cache": _FOREIGN,
    "wanBlockSwap": _FOREIGN,
    "EasyCache": _mixing,
    "FreeU": _freeu,
    "FreeU_V2": _freeu,
    "ModelSamplingDiscrete": _prediction,
    "UNetCrossAttentionMultiply": _to_out("out"),
    "UNetSelfAttentionMultiply": _to_out("out"),
    "UNetTemporalAttentionMultiply": _to_out("self_structural", "self_temporal", "cross_structural", "cross_temporal"),
    "VideoLinearCFGGuidance": _OVER_BATCH,
    "VideoTriangleCFGGuidance": _OVER_BATCH,
}
"""Nodes that do not say themselves, or in a patch of the MODEL, what they do; see also `_merge`."""

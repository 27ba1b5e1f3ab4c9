"""Stock nodes before the sampler that patch a MODEL by names and shapes of other networks.

They leave no trace in the MODEL, so this module inspects the nodes of the graph. At every run, the sampler shows which
of their settings have no effect.
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
"""A function of (node id, inputs, VideoComposerModel) that returns a note or ""; or the note without the node id."""


def report_unused(model: Any) -> None:
    """Show which nodes before the current sampler have no effect on a `VideoComposerModel`.

    Raises:
        UserError: a node does not work with VideoComposer.
    """
    for kind, inputs in _nodes_before():
        if kind in _REFUSED:
            raise UserError(
                f"'{kind}' before the sampler does not work with VideoComposer. Remove or bypass that node."
            )
        rule = _merge if kind.startswith("ModelMerge") else _RULES.get(kind, "")
        if rule:
            say(f"{kind} {rule}" if isinstance(rule, str) else rule(kind, inputs, model))


def _nodes_before() -> Iterator[tuple[str, Inputs]]:
    """Yield the nodes between the loader and the current node that pass on its MODEL or GUIDER, the last one first."""
    from comfy_execution.graph_utils import is_link
    from comfy_execution.progress import get_progress_state
    from comfy_execution.utils import get_executing_context
    from server import nodes as registry  # ComfyUI's `nodes`, not ours

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
    """Return the widths of a network's levels, from the top."""
    return [config.width * multiplier for multiplier in config.multipliers]


def _without_effect(kind: str, widgets: Collection[str], why: str) -> str:
    return f"{kind}: {shorten(widgets)} had no effect because {why}." if widgets else ""


def _merge(kind: str, inputs: Inputs, model: Any) -> str:
    """Return a note on a merge by blocks, whose widgets are prefixes of layer names. The first is for all others."""
    ratios = {name: value for name, value in inputs.items() if name not in ("model1", "model2")}
    default, *others = ratios or [""]
    names = [name for name, _ in model.diffusion_model.named_parameters()]
    unused = [
        name
        for name in others
        if ratios[name] != ratios[default] and not any(layer.startswith(name) for layer in names)
    ]
    return _without_effect(kind, unused, f"no layer name of this network starts like that; '{default}' applies instead")


def _freeu(kind: str, inputs: Inputs, model: Any) -> str:
    channels = model.model_config.unet_config["model_channels"]
    missing = {i: channels * k for i, k in ((1, 4), (2, 2)) if channels * k not in widths(model.videocomposer.unet)}
    unused = [name for i in missing for name in (f"b{i}", f"s{i}") if inputs.get(name) != 1]
    return _without_effect(
        kind, unused, f"no layer of this network has the width {' or '.join(map(str, missing.values()))}"
    )


def _to_out(*widgets: str) -> Rule:
    """Return a rule for multipliers of 'to_out.0': those that are not 1 had no effect."""

    def rule(kind: str, inputs: Inputs, model: Any) -> str:
        unused = [name for name in widgets if inputs.get(name) != 1]
        return _without_effect(kind, unused, "this network has no layer named 'to_out.0'")

    return rule


def _prediction(kind: str, inputs: Inputs, model: Any) -> str:
    """Return a note on the samplings that guides to LCM recommend: they are for networks that predict noise."""
    if model.videocomposer.diffusion.prediction != "v_prediction" or inputs.get("sampling") not in ("eps", "lcm"):
        return ""
    return (
        f"{kind}: '{inputs['sampling']}' is for networks that predict noise, but this network predicts v. Remove that "
        "node: the loader sets prediction and schedule, also for few steps (few_steps)."
    )


def _mixing(kind: str, inputs: Inputs, model: Any) -> str:
    """Return a note on older versions of EasyCache, which add one guidance side's cached difference to all sides."""
    from comfy_extras.nodes_easycache import EasyCacheHolder

    if hasattr(EasyCacheHolder, "can_apply_cache_diff"):
        return ""
    return (
        f"{kind} of this ComfyUI version mixes up the two sides of the guidance, which spoils the video. Update "
        "ComfyUI, or use LazyCache."
    )


_REFUSED = ("FluxKVCache", "SelfAttentionGuidance")
_FOREIGN = "had no effect. It is for other networks."
_OVER_BATCH = "varies cfg over the videos of a batch, not over frames. A single video gets min_cfg in all frames."
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
"""Nodes whose effect cannot be seen in the MODEL's patches; see also `_merge`."""

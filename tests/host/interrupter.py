"""Nodes for tests: one interrupts a run during a certain call of the network, one runs out of memory in it."""

from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy.patcher_extension import WrappersMP


class InterruptAt:
    """Return a MODEL whose `call`-th prediction interrupts. The number of predictions is written to `CALLS`."""

    CALLS = "calls.txt"
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "apply", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "call": ("INT", {"default": 1, "min": 1})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")  # each run starts counting again

    def apply(self, model, call):
        calls, file = [], Path(folder_paths.get_output_directory()) / self.CALLS

        def predict(network, arguments):
            calls.append(arguments["input"].shape[2])
            file.write_text(str(len(calls)))
            if len(calls) == call:
                comfy.model_management.interrupt_current_processing()
            return network(arguments["input"], arguments["timestep"], **arguments["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(predict)
        return (model,)


class OutOfMemory:
    """Return a MODEL whose network needs more memory than any computer has."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "apply", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def apply(self, model):
        def predict(executor, *arguments, **more):
            return torch.empty(1 << 50, dtype=torch.uint8)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "tests", predict)
        return (model,)


NODE_CLASS_MAPPINGS = {"InterruptAt": InterruptAt, "OutOfMemory": OutOfMemory}

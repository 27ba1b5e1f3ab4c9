"""A node that tests put beside the pack: it interrupts a run from within, in a call of the network that it is told."""

from pathlib import Path

import comfy.model_management
import folder_paths


class InterruptAt:
    """Gives a MODEL whose `call`-th prediction interrupts; the number of those made is written to `CALLS`."""

    CALLS = "calls.txt"
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "apply", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "call": ("INT", {"default": 1, "min": 1})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")  # each run counts anew

    def apply(self, model, call):
        made, file = [], Path(folder_paths.get_output_directory()) / self.CALLS

        def predict(network, given):
            made.append(given["input"].shape[2])
            file.write_text(str(len(made)))
            if len(made) == call:
                comfy.model_management.interrupt_current_processing()
            return network(given["input"], given["timestep"], **given["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(predict)
        return (model,)


NODE_CLASS_MAPPINGS = {"InterruptAt": InterruptAt}

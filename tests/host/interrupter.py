"""A node for tests that interrupts a run during a certain call of the network."""

from pathlib import Path

import comfy.model_management
import folder_paths


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


NODE_CLASS_MAPPINGS = {"InterruptAt": InterruptAt}

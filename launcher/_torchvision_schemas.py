"""Make ``import torchvision`` succeed with a CPU build of torch.

The set-up copies this file into ``.venv``, with a ``.pth`` file that imports it at start-up, but only if torchvision's
compiled extension cannot load: a wheel built for CUDA, and a torch built without it. In this case
``torchvision/_meta_registrations.py`` registers fake kernels for two operators that the extension would have declared,
and fails with "operator torchvision::nms does not exist". Declaring the two operators is enough: nothing in this
project calls them, and a call still fails with torch's own message.

Start-up stays fast: torch is imported only together with torchvision, which imports it anyway.
"""

import sys

_SCHEMAS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_keep_alive = []  # the declarations disappear with their torch.library.Library


class _SchemaDeclarer:
    """A meta-path finder that finds no module; it declares the operators just before they are needed."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname == "torchvision._meta_registrations" and not _keep_alive:
            import torch

            # torchvision/__init__.py has tried to load the extension before, so its operators exist if it could.
            if torch.version.cuda is None and not sys.modules["torchvision.extension"]._has_ops():
                library = torch.library.Library("torchvision", "DEF")
                for name in _SCHEMAS:
                    library.define(name + _SIGNATURE)
                _keep_alive.append(library)
        return None


sys.meta_path.insert(0, _SchemaDeclarer)

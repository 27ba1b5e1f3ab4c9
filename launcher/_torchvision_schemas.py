"""Lets ``import torchvision`` succeed beside a CPU build of torch.

The set-up copies this file into ``.venv`` beside a ``.pth`` file that imports it at start-up, and does so only where
torchvision's compiled extension cannot load: a wheel built for CUDA next to a torch built without it. There,
``torchvision/_meta_registrations.py`` registers fake kernels for two operators whose schemas the extension would have
declared, and stops with "operator torchvision::nms does not exist". Declaring the two schemas is enough: nothing in
this project calls the operators, and a call still fails with torch's own message.

Start-up stays cheap: torch is imported only by those who import torchvision, which imports it anyway.
"""

import sys

_SCHEMAS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_keep_alive = []  # the schemas vanish with their torch.library.Library


class _SchemaDeclarer:
    """A meta-path finder that finds nothing; it declares the schemas just before they are looked up."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname == "torchvision._meta_registrations" and not _keep_alive:
            import torch

            # torchvision/__init__.py has tried the extension by now, so what it declares is already there.
            if torch.version.cuda is None and not sys.modules["torchvision.extension"]._has_ops():
                library = torch.library.Library("torchvision", "DEF")
                for name in _SCHEMAS:
                    library.define(name + _SIGNATURE)
                _keep_alive.append(library)
        return None


sys.meta_path.insert(0, _SchemaDeclarer)

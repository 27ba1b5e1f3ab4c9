"""The old home of names of `vc_core.disk`."""

from .disk import check_folder as check_folder
from .disk import check_place as check_place
from .disk import folder_beside as folder_beside
from .disk import written_beside as written_beside

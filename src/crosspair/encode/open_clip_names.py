"""Where open_clip's own list of pretrained models has its weights on the hub."""

import difflib
from typing import Any

from crosspair.errors import UserError


def hub_name_of(architecture: str, tag: str) -> str:
    """owner/name of the weights of open_clip's ARCHITECTURE/TAG, such as ViT-B-32 and laion2b_s34b_b79k.

    Raises UserError where open_clip is not installed or lists no such weights, and where they were trained with another
    activation than the architecture has, of which open_clip itself only warns.
    """
    open_clip = import_open_clip()
    known = [f"{name}/{each}" for name, each in open_clip.list_pretrained()]
    weights = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    found = weights.get("hf_hub", "")
    if not found:
        given = f"{architecture}/{tag}" if architecture else tag
        near = difflib.get_close_matches(given, known, n=3)
        hint = f"; near: {', '.join(f'open_clip:{each}' for each in near)}" if near else ""
        raise UserError(
            f"open_clip lists no weights {given}{hint}; expected open_clip:ARCHITECTURE/TAG as "
            "`open_clip.list_pretrained()` names them, open_clip:local-dir:DIRECTORY or open_clip:hf-hub:OWNER/MODEL"
        )
    if weights.get("quick_gelu") and not open_clip.get_model_config(architecture).get("quick_gelu"):
        raise UserError(
            f"the weights {architecture}/{tag} were trained with QuickGELU, which open_clip's {architecture} has not; "
            f"name open_clip:{architecture}-quickgelu/{tag}"
        )
    return str(found).rpartition("/")[0]


def import_open_clip() -> Any:
    """The module open_clip. Raises UserError where it can't be imported."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"open_clip can't be imported ({error}); run: pip install 'crosspair[pairs]'") from error
    return open_clip

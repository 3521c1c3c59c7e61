"""`trn-emu vectors`: golden vectors for every format, scale rule and rounding."""

from argparse import Namespace

from .output import Report, progress, show

__all__ = ["execute"]


def execute(options: Namespace) -> int:
    """Raises ImportError, with what to install, where numpy or safetensors are missing."""
    try:
        import safetensors.numpy  # noqa: F401  and numpy with it

        from torch_trn_emu.testing.vectors import write_vectors
    except ImportError as error:
        raise ImportError(
            f"golden vectors need {error.name}: pip install 'torch_trn_emu[vectors]'"
        ) from error
    with progress(None, "sets of vectors") as advance:
        manifest = write_vectors(options.folder, advance)
    data = {
        "folder": options.folder,
        "entries": len(manifest["entries"]),
        "files": manifest["files"],
    }
    text = f"wrote {data['entries']} sets of vectors to {options.folder}, listed in manifest.json"
    show(Report(data=data, lines=[text]), as_json=options.json)
    return 0

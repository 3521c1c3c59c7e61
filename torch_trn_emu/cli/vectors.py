"""`trn-emu vectors`: golden vectors for every format, scale rule and rounding."""

from argparse import ArgumentParser, Namespace

from .output import Report, show

__all__ = ["HELP", "add_arguments", "execute"]

HELP = "write golden vectors for every format, scale rule and rounding"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER")


def execute(options: Namespace) -> int:
    """Raises ImportError, with what to install, where numpy or safetensors are missing."""
    try:
        import safetensors.numpy  # noqa: F401  and numpy with it

        from torch_trn_emu.testing.vectors import write_vectors
    except ImportError as error:
        raise ImportError(
            f"golden vectors need {error.name}: pip install 'torch_trn_emu[vectors]'"
        ) from error
    manifest = write_vectors(options.folder)
    data = {
        "folder": options.folder,
        "entries": len(manifest["entries"]),
        "files": manifest["files"],
    }
    text = f"wrote {data['entries']} sets of vectors to {options.folder}, listed in manifest.json"
    show(Report(data=data, lines=[text]), as_json=options.json)
    return 0
